"""Word dropout (Iyyer et al. 2015): training reads some tokens as padding, so as not to learn rows by heart."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from nemo_moslim.batches import RewardBatch


@dataclass(frozen=True)
class TokenDropout:
    """Which tokens are left out depends on (seed, step, rows) alone: the same in every layout and after a resume."""

    share: float  # chance of each token, in (0, 1)
    pad_id: int
    seed: int

    def __call__(self, batch: RewardBatch, step: int, rows: np.ndarray) -> RewardBatch:
        """The micro-batch of these row indices (-1: filler) with tokens left out, never those that the heads read."""
        source = np.random.default_rng([self.seed, step, *(np.asarray(rows) + 1)])
        left_out = torch.from_numpy(source.random(tuple(batch.tokens.shape)) < self.share)
        left_out[batch.rows, batch.last_index] = False
        return replace(batch, tokens=batch.tokens.masked_fill(left_out, self.pad_id))
