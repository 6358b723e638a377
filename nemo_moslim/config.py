"""Typed configuration. The YAML files under conf/ are the only source of defaults; these classes give types and checks.

`parse` turns a composed Hydra configuration into one of these classes and refuses unknown keys, wrong types and values
out of range, each with the full name of the key.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from nemo_moslim.checks import divisors, one_of, positive, require, use
from nemo_moslim.model_config import ModelConfig

ConfigT = TypeVar("ConfigT")

PRECISIONS = ("fp32", "bf16", "fp8")
FP8_RECIPES = ("delayed", "tensorwise", "blockwise")
MOE_DISPATCHERS = ("alltoall", "allgather")
SCHEDULES = ("constant", "linear", "cosine")
LOSSES = ("per_head", "joint", "aligned")
LONG_ROWS = ("raise", "drop", "cut_prompt", "cut_response")
LONG_PROMPTS = ("raise", "drop", "cut_left")


@dataclass
class ParallelConfig:
    """How the model is split over the ranks; data parallelism takes what is left of the world size."""

    tensor: int
    pipeline: int
    virtual_pipeline: int | None
    context: int
    expert: int
    expert_tensor: int | None
    sequence: bool
    tensor_overlap: bool
    moe_dispatcher: str

    def __post_init__(self):
        positive("parallel.", self, "tensor", "pipeline", "context", "expert")
        require(self.expert_tensor is None or self.expert_tensor > 0, "parallel.expert_tensor", self.expert_tensor,
                "null (as parallel.tensor), or 1 or more")  # fmt: skip
        chunks = self.virtual_pipeline
        require(chunks is None or chunks > 1, "parallel.virtual_pipeline", chunks, "null, or 2 or more parts per stage")
        one_of("parallel.moe_dispatcher", self.moe_dispatcher, MOE_DISPATCHERS)
        if self.sequence:
            require(
                self.tensor > 1, "parallel.sequence", True, "parallel.tensor > 1 with it, or parallel.sequence=false"
            )

    @property
    def expert_slices(self) -> int:
        """Ranks that one expert is split over."""
        return self.tensor if self.expert_tensor is None else self.expert_tensor


@dataclass
class AdamWConfig:
    """AdamW without its learning rate; distributed=true shards its state over the data-parallel ranks.

    `overlap` hides gradient reduction and parameter gather behind the computation; None: where there is a GPU.
    """

    KEY: ClassVar[str] = "optimizer."  # where the settings stand, for messages

    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip_grad: float
    distributed: bool
    overlap: bool | None

    def __post_init__(self):
        positive(self.KEY, self, "eps", "clip_grad")
        require(self.weight_decay >= 0, f"{self.KEY}weight_decay", self.weight_decay, "0 or more")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{self.KEY}{name}", value, "a value in [0, 1)")


@dataclass
class OptimizerConfig(AdamWConfig):
    """AdamW and its learning-rate schedule."""

    lr: float
    min_lr: float
    schedule: str
    warmup_steps: int

    def __post_init__(self):
        super().__post_init__()
        positive("optimizer.", self, "lr")
        one_of("optimizer.schedule", self.schedule, SCHEDULES)
        require(0 <= self.min_lr <= self.lr, "optimizer.min_lr", self.min_lr, f"a value in [0, optimizer.lr={self.lr}]")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "a number of steps, 0 or more")


@dataclass
class BatchConfig:
    """Rows per step and per micro-batch, and how rows are brought to similar lengths (data/length_batches.py).

    With `packing` the rows of these sizes are packs of up to model.max_length tokens (data/packing.py).
    """

    global_size: int
    micro_size: int
    group_size: int | None
    bucket_batches: int
    packing: bool
    long_rows: str
    fixed_length: bool

    def __post_init__(self):
        positive("batch.", self, "global_size", "micro_size", "bucket_batches")
        one_of("batch.long_rows", self.long_rows, LONG_ROWS)
        if self.packing and self.fixed_length:
            raise ValueError(
                "batch.fixed_length=true pads rows that batch.packing=true packs: use batch.packing=false, or "
                "batch.fixed_length=false"
            )
        if self.group_size is not None:
            sizes = [size for size in divisors(self.global_size) if size % self.micro_size == 0]
            expected = (
                f"a multiple of batch.micro_size={self.micro_size} that divides batch.global_size={self.global_size}"
            )
            remedy = use("batch.group_size", self.group_size, sizes, "null")
            require(self.group_size in sizes, "batch.group_size", self.group_size, f"{expected}: {remedy}")


@dataclass
class TrainerConfig:
    """Length of the run, validation, checkpoints, logging."""

    max_steps: int
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int
    monitor: str
    early_stop_patience: int | None
    log_every: int
    seed: int
    tensorboard: bool
    wandb_project: str | None
    cpu_threads: int | None

    def __post_init__(self):
        names = ("max_steps", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every")
        positive("trainer.", self, *names)


@dataclass
class DimensionConfig:
    """One preference dimension; see nemo_moslim/preferences.py."""

    levels: int
    score_range: list[float]
    levels_from: int


@dataclass
class StatisticsConfig:
    """Running average and standard deviation of the heads' probabilities (Eq. 11)."""

    mode: str
    decay: float
    rows: str | None
    std_floor: float

    def __post_init__(self):
        one_of("statistics.mode", self.mode, ("ema", "exact"))
        one_of("statistics.rows", self.rows, (None, "labelled", "all"))
        require(0 < self.decay < 1, "statistics.decay", self.decay, "a value in (0, 1)")
        require(self.std_floor > 0, "statistics.std_floor", self.std_floor, "a value above 0")


@dataclass
class SupervisedConfig:
    """What train_sft, train_rm and train_dpo share."""

    run_dir: str
    data: str
    tokenizer: str | None
    model: ModelConfig
    parallel: ParallelConfig
    precision: str
    fp8_recipe: str
    optimizer: OptimizerConfig
    batch: BatchConfig
    trainer: TrainerConfig

    def __post_init__(self):
        one_of("precision", self.precision, PRECISIONS)
        one_of("fp8_recipe", self.fp8_recipe, FP8_RECIPES)


@dataclass
class SFTConfig(SupervisedConfig):
    """examples/train_sft.py. `loss_on` = answers (the responses and their end) or all (every token)."""

    loss_on: str

    def __post_init__(self):
        super().__post_init__()
        one_of("loss_on", self.loss_on, ("answers", "all"))


@dataclass
class RewardModelTrainingConfig(SupervisedConfig):
    """examples/train_rm.py."""

    preferences: dict[str, DimensionConfig]
    dimensions: list[str] | None
    loss: str
    label_smoothing: float
    class_weights: str
    head_weights: str
    statistics: StatisticsConfig
    average_checkpoints: int | None
    answers_together: int

    def __post_init__(self):
        super().__post_init__()
        positive("", self, "answers_together")
        for key in ("packing", "fixed_length"):
            if self.answers_together > 1 and getattr(self.batch, key):
                raise ValueError(
                    f"answers_together={self.answers_together} has another layout of rows than batch.{key}=true: use "
                    f"answers_together=1, or batch.{key}=false"
                )
        for name in self.dimensions or ():
            one_of("dimensions", name, tuple(self.preferences))
        require(self.dimensions != [], "dimensions", [], "null (all) or a list of some")
        one_of("loss", self.loss, LOSSES)
        for name in ("class_weights", "head_weights"):
            one_of(name, getattr(self, name), ("none", "inverse", "inverse_sqrt"))
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        whole = self.parallel.virtual_pipeline is None and self.parallel.context == 1
        unfit = "with parallel.virtual_pipeline or parallel.context"
        require(self.statistics.mode == "ema" or whole, "statistics.mode", self.statistics.mode, f"ema {unfit}")
        count, kept = self.average_checkpoints, self.trainer.keep_checkpoints
        require(count is None or whole, "average_checkpoints", count, f"null {unfit}")
        fitting = f"null, or from 2 to trainer.keep_checkpoints={kept}"
        require(count is None or 2 <= count <= kept, "average_checkpoints", count, fitting)


@dataclass
class GenerationConfig:
    """How answers are sampled."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop_tokens: list[str]
    batch_size: int

    def __post_init__(self):
        positive("generation.", self, "max_new_tokens", "batch_size")
        require(self.temperature >= 0, "generation.temperature", self.temperature, "0 (most likely token) or more")
        require(0 < self.top_p <= 1, "generation.top_p", self.top_p, "a share in (0, 1]")
        require(self.top_k >= 0, "generation.top_k", self.top_k, "0 (all) or a number of tokens")


def parse(config: DictConfig, schema: type[ConfigT]) -> ConfigT:
    """Check a composed configuration against a class of this file and build it.

    Raises:
        ValueError: an unknown key, a missing value, a wrong type or a value out of range; the message names the key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is not set: give {error.full_key}=VALUE") from None
    except ConfigKeyError as error:
        raise ValueError(f"unknown key {error.full_key!r}: not one of this command's keys (see --help)") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None


def to_plain(config: Any) -> Any:
    """A configuration object as nested plain dicts and lists, for config.yaml and error messages."""
    if is_dataclass(config):
        return {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    return [to_plain(value) for value in config] if isinstance(config, (list, tuple)) else config
