"""The batches that cross files, one class each, with the meaning of every field.

Shapes: B rows, S sequence positions, N heads (preference dimensions), C classes (sum of all heads' levels).
Rows are padded on the right; padding follows the last valid token, so causal attention never reads it.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Common to all batches: moving every tensor to the device of the rank."""

    def to_device(self):
        """The same batch on the accelerator (the CPU stays the CPU under parallel/cpu.py)."""
        moved = {f.name: getattr(self, f.name).cuda(non_blocking=True) for f in fields(self)}
        return type(self)(**moved)

    def __len__(self) -> int:
        return getattr(self, fields(self)[0].name).shape[0]


@dataclass(frozen=True)
class RewardBatch(Batch):
    """Rated answers for the reward model."""

    tokens: Tensor  # int64 [B, S]: chat template with prompt and response, the answer's EOS, then padding
    last_index: Tensor  # int64 [B]: position of the token that ends the answer; the heads read it
    targets: Tensor  # fp32 [B, C]: per labelled head a distribution over its levels, 0 elsewhere
    label_mask: Tensor  # bool [B, N]: heads that this row labels; a row of False fills up a batch and counts nowhere


@dataclass(frozen=True)
class TokenBatch(Batch):
    """Text for the language model (supervised fine-tuning)."""

    tokens: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B, S]: the next token at each position
    loss_mask: Tensor  # fp32 [B, S]: 1 where the label counts (the answers, or all text), 0 on prompts and padding


def position_ids(tokens: Tensor) -> Tensor:
    """Positions 0..S-1 for every row, int64 [B, S]."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
