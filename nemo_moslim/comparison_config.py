"""Typed configuration of the comparison of methods; see config.py."""

from dataclasses import dataclass
from typing import Any

from nemo_moslim.checks import one_of, positive, require

ALGORITHMS = ("ppo", "rloo", "online_dpo")
WEIGHTED_OBJECTIVES = ("weighted_sum", "gdpo")
COMPARED_METHODS = ("moslim", "morlhf", "rewarded_soups", "gdpo", "modpo", "cpsft", "cdpo", "ric")

WHY_NOT = {
    "online_dpo": "conf/budget ties policies for one weight vector to the start by algorithm.kl_coef",
    "ppo": "GDPO compares the answers to a prompt, of which PPO has one",
}


@dataclass
class ComparisonFiles:
    """Where data=DIR keeps what, relative to it."""

    sft: list[str]
    ratings: list[str]
    prompts: list[str]
    test_prompts: list[str]


@dataclass
class BudgetConfig:
    """conf/budget: how much data there is and how long everything trains; lists are settings of entry points."""

    weights: list[Any]  # of dimension -> weight; becomes list[dict[str, float]]
    vocab_size: int
    quiz_data: list[str]
    sft_data: list[str]
    ratings: list[str]
    prompts: list[str]
    quiz: list[str]
    sft: list[str]
    reward: list[str]
    policy: list[str]
    algorithms: dict[str, list[str]]
    moslim: dict[str, list[str]]
    weighted: dict[str, list[str]]
    cpsft: list[str]
    pairs: list[str]
    dpo: list[str]
    cdpo: list[str]
    modpo: list[str]
    ric_offline: list[str]
    ric_rounds: int
    ric_prompts: list[str]
    ric_best: list[str]
    ric_online: list[str]
    generate: list[str]
    score: list[str]
    evaluate: list[str]
    grid_prompts: int

    def __post_init__(self):
        positive("budget.", self, "vocab_size", "grid_prompts")
        require(self.ric_rounds >= 0, "budget.ric_rounds", self.ric_rounds, "a number of rounds, 0 or more")
        for weights in self.weights:
            values = list(weights.values()) if isinstance(weights, dict) else ["none"]
            numbers = values and all(isinstance(value, int | float) and value >= 0 for value in values)
            usable = numbers and abs(sum(values) - 1) < 1e-6
            require(usable, "budget.weights", weights, "{dimension: weight, …} of 0 or above that sum to 1")
        for group, names in (("algorithms", ALGORITHMS), ("moslim", ALGORITHMS), ("weighted", WEIGHTED_OBJECTIVES)):
            for name in getattr(self, group):
                one_of(f"budget.{group}", name, names)
        self.weights = [{name: float(weight) for name, weight in weights.items()} for weights in self.weights]
        distinct = {tuple(sorted(weights.items())) for weights in self.weights}
        require(len(distinct) == len(self.weights) > 0, "budget.weights", self.weights, "different weight vectors")


@dataclass
class CompareConfig:
    """examples/compare.py."""

    methods: list[str]
    data: str
    output: str
    seeds: int
    datatypes: list[int]
    sizes: dict[str, list[str]]
    algorithms: list[str]
    files: ComparisonFiles
    ric_map: str
    ranks: int
    bootstrap_samples: int
    budget: BudgetConfig

    def __post_init__(self):
        for name in self.methods:
            one_of("methods", name, COMPARED_METHODS)
        for name in self.algorithms:
            one_of("algorithms", name, ALGORITHMS)
        for number in self.datatypes:
            one_of("datatypes", number, (1, 2, 3, 4))
        for name in ("methods", "algorithms", "datatypes", "sizes"):
            require(getattr(self, name), name, getattr(self, name), "at least one")
        first = self.algorithms[0]
        for name, without in (("online_dpo", ("morlhf", "rewarded_soups", "gdpo")), ("ppo", ("gdpo",))):
            cannot = [method for method in without if method in self.methods]
            require(
                first != name or not cannot,
                "algorithms",
                self.algorithms,
                f"another one first with methods={cannot}, which train with the first: {WHY_NOT[name]}",
            )
        one_of("ric_map", self.ric_map, ("linf", "l2"))
        positive("", self, "seeds", "ranks", "bootstrap_samples")
