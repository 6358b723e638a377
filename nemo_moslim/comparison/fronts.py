"""What the methods reach: mean levels at every operating point, fronts and hypervolumes, with bootstrap intervals.

numpy and moocore only. Shapes: R seeds, P operating points, Q rows of prompts, N dimensions, S bootstrap samples.
Levels are scaled from 0 (a dimension's lowest level) to 1 (its highest); all dimensions are to be high.

Resamples draw seeds and, independently, prompts with replacement; rows with the same text are one prompt. The same
draws serve every method, so that a difference of two methods is that of the same prompts and seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REFERENCE = 0.0  # the hypervolume's reference point: the lowest level of every dimension


class Draws(NamedTuple):
    """How often each seed and each row is drawn, as shares."""

    seeds: NDArray[np.float64]  # [1 + S, R]
    prompts: NDArray[np.float64]  # [1 + S, Q]


def draws(seeds: int, prompts: Sequence[str], samples: int, seed: int) -> Draws:
    """Resamples of `seeds` training seeds and of the rows' prompts; the first sample is everything once.

    Args:
        prompts: Q texts, one a row; rows with the same text are drawn together.
    """
    rng = np.random.default_rng(seed)
    texts, group = np.unique(np.asarray(prompts), return_inverse=True)
    shares = []
    for count, members in ((seeds, np.arange(seeds)), (len(texts), group.ravel())):
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=samples)
        counts = np.concatenate([np.ones((1, count)), drawn])[:, members]
        shares.append(counts / counts.sum(1, keepdims=True))
    return Draws(*shares)


def resampled_means(levels: NDArray[np.float64], drawn: Draws) -> NDArray[np.float64]:
    """Mean scaled levels of each point in each sample: [R, P, Q, N] to [1 + S, P, N]; sample 0 is the estimate."""
    per_seed = np.einsum("sq,rpqn->srpn", drawn.prompts, levels)
    return np.einsum("sr,srpn->spn", drawn.seeds, per_seed)


def interval(values: NDArray[np.float64]) -> dict[str, float | None]:
    """`mean` (the estimate, sample 0), `low` and `high` (95 % percentile interval of the others) of [1 + S] values."""
    if not np.isfinite(values[0]):
        return {"mean": None, "low": None, "high": None}
    rest = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(rest, [2.5, 97.5]) if len(rest) else (None, None)
    as_float = [None if x is None else float(x) for x in (values[0], low, high)]
    return dict(zip(("mean", "low", "high"), as_float, strict=True))


def on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[P] True for the points [P, N] that no other is at least as good as everywhere and better somewhere."""
    better_or_equal = (points[:, None] >= points[None]).all(-1)  # [P, P]: row at least as good as column
    better = (points[:, None] > points[None]).any(-1)
    return ~(better_or_equal & better).any(0)


def hypervolume(points: NDArray[np.float64]) -> float:
    """Share of the unit cube that the points [P, N] dominate, from the lowest level of every dimension."""
    import moocore

    return float(moocore.hypervolume(np.ascontiguousarray(points), ref=[REFERENCE] * points.shape[1], maximise=True))


def hypervolumes(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every sample: [1 + S, P, N] to [1 + S]."""
    return np.array([hypervolume(points) for points in means])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank; NaN where one is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def follows_weights(weights: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """How a method's points move with the weights: Spearman per dimension, [1 + S, N].

    Args:
        weights: [P, N] of each point.
        means: [1 + S, P, N].
    """
    columns = range(weights.shape[1])
    return np.array([[rank_correlation(weights[:, i], sample[:, i]) for i in columns] for sample in means])


class LineReport(NamedTuple):
    """A line between two policies: how the first one's objective and the second one's change along it."""

    gaps: NDArray[np.float64]  # [T, 2] level above the straight line between the ends; below 0: a barrier
    rising: tuple[float, float]  # share of steps at which the objective changes towards its own end
    flat: tuple[float, float]  # share of steps at which it does not change


def line_report(shares: Sequence[float], levels: NDArray[np.float64]) -> LineReport:
    """The linear-mode check of Rewarded Soups: are mixtures at least as good as interpolated levels?

    Ramé et al. 2023 call two policies linearly connected where reward((1 - t) a + t b) >= (1 - t) reward(a) +
    t reward(b) for all t.

    Args:
        shares: T shares of the second policy, from 0 to 1, rising.
        levels: [T, 2] mean levels of the first policy's objective and of the second's.

    Raises:
        ValueError: shares that do not rise from 0 to 1.
    """
    t = np.asarray(shares, dtype=np.float64)
    if len(t) < 2 or t[0] != 0.0 or t[-1] != 1.0 or (np.diff(t) <= 0).any():
        raise ValueError(f"shares: expected values that rise from 0 to 1, got {list(shares)}")
    chord = (1 - t)[:, None] * levels[0] + t[:, None] * levels[-1]
    steps = np.diff(levels, axis=0) * [-1, 1]  # [T - 1, 2], above 0 towards the objective's own end
    flat = np.isclose(steps, 0.0, atol=1e-12)
    shares_of = [tuple(kind.mean(0).tolist()) for kind in ((steps > 0) & ~flat, flat)]
    return LineReport(levels - chord, *shares_of)
