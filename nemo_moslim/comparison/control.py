"""Requested against obtained levels under the resamples of `fronts.draws`: seeds and prompts together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_moslim.comparison.fronts import Draws
from nemo_moslim.evaluation.controllability import spearman_of_counts


class ControlSamples(NamedTuple):
    """Of every sample, sample 0 the estimate; NaN where undefined."""

    spearman: NDArray[np.float64]  # [1 + S, N]
    hit_rate: NDArray[np.float64]  # [1 + S, N]
    all_hit: NDArray[np.float64]  # [1 + S]


def control_samples(
    requested: NDArray[np.int64], obtained: NDArray[np.int64], levels: Sequence[int], drawn: Draws
) -> ControlSamples:
    """Spearman's correlation and exact hits over rows that ask for a dimension; all hits over those that ask at all.

    Args:
        requested: [Q, N] levels from 1, 0 where a row does not ask.
        obtained: [R, Q, N] levels from 1.
        levels: N, how many each dimension has.
        drawn: of R seeds and Q rows.
    """
    spearman, hit_rate = (np.full((len(drawn.seeds), len(levels)), np.nan) for _ in range(2))
    for index, count in enumerate(levels):
        asked = requested[:, index] > 0
        cells = (requested[asked, index] - 1) * count + obtained[:, asked, index] - 1  # [R, rows that ask]
        shares = _weighted(np.eye(count * count)[cells], drawn, asked).reshape(-1, count, count)
        varied = ((shares.sum(1) > 0).sum(1) > 1) & ((shares.sum(2) > 0).sum(1) > 1)
        spearman[varied, index] = spearman_of_counts(shares[varied])
        total, hits = shares.sum((1, 2)), np.trace(shares, axis1=1, axis2=2)
        np.divide(hits, total, out=hit_rate[:, index], where=total > 0)
    tagged = (requested > 0).any(1)
    hit = ((requested == obtained) | (requested == 0)).all(2)[:, tagged]  # [R, rows that ask]
    both = _weighted(np.stack([hit, np.ones_like(hit)], 2), drawn, tagged)
    all_hit = np.divide(both[:, 0], both[:, 1], out=np.full(len(both), np.nan), where=both[:, 1] > 0)
    return ControlSamples(spearman, hit_rate, all_hit)


def _weighted(values: NDArray, drawn: Draws, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums of values [R, rows, C] by the shares of seeds and of these rows: [1 + S, C]."""
    return np.einsum("sr,sq,rqc->sc", drawn.seeds, drawn.prompts[:, rows], values.astype(float), optimize=True)
