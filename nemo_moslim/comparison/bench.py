"""What the methods share: data, tokenizer, SFT model, reward models, and the trainings that several of them use.

Every method of this class asks for a stage and returns where its result will be; asked for twice, it runs once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_moslim.cli import config_dir
from nemo_moslim.comparison.study import Study
from nemo_moslim.preferences import PreferenceSchema

RIVALS_DATATYPE = 4  # the levels that the compared methods' data and all judging have


def schema_of(datatype: int) -> PreferenceSchema:
    """The paper's DataType 1 to 4, from conf/preferences."""
    from omegaconf import OmegaConf

    file = config_dir() / "preferences" / f"datatype{datatype}.yaml"
    return PreferenceSchema.from_dict(OmegaConf.to_container(OmegaConf.load(file)))


@dataclass(frozen=True)
class Point:
    """A policy, and how its prompts ask: one operating point of a method."""

    method: str
    seed: int
    policy: Path | None  # of one run, or
    mixture: dict[str, float] = field(default_factory=dict)  # runs and their shares
    prefix: str = "none"  # none | levels (tags) | scores (RiC's)
    schema: dict[str, Any] | None = None  # prefix=levels: of the tags, `PreferenceSchema.to_dict()`
    weights: dict[str, float] | None = None  # dimension -> weight; None: the levels that the test prompts ask for
    offline: Path | None = None  # prefix=scores: the folder with the scales
    on_grid: bool = True  # one of the weight vectors at which all methods are compared

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the stage that answers."""
        plain = {**self.__dict__, "policy": None if self.policy is None else str(self.policy)}
        return {**plain, "offline": None if self.offline is None else str(self.offline)}


class Bench:
    """Shared stages of a study, in the sizes of `config` (conf/compare.yaml)."""

    def __init__(self, study: Study, config: Any):
        self.study, self.config, self.budget = study, config, config.budget
        self.schema = schema_of(RIVALS_DATATYPE)
        self.is_world = config.data == "world"
        self.grid: list[dict[str, float]] = config.budget.weights
        self.first_size = next(iter(config.sizes))

    # data

    def _prepare(self, name: str, *settings: str) -> Path:
        return self.study.stage(name, "data", "prepare_data.py", *settings, output="output")

    def _source(self, task: str, files: list[str], settings: list[str]) -> tuple[str, ...]:
        if self.is_world:
            return (f"task={task}", "source=world", "seed=1", *settings)
        inputs = listed(f"{self.config.data}/{file}" for file in files)
        return (f"task={task}", f"input={inputs}", "seed=1", "on_bad_row=quarantine", *settings)

    @cached_property
    def sft_data(self) -> Path:
        """Instructions and answers without tags."""
        return self._prepare("sft-data", *self._source("sft", self.config.files.sft, self.budget.sft_data))

    @cached_property
    def tokenizer(self) -> Path:
        """Trained on the SFT data."""
        size = f"vocab_size={self.budget.vocab_size}"
        return self._prepare("tokenizer", "task=tokenizer", f"input={self.sft_data}/train.jsonl", size)

    def ratings(self, datatype: int = RIVALS_DATATYPE) -> Path:
        """Rated answers with the levels of a DataType."""
        source = self._source("ratings", self.config.files.ratings, self.budget.ratings)
        return self._prepare(f"ratings-datatype{datatype}", *source, f"preferences=datatype{datatype}")

    def prompts(self, datatype: int = RIVALS_DATATYPE) -> Path:
        """Training prompts with random levels of a DataType; the same prompts for every DataType."""
        source = self._source("prompts", self.config.files.prompts, self.budget.prompts)
        extra = () if self.is_world else (f"exclude={self.sft_data}/train.jsonl",)
        return self._prepare(f"prompts-datatype{datatype}", *source, *extra, f"preferences=datatype{datatype}")

    @cached_property
    def test_prompts(self) -> Path:
        """Prompts that all policies are tested on, asked for random levels."""
        if self.is_world:
            return self.prompts() / "test.jsonl"
        source = self._source("prompts", self.config.files.test_prompts, self.budget.prompts)
        return self._prepare("test-prompts", *source, "validation=0") / "train.jsonl"

    @cached_property
    def tagged_answers(self) -> Path:
        """The rated answers as SFT rows whose prompts carry exact tags."""
        source = self._source("cpsft", self.config.files.ratings, self.budget.ratings)
        return self._prepare("tagged-answers", *source, f"preferences=datatype{RIVALS_DATATYPE}")

    def scored_answers(self, dimensions: Iterable[str]) -> Path:
        """The rated answers with the scores of these dimensions' reward models."""
        names = list(dimensions)
        return self.score("-".join(["scored-answers", *names]), self.ratings(), "", names)

    # models

    def train(self, name: str, kind: str, script: str, *settings: str) -> Path:
        """A training on all ranks of the study."""
        return self.study.stage(name, kind, script, *settings, ranks=self.study.ranks)

    def language_model(self, size: str = "") -> Path:
        """The SFT model of a size; the first size's is every policy's start. On the world it begins with the quiz.

        A base model (model.init=…) keeps its own tokenizer.
        """
        size = size or self.first_size
        start = list(self.config.sizes[size])
        has_tokenizer = any(setting.startswith("model.init=") for setting in start)
        tokenizer = () if has_tokenizer else (f"tokenizer={self.tokenizer}",)
        if self.is_world:
            quiz = self._prepare("quiz-data", *self._source("sft", [], self.budget.quiz_data))
            learnt = self.train(f"quiz-{size}", "language model", "train_sft.py", f"data={quiz}", *tokenizer, *start,
                                *self.budget.quiz)  # fmt: skip
            start = [f"model.init={learnt}"]
        return self.train(f"sft-{size}", "language model", "train_sft.py", f"data={self.sft_data}", *tokenizer, *start,
                          *self.budget.sft)  # fmt: skip

    def reward_model(self, datatype: int = RIVALS_DATATYPE, size: str = "") -> Path:
        """MOSLIM's: all dimensions in one model."""
        size = size or self.first_size
        loss = ("loss=joint",) if datatype == 1 else ()  # heads with one level
        return self.train(
            f"reward-{size}-datatype{datatype}", "reward model", "train_rm.py",
            f"model.init={self.language_model(size)}", f"data={self.ratings(datatype)}",
            f"preferences=datatype{datatype}", *loss, *self.budget.reward,
        )  # fmt: skip

    def single_reward_model(self, dimension: str) -> Path:
        """The rivals': one model per dimension, each trained as long as MOSLIM's one."""
        return self.train(
            f"reward-{dimension}", "reward model", "train_rm.py", f"model.init={self.language_model()}",
            f"data={self.ratings()}", f"preferences=datatype{RIVALS_DATATYPE}", f"dimensions=[{dimension}]",
            *self.budget.reward,
        )  # fmt: skip

    def online_policy(self, name: str, seed: int, prompts: Path, rewards: list[Path], *settings: str) -> Path:
        """A policy trained in the RL loop from the SFT model."""
        return self.train(
            f"{name}-seed{seed}", "policy", "train_policy.py", f"policy={self.language_model()}", f"data={prompts}",
            f"reward={listed(rewards)}", *self.budget.policy, *settings, f"trainer.seed={seed}",
        )  # fmt: skip

    def algorithm(self, name: str) -> tuple[str, ...]:
        """Settings of an online algorithm."""
        return (f"algorithm={name}", *self.budget.algorithms.get(name, []))

    def tagged_policy(self, seed: int, datatype: int, size: str, algorithm: str) -> Path:
        """MOSLIM's one policy; its tags are the DataType's, and so are its reward model's levels."""
        algorithm, size = algorithm or self.config.algorithms[0], size or self.first_size
        name = full_name(algorithm, size, datatype)  # the same whichever size and algorithm are the first
        chosen = (*self.algorithm(algorithm), *self.budget.moslim.get(algorithm, []))
        return self.online_policy(name, seed, self.prompts(datatype), [self.reward_model(datatype, size)], *chosen)

    def weighted_policy(self, name: str, weights: Mapping[str, float], seed: int, objective: str) -> Path:
        """A policy for one weight vector, one of several; only the reward models that count are asked.

        The policies of all weight vectors together train for as many steps as MOSLIM's one with this algorithm.
        """
        counted = {dimension: weight for dimension, weight in weights.items() if weight > 0}
        rewards = [self.single_reward_model(dimension) for dimension in counted]
        algorithm = self.algorithm(self.config.algorithms[0])
        steps = max(steps_of([*self.budget.policy, *algorithm]) // len(self.grid), 1)
        chosen = (f"objective={objective}", f"objective.weights={mapped(counted)}", *algorithm,
                  f"trainer.max_steps={steps}", *self.budget.weighted.get(objective, []))  # fmt: skip
        return self.online_policy(f"{name}-{short(weights)}", seed, self.prompts(), rewards, *chosen)

    def offline_policy(self, name: str, script: str, init: Path, data: Path, seed: int, *settings: str) -> Path:
        """A policy trained on fixed data from another one."""
        where = (f"model.init={init}", f"data={data}")
        return self.train(f"{name}-seed{seed}", "policy", script, *where, *settings, f"trainer.seed={seed}")

    def cpsft(self, seed: int) -> Path:
        """The SFT model, fine-tuned on answers whose prompts carry their tags."""
        return self.offline_policy("cpsft", "train_sft.py", self.language_model(), self.tagged_answers, seed,
                                   *self.budget.cpsft)  # fmt: skip

    def baseline_data(self, name: str, task: str, source: Path | str, *settings: str) -> Path:
        """Data of one method."""
        return self.study.stage(name, "data", "prepare_baseline.py", f"task={task}", f"input={source}", *settings,
                                output="output")  # fmt: skip

    def score(self, name: str, answers: Path, file: str, dimensions: Iterable[str]) -> Path:
        """Answers with the scores of the reward models of single dimensions."""
        models = listed(self.single_reward_model(name) for name in dimensions)
        return self.study.stage(
            name, "sampling and scoring", "evaluate.py", "task=score", f"runs={models}", f"input={answers}",
            *self.budget.score, output="output", file=file, ranks=self.study.ranks,
        )  # fmt: skip

    def generate(self, name: str, policy: Path, questions: Path, seed: int) -> Path:
        """A policy's answers to the rows of a file."""
        return self.study.stage(
            name, "sampling and scoring", "generate.py", f"policy={policy}", f"input={questions}", f"seed={seed}",
            *self.budget.generate, output="output", file="answers.jsonl", ranks=self.study.ranks,
        )  # fmt: skip

    @cached_property
    def judge(self) -> Path | None:
        """Where there are no exact graders: a reward model with a seed of its own, which no method trains with."""
        if self.is_world:
            return None
        return self.train(
            "judge", "evaluation", "train_rm.py", f"model.init={self.language_model()}", f"data={self.ratings()}",
            f"preferences=datatype{RIVALS_DATATYPE}", *self.budget.reward, "trainer.seed=1001",
        )  # fmt: skip


def full_name(algorithm: str, size: str, datatype: int) -> str:
    """One of several MOSLIMs."""
    return f"moslim-{algorithm}-{size}-datatype{datatype}"


def listed(paths: Iterable[Path | str]) -> str:
    """Paths as a list that Hydra reads, whatever characters are in them."""
    quoted = (str(path).replace("\\", "\\\\").replace("'", "\\'") for path in paths)
    return "[" + ",".join(f"'{path}'" for path in quoted) + "]"


def steps_of(settings: Iterable[str]) -> int:
    """The steps that a training's settings give.

    Raises:
        ValueError: they give none.
    """
    found = [setting.partition("=")[2] for setting in settings if setting.startswith("trainer.max_steps=")]
    if not found:
        raise ValueError("budget.policy: no trainer.max_steps there or in budget.algorithms of the first algorithm")
    return int(found[-1])


def mapped(weights: Mapping[str, float]) -> str:
    """A weight vector as a mapping that Hydra reads."""
    return "{" + ",".join(f"{name}:{weight}" for name, weight in weights.items()) + "}"


def short(weights: Mapping[str, float]) -> str:
    """A weight vector for a folder's name: helpfulness0.5-honesty0.5."""
    return "-".join(f"{name}{weight:g}" for name, weight in weights.items() if weight)
