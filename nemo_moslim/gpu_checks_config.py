"""Typed configuration of examples/gpu_checks.py; see config.py."""

from dataclasses import dataclass

from nemo_moslim.checks import one_of, positive, require
from nemo_moslim.config import FP8_RECIPES, DimensionConfig, OptimizerConfig, ParallelConfig


@dataclass
class ShapeConfig:
    """Sizes of the measured stack, under megatron-core's names."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int


@dataclass
class TrainingMeasureConfig:
    """Reward-model training; layers=None takes as many as fit into the memory."""

    layers: int | None
    sequence_length: int
    micro_size: int
    micro_batches: int
    packed_rows: int
    fp8_recipes: list[str]

    def __post_init__(self):
        positive("training.", self, "sequence_length", "micro_size", "micro_batches", "packed_rows")
        rows, length = self.packed_rows, self.sequence_length
        require(length % rows == 0, "training.packed_rows", rows, f"a divisor of training.sequence_length={length}")
        for recipe in self.fp8_recipes:
            one_of("training.fp8_recipes", recipe, FP8_RECIPES)


@dataclass
class LogprobMeasureConfig:
    """Log-probabilities of answers."""

    prompt_length: int
    answer_length: int
    micro_size: int
    micro_batches: int
    chunk: int

    def __post_init__(self):
        positive("logprobs.", self, "prompt_length", "answer_length", "micro_size", "micro_batches", "chunk")


@dataclass
class GenerationMeasureConfig:
    """Sampling of answers, none of which ends before max_new_tokens."""

    prompts: int
    samples: int
    prompt_length: int
    max_new_tokens: int
    batch_size: int

    def __post_init__(self):
        positive("generation.", self, "prompts", "samples", "prompt_length", "max_new_tokens", "batch_size")


@dataclass
class GPUChecksConfig:
    """examples/gpu_checks.py."""

    output: str
    tests: bool
    measure: bool
    shape: ShapeConfig
    preferences: dict[str, DimensionConfig]
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    training: TrainingMeasureConfig
    logprobs: LogprobMeasureConfig
    generation: GenerationMeasureConfig
    warmup: int
    repeats: int
    seed: int

    def __post_init__(self):
        positive("", self, "warmup", "repeats")
