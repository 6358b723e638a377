"""What a rollout needs of a reward model, wherever that one is.

Shapes: R rows, N heads (preference dimensions), C classes (the sum of all heads' levels).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nemo_moslim.data.chat import Prompt
from nemo_moslim.preferences import PreferenceSchema


class Scores(NamedTuple):
    """What a reward model makes of R answers, on the host of every rank."""

    rewards: Tensor  # fp32 [R]: Eq. 11; 0 for a prompt that asks for nothing
    parts: Tensor  # fp32 [R, N]: what each dimension adds
    obtained: Tensor  # int64 [R, N]: the most likely level of each head, 1-based
    probabilities: Tensor  # fp32 [R, C]: of every level, as the model's loss normalises them
    cut: int  # rows over the reward model's length, which lost text on the left


class Scorer(Protocol):
    """What the rollout needs of a reward model; one in another process can stand behind it."""

    schema: PreferenceSchema

    def start(
        self, prompts: Sequence[Prompt], responses: Sequence[str], preferences: Sequence[dict[str, int]]
    ) -> Callable[[], Scores]:
        """Have answers scored; what is returned gives their scores, and waits for those of a service.

        Prompts carry no preference tags. Every rank passes all rows, and calls what is returned, which raises what
        scoring them raises.
        """


def most_likely_levels(p: Tensor, levels: Sequence[int]) -> Tensor:
    """The 1-based level that each head finds most likely: [R, C] to int64 [R, N]."""
    return torch.stack([head.argmax(-1) + 1 for head in p.split(list(levels), -1)], -1)


def asked_levels(preferences: Sequence[dict[str, int]], schema: PreferenceSchema) -> Tensor:
    """int64 [R, N]: 1-based levels in the schema's order, 0 where a dimension is not asked for."""
    return torch.tensor([[row.get(name, 0) for name in schema.names] for row in preferences]).view(
        -1, len(schema.names)
    )
