"""Typed configuration of examples/plan.py; see config.py."""

from dataclasses import dataclass, fields

from nemo_moslim.checks import one_of, positive, require
from nemo_moslim.config import DimensionConfig
from nemo_moslim.model_config import ModelConfig
from nemo_moslim.policy_config import OnlineDPOConfig, PPOConfig, RLOOConfig, trained_answers

TASKS = ("rm", "ppo", "rloo", "online_dpo")
RECOMPUTE = ("none", "selective", "full")


@dataclass
class GpuConfig:
    """conf/gpu: one GPU and the node around it, peak values; bandwidths per GPU and direction."""

    name: str
    memory_gigabytes: float
    bf16_teraflops: float
    memory_gigabytes_per_second: float
    nvlink_gigabytes_per_second: float
    network_gigabytes_per_second: float
    host_gigabytes_per_second: float
    gpus_per_node: int
    node_memory_gigabytes: float

    def __post_init__(self):
        positive("gpu.", self, *(f.name for f in fields(self) if f.name != "name"))


@dataclass
class PlanDataConfig:
    """The data set that the hours are for, in mean lengths."""

    rows: int
    epochs: int
    tokens_per_row: int
    prompt_tokens: int
    answer_tokens: int

    def __post_init__(self):
        positive("data.", self, *(f.name for f in fields(self)))


@dataclass
class PlanBatchConfig:
    """`global_size` is train_rm.py's, the others are train_policy.py's."""

    global_size: int
    prompts: int
    mini_size: int | None
    score_size: int
    logprob_chunk: int

    def __post_init__(self):
        positive("batch.", self, "global_size", "prompts", "score_size", "logprob_chunk")
        if self.mini_size is not None:
            positive("batch.", self, "mini_size")


@dataclass
class SearchConfig:
    """The values that are tried."""

    tensor: list[int]
    pipeline: list[int]
    expert: list[int]
    micro_size: list[int]
    recompute: list[str]
    offload: list[bool]
    generation_size: list[int]

    def __post_init__(self):
        for field in fields(self):
            values = getattr(self, field.name)
            require(len(values) > 0, f"search.{field.name}", values, "at least one value")
            if field.name == "recompute":
                for value in values:
                    one_of("search.recompute", value, RECOMPUTE)
            elif field.name != "offload":
                require(min(values) > 0, f"search.{field.name}", values, "numbers above 0")


@dataclass
class AssumedConfig:
    """Shares of the peak values that are reached, and what the formulas leave out."""

    compute: float
    memory: float
    nvlink: float
    network: float
    host: float
    launch_microseconds: float
    latency_microseconds: float
    reserved_gigabytes: float

    def __post_init__(self):
        for name in ("compute", "memory", "nvlink", "network", "host"):
            require(0 < getattr(self, name) <= 1, f"assumed.{name}", getattr(self, name), "a share in (0, 1]")
        for name in ("launch_microseconds", "latency_microseconds", "reserved_gigabytes"):
            require(getattr(self, name) >= 0, f"assumed.{name}", getattr(self, name), "0 or more")


@dataclass
class PlanConfig:
    """examples/plan.py."""

    task: str
    gpus: int
    model: ModelConfig
    reward_model: ModelConfig | None
    preferences: dict[str, DimensionConfig]
    ppo: PPOConfig
    rloo: RLOOConfig
    online_dpo: OnlineDPOConfig
    gpu: GpuConfig
    output: str | None
    shown: int
    data: PlanDataConfig
    batch: PlanBatchConfig
    max_new_tokens: int
    search: SearchConfig
    assumed: AssumedConfig

    def __post_init__(self):
        one_of("task", self.task, TASKS)
        positive("", self, "gpus", "shown", "max_new_tokens")
        memory = self.gpu.memory_gigabytes
        _at_most("assumed.reserved_gigabytes", self.assumed.reserved_gigabytes, memory, "gpu.memory_gigabytes")
        for name in ("model", "reward_model"):
            if (model := getattr(self, name)) is not None:
                require(model.init is None, f"{name}.init", model.init, "null: the sizes of conf/model are planned for")
                require(model.vocab_size is not None, f"{name}.vocab_size", None, "the number of rows of the embedding")
        data, longest = self.data, self.model.max_length
        if self.task == "rm":
            require(self.reward_model is None, "reward_model", "set", "null with task=rm: `model` is what is trained")
            _at_most("data.tokens_per_row", data.tokens_per_row, longest, "model.max_length")
            return
        room = longest - self.max_new_tokens
        _at_most("max_new_tokens", self.max_new_tokens, longest - 1, "model.max_length - 1")
        _at_most("data.prompt_tokens", data.prompt_tokens, room, "model.max_length - max_new_tokens")
        _at_most("data.answer_tokens", data.answer_tokens, self.max_new_tokens, "max_new_tokens")
        trained, size = self.trained_answers, self.mini_size
        require(trained % size == 0, "batch.mini_size", size, f"a divisor of {trained}, the answers a step trains on")

    @property
    def algorithm(self) -> PPOConfig | RLOOConfig | OnlineDPOConfig:
        """The settings of the task's algorithm (policy training)."""
        return getattr(self, self.task)

    @property
    def answers(self) -> int:
        """Answers sampled per step, over all ranks."""
        return self.batch.prompts * self.algorithm.samples

    @property
    def trained_answers(self) -> int:
        """Answers that a step trains on, over all ranks: all, or a unit of Online DPO per prompt."""
        return trained_answers(self.batch.prompts, self.algorithm)

    @property
    def mini_size(self) -> int:
        """Answers per update, over all ranks."""
        return self.batch.mini_size or self.trained_answers


def _at_most(key: str, got: float, limit: float, name: str) -> None:
    require(got <= limit, key, got, f"at most {name} = {limit}")
