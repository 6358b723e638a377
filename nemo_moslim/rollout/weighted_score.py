"""A score per dimension, from one reward model or from one per objective, and their weighted sum (MORLHF, GDPO).

Shapes: R rows, N dimensions.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nemo_moslim.config import ParallelConfig
from nemo_moslim.data.chat import Prompt
from nemo_moslim.functional.scalarisation import expected_levels, weighted_sum
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalRewardModel
from nemo_moslim.rollout.scorer import Scores, most_likely_levels


class WeightedScorer:
    """R = sum_i w_i r_i over the dimensions of all its reward models; what prompts ask for does not matter."""

    def __init__(self, models: Sequence[LocalRewardModel], weights: Mapping[str, float] | None):
        """
        Args:
            models: each dimension in one of them, with two levels or more.
            weights: see `weight_vector`.

        Raises:
            ValueError: a dimension in two models or with one level, a weight for a dimension that no model has.
        """
        self.models = list(models)
        dimensions = [dimension for model in models for dimension in model.schema.dimensions]
        self.schema = joined_schema(dimensions)
        self.weights = weight_vector(weights, self.schema.names)

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Expected levels fp32 [R, N] in [0, 1], most likely levels int64 [R, N], probabilities fp32 [R, C], and rows
        that lost text; on the host of every rank.

        Every rank passes all rows.
        """
        return self._joined([model.start(prompts, responses) for model in self.models])

    def start(
        self, prompts: Sequence[Prompt], responses: Sequence[str], preferences: Sequence[dict[str, int]]
    ) -> Callable[[], Scores]:
        """See `Scorer`."""
        started = [model.start(prompts, responses) for model in self.models]

        def finish() -> Scores:
            scores, obtained, probabilities, cut = self._joined(started)
            rewards, parts = weighted_sum(scores, self.weights)
            return Scores(rewards, parts, obtained, probabilities, cut)

        return finish

    def _joined(self, started: Sequence[Callable[[], tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor, Tensor, int]:
        scores, obtained, probabilities, shortened = [], [], [], []
        for model, found in zip(self.models, started, strict=True):
            levels = [dimension.levels for dimension in model.schema.dimensions]
            p, too_long = found()
            shortened.append(too_long)
            scores.append(expected_levels(p, levels))
            obtained.append(most_likely_levels(p, levels))
            probabilities.append(p)
        cut = int(torch.stack(shortened).any(0).sum())
        return torch.cat(scores, -1), torch.cat(obtained, -1), torch.cat(probabilities, -1), cut


def weight_vector(weights: Mapping[str, float] | None, names: Sequence[str]) -> Tensor:
    """Weights in the order of the dimensions' names, fp32 [N]; a dimension without one counts 0.

    Args:
        weights: dimension -> weight. None: all alike, 1 / number of dimensions.

    Raises:
        ValueError: a weight for a dimension that is not there.
    """
    if weights is None:
        return torch.full((len(names),), 1.0 / len(names))
    for name in weights:
        if name not in names:
            raise ValueError(
                f"objective.weights: {name!r} is no dimension of the reward models; they have {', '.join(names)}"
            )
    return torch.tensor([float(weights.get(name, 0.0)) for name in names])


def joined_schema(dimensions: Sequence) -> PreferenceSchema:
    """The schema of several reward models together.

    Raises:
        ValueError: two models share a dimension, or one has a single level, whose expected value says nothing.
    """
    names = [dimension.name for dimension in dimensions]
    shared = sorted({name for name in names if names.count(name) > 1})
    if shared:
        raise ValueError(f"reward: {', '.join(shared)} is in more than one of the reward models; give each once")
    single = [dimension.name for dimension in dimensions if dimension.levels < 2]
    if single:
        raise ValueError(
            f"reward: {', '.join(single)} has one level, so there is no score between its lowest and highest; "
            "give a reward model with two or more"
        )
    return PreferenceSchema(tuple(dimensions))


def open_weighted_scorer(
    paths: Sequence[str],
    weights: Mapping[str, float] | None,
    parallel: ParallelConfig,
    precision: str,
    micro_size: int,
    offload: bool,
) -> WeightedScorer:
    """Reward models from runs or Hugging Face folders. Raises as `open_reward_model` and `WeightedScorer`."""
    models = [LocalRewardModel(*open_reward_model(path, parallel, precision), micro_size, offload) for path in paths]
    return WeightedScorer(models, weights)
