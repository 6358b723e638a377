"""Typed configuration of the commands that use a trained model: evaluate, generate, export."""

from dataclasses import dataclass

from nemo_moslim.checks import one_of, positive, require
from nemo_moslim.config import LONG_PROMPTS, LONG_ROWS, PRECISIONS, DimensionConfig, GenerationConfig, ParallelConfig
from nemo_moslim.judging_config import JUDGES, READINGS, EndpointConfig, RubricConfig, check_rubrics

JUDGED_TASKS = ("benchmarks", "judge_agreement")
TASKS = ("reward", "controllability", "text_baseline", "table1", "grade", "score", "points", "report", *JUDGED_TASKS)


@dataclass
class BenchmarksConfig:
    """Files (or names on the hub) with the questions of task=benchmarks; null: not asked."""

    mt_bench: str | None
    halueval: str | None
    hackaprompt: str | None
    hackaprompt_templates: str | None
    prompt_injection: str | None
    harmful: str | None
    prompts: str | None
    row_tags: bool


@dataclass
class EvaluateConfig:
    """examples/evaluate.py."""

    task: str
    run: str | None
    data: str | None
    output: str | None
    source: str | None
    input: str | None
    runs: list[str]
    train: str | None
    result: str | None
    policy: str | None
    reward: str | None
    judge: str | None
    scripted: str | None
    reward_reads: str
    dimensions: list[str] | None
    asked: dict[str, int] | None
    limit: int | None
    benchmarks: BenchmarksConfig
    endpoint: EndpointConfig
    rubrics: dict[str, RubricConfig]
    points: str | None
    grid_prompts: int
    ric_map: str
    untagged: int
    every_level: int
    generation: GenerationConfig
    long_prompts: str
    seed: int
    bootstrap_samples: int
    preferences: dict[str, DimensionConfig]
    parallel: ParallelConfig
    precision: str
    batch_size: int
    long_rows: str
    plots: bool
    cpu_threads: int | None

    def __post_init__(self):
        one_of("task", self.task, TASKS)
        one_of("judge", self.judge, (None, *JUDGES))
        require(
            self.judge in (None, "world", "reward_model") or self.task in ("controllability", *JUDGED_TASKS),
            "judge", self.judge, f"world or reward_model with task={self.task}",
        )  # fmt: skip
        one_of("reward_reads", self.reward_reads, READINGS)
        check_rubrics(self.rubrics)
        for name in self.dimensions or ():
            one_of("dimensions", name, tuple(self.rubrics))
        require(self.dimensions != [], "dimensions", [], "null or a list of some")
        if self.limit is not None:
            positive("", self, "limit")
        one_of("ric_map", self.ric_map, ("linf", "l2"))
        positive("", self, "grid_prompts", "bootstrap_samples")
        one_of("long_prompts", self.long_prompts, LONG_PROMPTS if self.task == "benchmarks" else ("raise", "cut_left"))
        require(self.untagged >= 0, "untagged", self.untagged, "a number of prompts, 0 or more")
        require(self.every_level >= 0, "every_level", self.every_level, "a number of prompts, 0 or more")
        one_of("precision", self.precision, PRECISIONS[:2])
        one_of("long_rows", self.long_rows, LONG_ROWS)
        positive("", self, "batch_size")


@dataclass
class GenerateConfig:
    """examples/generate.py."""

    policy: str
    prompt: str | None
    compare: str | None
    input: str | None
    output: str | None
    preferences: dict[str, DimensionConfig]
    generation: GenerationConfig
    long_prompts: str
    seed: int
    parallel: ParallelConfig
    precision: str
    cpu_threads: int | None

    def __post_init__(self):
        one_of("precision", self.precision, PRECISIONS[:2])
        one_of("long_prompts", self.long_prompts, ("raise", "cut_left"))
        require(
            self.input is None or self.prompt is None, "prompt", self.prompt, "no prompt beside input=FILE: give one"
        )
        require(
            self.input is None or self.compare is None, "compare", self.compare, "no compare beside input=FILE: its "
            "rows ask for their own levels",
        )  # fmt: skip
        require((self.input is None) == (self.output is None), "output", self.output, "input=FILE and output=FILE both")


@dataclass
class ExportConfig:
    """examples/export_hf.py."""

    run: str
    output: str
    max_shard_gigabytes: float
    dtype: str

    def __post_init__(self):
        positive("", self, "max_shard_gigabytes")
        one_of("dtype", self.dtype, ("float32", "bfloat16"))


@dataclass
class PlaygroundConfig:
    """examples/playground.py."""

    policy: str
    reward: str
    host: str
    port: int
    python: str
    generation: GenerationConfig
    long_prompts: str
    seed: int
    parallel: ParallelConfig
    precision: str
    cpu_threads: int | None

    def __post_init__(self):
        one_of("precision", self.precision, PRECISIONS[:2])
        one_of("long_prompts", self.long_prompts, ("raise", "cut_left"))
        require(0 < self.port < 65536, "port", self.port, "a port, 1 to 65535")
