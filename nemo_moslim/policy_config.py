"""Typed configuration of policy training; see config.py."""

from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import OmegaConf

from nemo_moslim.checks import divisors, one_of, positive, require, use
from nemo_moslim.config import LONG_PROMPTS, GenerationConfig, OptimizerConfig, ParallelConfig, parse

SERVICES = ("http://", "https://")
CUT_ANSWERS = ("score", "mask")
CRITICS = ("value", "levels", "service")
RECOMPUTE = (None, "selective", "full")
NORMALIZE = ("total", "active")
PAIRS = ("best_worst", "all")
OLD_LOGPROBS = ("trainer", "generator")
KL_ANSWERS_PER_HORIZON = 5  # a step has fewer answers than that many horizons (functional/advantages.py: adapt_kl_coef)


def _null_or_positive(name: str, value: float | None) -> None:
    require(value is None or value > 0, f"algorithm.{name}", value, "null or a number above 0")


@dataclass
class PPOConfig:
    """conf/algorithm/ppo.yaml."""

    unit: ClassVar[int] = 1  # answers of a prompt that share a micro-batch

    name: str
    samples: int
    epochs: int
    kl_coef: float
    kl_target: float | None
    kl_horizon: int
    clip_ratio: float
    value_clip: float | None
    entropy_coef: float
    gamma: float
    gae_lambda: float
    critic: str
    critic_lr: float
    critic_reads_preferences: bool

    def __post_init__(self):
        one_of("algorithm.critic", self.critic, CRITICS)
        positive("algorithm.", self, "samples", "epochs", "clip_ratio", "critic_lr", "kl_horizon")
        for name in ("kl_target", "value_clip"):
            _null_or_positive(name, getattr(self, name))
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, f"algorithm.{name}", getattr(self, name), "a value in [0, 1]")
        for name in ("kl_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, f"algorithm.{name}", getattr(self, name), "0 or more")


@dataclass
class RLOOConfig:
    """conf/algorithm/rloo.yaml."""

    unit: ClassVar[int] = 1

    name: str
    samples: int
    epochs: int
    kl_coef: float
    kl_target: float | None
    kl_horizon: int
    clip_ratio: float
    entropy_coef: float

    def __post_init__(self):
        require(self.samples > 1, "algorithm.samples", self.samples, "2 or more: the others are the baseline")
        positive("algorithm.", self, "epochs", "clip_ratio", "kl_horizon")
        _null_or_positive("kl_target", self.kl_target)
        for name in ("kl_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, f"algorithm.{name}", getattr(self, name), "0 or more")


@dataclass
class OnlineDPOConfig:
    """conf/algorithm/online_dpo.yaml."""

    name: str
    samples: int
    pairs: str
    epochs: int
    beta: float
    kl_target: float | None
    kl_horizon: int
    reward_scale: float | None

    def __post_init__(self):
        require(self.samples > 1, "algorithm.samples", self.samples, "2 or more: a better and a worse answer")
        one_of("algorithm.pairs", self.pairs, PAIRS)
        positive("algorithm.", self, "epochs", "beta", "kl_horizon")
        for name in ("kl_target", "reward_scale"):
            _null_or_positive(name, getattr(self, name))

    @property
    def unit(self) -> int:
        """Answers of a prompt that are learnt from, together in a micro-batch."""
        return 2 if self.pairs == "best_worst" else self.samples


@dataclass
class PreferencesObjective:
    """conf/objective/preferences.yaml."""

    name: str


@dataclass
class WeightedSumObjective:
    """conf/objective/weighted_sum.yaml."""

    name: str
    weights: dict[str, float] | None

    def __post_init__(self):
        values = (self.weights or {"": 1.0}).values()
        require(
            min(values) >= 0 and max(values) > 0,
            "objective.weights",
            self.weights,
            "weights of 0 or above, not all 0, as {helpfulness: 0.5, honesty: 0.5}",
        )


@dataclass
class GDPOObjective(WeightedSumObjective):
    """conf/objective/gdpo.yaml."""

    eps: float

    def __post_init__(self):
        super().__post_init__()
        positive("objective.", self, "eps")


ALGORITHMS = {"ppo": PPOConfig, "rloo": RLOOConfig, "online_dpo": OnlineDPOConfig}
OBJECTIVES = {"preferences": PreferencesObjective, "weighted_sum": WeightedSumObjective, "gdpo": GDPOObjective}


@dataclass
class PolicyBatchConfig:
    """Prompts per step, and how their answers are dealt into updates and forward passes."""

    prompts: int
    mini_size: int | None
    micro_size: int
    score_size: int
    logprob_chunk: int

    def __post_init__(self):
        positive("batch.", self, "prompts", "micro_size", "score_size", "logprob_chunk")
        if self.mini_size is not None:
            positive("batch.", self, "mini_size")


@dataclass
class PolicyTrainerConfig:
    """Length of the run, validation, checkpoints, logging."""

    max_steps: int
    validate_every: int
    validation_prompts: int
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int
    samples_every: int
    samples_shown: int
    seed: int
    tensorboard: bool
    wandb_project: str | None
    cpu_threads: int | None

    def __post_init__(self):
        names = ("max_steps", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every", "samples_every")
        positive("trainer.", self, *names)


def trained_answers(prompts: int, algorithm: PPOConfig | RLOOConfig | OnlineDPOConfig) -> int:
    """Answers that a step of so many prompts trains on: all, or a unit of Online DPO per prompt."""
    return prompts * (algorithm.unit if isinstance(algorithm, OnlineDPOConfig) else algorithm.samples)


def is_service(reward: str) -> bool:
    """Whether `reward` names a service (examples/serve_reward.py) and not a folder."""
    return reward.startswith(SERVICES)


def chosen(group: str, settings: Any, classes: dict[str, type]) -> Any:
    """Settings of a config group as the class that their name stands for; ValueError with the full key."""
    name = settings.get("name") if isinstance(settings, dict) else None
    one_of(group, name, tuple(classes))
    try:
        return parse(OmegaConf.create(settings), classes[name])
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{group}.") else f"{group}: {text}") from None


@dataclass
class PolicyTrainingConfig:
    """examples/train_policy.py. `algorithm` becomes one of ALGORITHMS by its name, `objective` one of OBJECTIVES.

    `reward` becomes a list, also where it names a single model.
    """

    run_dir: str
    policy: str
    reward: Any
    reward_patience: float
    data: str
    parallel: ParallelConfig
    precision: str
    algorithm: Any
    objective: Any
    normalize: str
    old_logprobs: str
    cut_answers: str
    cut_penalty: float
    long_prompts: str
    max_length: int | None
    offload: bool
    recompute: str | None
    generation: GenerationConfig
    optimizer: OptimizerConfig
    batch: PolicyBatchConfig
    trainer: PolicyTrainerConfig

    def __post_init__(self):
        one_of("precision", self.precision, ("fp32", "bf16"))
        one_of("normalize", self.normalize, NORMALIZE)
        one_of("old_logprobs", self.old_logprobs, OLD_LOGPROBS)
        one_of("cut_answers", self.cut_answers, CUT_ANSWERS)
        one_of("long_prompts", self.long_prompts, LONG_PROMPTS)
        one_of("recompute", self.recompute, RECOMPUTE)
        self.algorithm = chosen("algorithm", self.algorithm, ALGORITHMS)
        self.objective = chosen("objective", self.objective, OBJECTIVES)
        self._check_rewards()
        self._check_batches()

    def _check_rewards(self):
        self.reward = self.reward if isinstance(self.reward, list) else [self.reward]
        texts = self.reward and all(isinstance(path, str) for path in self.reward)
        require(texts, "reward", self.reward, "a run directory, a Hugging Face folder or http://HOST:PORT, or a list")
        if self.algorithm.name == "ppo":
            self._check_critic()
        positive("", self, "reward_patience")
        require(
            self.objective.name != "preferences" or len(self.reward) == 1,
            "reward",
            self.reward,
            "one multi-head reward model; several go with objective=weighted_sum|gdpo",
        )
        require(
            self.objective.name != "gdpo" or self.algorithm.samples > 1,
            "algorithm.samples",
            self.algorithm.samples,
            "2 or more with objective=gdpo: answers are compared with the others to their prompt",
        )

    def _check_critic(self):
        require(
            self.algorithm.critic != "levels" or self.objective.name == "preferences",
            "algorithm.critic",
            self.algorithm.critic,
            f"value with objective={self.objective.name}: its rewards are none of Eq. 11",
        )
        of_service, first = self.algorithm.critic == "service", self.reward[0]
        where = (
            "http://HOST:PORT (first) with algorithm.critic=service: that service holds the critic"
            if of_service
            else "a folder (first) with algorithm=ppo: the critic starts from that reward model's backbone; or "
            "algorithm.critic=service with a service that holds the critic too"
        )
        require(is_service(first) == of_service, "reward", first, where)

    def _check_batches(self):
        batch, unit = self.batch, self.algorithm.unit
        if self.algorithm.kl_target is not None:
            answers = batch.prompts * self.algorithm.samples
            least, horizon = answers // KL_ANSWERS_PER_HORIZON + 1, self.algorithm.kl_horizon
            expected = f"{least} or more: a step has {answers} answers, and the KL's weight has to keep its sign"
            require(horizon >= least, "algorithm.kl_horizon", horizon, expected)
        answers = trained_answers(batch.prompts, self.algorithm)
        batch.mini_size = batch.mini_size or answers
        whole = f", in whole units of {unit}, the answers of a prompt that are learnt from together" if unit > 1 else ""
        self._check_divisor("mini_size", answers, f"{answers}, the answers that a step trains on{whole}")
        self._check_divisor("micro_size", batch.mini_size, f"batch.mini_size={batch.mini_size}{whole}")
        require(self.generation.temperature > 0, "generation.temperature", 0, "above 0: training needs samples")

    def _check_divisor(self, name: str, whole: int, of_what: str) -> None:
        size, fitting = getattr(self.batch, name), [d for d in divisors(whole) if d % self.algorithm.unit == 0]
        expected = f"a divisor of {of_what}: {use(f'batch.{name}', size, fitting)}"
        require(size in fitting, f"batch.{name}", size, expected)
