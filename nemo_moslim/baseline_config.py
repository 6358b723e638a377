"""Typed configuration of what only the compared methods need; see config.py."""

from dataclasses import dataclass
from typing import Any

from nemo_moslim.checks import one_of, positive, require
from nemo_moslim.config import DimensionConfig, ParallelConfig, SupervisedConfig


@dataclass
class MergeConfig:
    """examples/merge.py."""

    runs: list[str]
    weights: list[float]
    output: str
    parallel: ParallelConfig
    precision: str
    cpu_threads: int | None

    def __post_init__(self):
        one_of("precision", self.precision, ("fp32", "bf16"))


@dataclass
class PairTrainingConfig(SupervisedConfig):
    """examples/train_dpo.py."""

    loss: str
    beta: float
    weights: dict[str, float] | None
    margin_scale: float
    logprob_chunk: int

    def __post_init__(self):
        super().__post_init__()
        one_of("loss", self.loss, ("dpo", "modpo"))
        positive("", self, "beta", "margin_scale", "logprob_chunk")
        require(self.model.init, "model.init", self.model.init, "the policy to start from: model.init=RUN|HF_DIR")
        virtual = self.parallel.virtual_pipeline
        require(not virtual, "parallel.virtual_pipeline", virtual, "null: pairs are not trained with it")
        context = self.parallel.context
        require(context == 1, "parallel.context", context, "1: pairs are not split along the sequence")
        require(not self.batch.packing, "batch.packing", True, "false: the answers of a pair are not packed")
        expected = "weights for loss=modpo and null for loss=dpo"
        require((self.weights is not None) == (self.loss == "modpo"), "weights", self.weights, expected)
        if self.weights is not None:
            values = list(self.weights.values())
            require(values and min(values) >= 0, "weights", self.weights, "values of 0 or above")


BASELINE_TASKS = ("cdpo_pairs", "modpo_pairs", "ric_offline", "ric_prompts", "ric_online")


@dataclass
class PrepareBaselineConfig:
    """examples/prepare_baseline.py. `input` becomes a list, also where it names a single place."""

    task: str
    input: Any
    output: str
    seed: int
    preferences: dict[str, DimensionConfig]
    pairs_per_prompt: int
    dimension: str | None
    margins: list[str] | None
    offline: str | None
    prompts: int
    quantile: float
    offline_rows: int

    def __post_init__(self):
        one_of("task", self.task, BASELINE_TASKS)
        self.input = self.input if isinstance(self.input, list) else [self.input]
        texts = self.input and all(isinstance(place, str) for place in self.input)
        require(texts, "input", self.input, "a folder; for task=ric_online [FILE,…]")
        require(len(self.input) == 1 or self.task == "ric_online", "input", self.input, "one folder")
        if self.task == "modpo_pairs":
            one_of("dimension", self.dimension, tuple(self.preferences))
            for name in self.margins or ():
                one_of("margins", name, tuple(other for other in self.preferences if other != self.dimension))
        if self.task in ("ric_prompts", "ric_online"):
            require(self.offline, "offline", self.offline, "the folder that task=ric_offline wrote")
        positive("", self, "pairs_per_prompt", "prompts")
        require(0 <= self.quantile < 1, "quantile", self.quantile, "a share in [0, 1)")
        require(self.offline_rows >= 0, "offline_rows", self.offline_rows, "a number of rows, 0 or more")
