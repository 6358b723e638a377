"""Running average and standard deviation of p per class, the `avg` and `std` of MOSLIM Eq. 11.

Shapes: B batch, N heads, K levels of one head, C classes (the sum of K over the heads).

Per global batch: `batch_moments` on each rank -> sum over data-parallel ranks -> `ema_update` or `exact_update`.
Moments are additive, so any split of the rows over ranks and micro-batches gives the same sums. Sums are fp64: the
variance is a difference of two nearly equal numbers where a class's probabilities hardly move. The state keeps
mean and variance (not the raw sums) for the same reason, fp32 by default.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Additive sums over rows. All-reduce `torch.stack(moments)` to `summed`, then take `Moments(*summed)`."""

    n: Tensor  # [C] fp64, rows counted for the class
    s1: Tensor  # [C] fp64, sum of p
    s2: Tensor  # [C] fp64, sum of p squared


class RunningStatistics(NamedTuple):
    """What has been seen so far. A class that was never updated has weight 0."""

    weight: Tensor  # [C]: rows counted (exact) or 1 - decay**updates (ema, its bias correction)
    mean: Tensor  # [C]
    variance: Tensor  # [C], population variance (divided by n)


def empty_statistics(
    classes: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> RunningStatistics:
    """Statistics of nothing: three zero tensors of shape [classes]."""
    return RunningStatistics(*(torch.zeros(classes, dtype=dtype, device=device) for _ in range(3)))


def batch_moments(probabilities: Tensor, row_mask: Tensor, levels: Sequence[int]) -> Moments:
    """Count, sum and sum of squares of p per class over the rows that count for its head.

    Args:
        probabilities: [B, C], from `classification.probabilities`.
        row_mask: [B, N] bool, True where the row counts for the head (its label mask, or all True).
        levels: K of each head, in order.

    Returns:
        Three fp64 tensors of shape [C], detached from the graph. B may be 0.

    Raises:
        ValueError: shapes do not fit together.
    """
    batch, heads, classes = probabilities.shape[0], len(levels), sum(levels)
    if probabilities.shape != (batch, classes):
        raise ValueError(
            f"probabilities: expected shape [B, {classes}] for levels {list(levels)}, got {list(probabilities.shape)}"
        )
    if row_mask.shape != (batch, heads) or row_mask.dtype != torch.bool:
        raise ValueError(f"row_mask: expected bool [{batch}, {heads}], got {row_mask.dtype} {list(row_mask.shape)}")
    mask = torch.cat([row_mask[:, head : head + 1].expand(-1, k) for head, k in enumerate(levels)], dim=-1)
    p = probabilities.detach().double().masked_fill(~mask, 0.0)
    return Moments(mask.sum(0).double(), p.sum(0), p.square().sum(0))


def ema_update(state: RunningStatistics, moments: Moments, decay: float) -> RunningStatistics:
    """Exponential moving average over batches, bias-corrected: the paper's moving average of Eq. 11.

    The batch k updates ago has weight (1 - decay) * decay**k, divided by the sum of all weights so far; mean and
    variance are those of the rows under these weights, so the drift of the mean between batches is part of the
    variance. Every batch counts alike, however many rows of the class it holds; a class without a row in the batch
    is left as it was.

    Args:
        state: fp32 or fp64, [C].
        moments: of the global batch (summed over ranks), [C].
        decay: in [0, 1).

    Raises:
        ValueError: decay outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"statistics decay: expected a number in [0, 1), got {decay}")
    return _merge(state, state.weight.double() * decay, moments, torch.full_like(moments.n, 1.0 - decay))


def exact_update(state: RunningStatistics, moments: Moments) -> RunningStatistics:
    """Mean and variance of every row seen, each counted once (Chan, Golub and LeVeque's merge of two samples).

    The order of batches and their sizes do not matter, up to rounding. For a pass over many millions of rows start
    from `empty_statistics(C, torch.float64)` and convert at the end.

    Args:
        state: fp32 or fp64, [C].
        moments: of the global batch (summed over ranks), [C].
    """
    return _merge(state, state.weight.double(), moments, moments.n)


def mean_std(state: RunningStatistics) -> tuple[Tensor, Tensor]:
    """(avg [C], std [C]) of Eq. 11, in the state's dtype. Both are 0 for a class that was never updated."""
    return state.mean, state.variance.clamp(min=0.0).sqrt()


def check_floor(std: Tensor, floor: float, class_names: Sequence[str]) -> None:
    """Refuse statistics that Eq. 11 cannot divide by.

    Args:
        std: [C] standard deviations.
        floor: the smallest accepted value, above 0.
        class_names: C names, each telling dimension and level.

    Raises:
        ValueError: a std is below the floor or not a number; every such class is named with its value.
    """
    if not floor > 0.0:
        raise ValueError(f"statistics floor: expected a number above 0, got {floor}")
    values = std.tolist()
    if len(values) != len(class_names):
        raise ValueError(f"statistics: expected one std per class ({len(class_names)}), got {len(values)}")
    bad = [f"{name} ({value:.3g})" for name, value in zip(class_names, values, strict=True) if not value >= floor]
    if bad:
        raise ValueError(
            f"statistics: the standard deviation of p is below the floor {floor:g} for {', '.join(bad)}, so Eq. 11 "
            f"cannot scale these levels; train on rows that carry them, or remove them from the preferences"
        )


def _merge(state: RunningStatistics, old_weight: Tensor, moments: Moments, new_weight: Tensor) -> RunningStatistics:
    """Merge the batch into the state with the given weights, in fp64; classes without rows stay as they are."""
    n = moments.n.clamp(min=1.0)
    batch_mean = moments.s1 / n
    batch_variance = (moments.s2 / n - batch_mean.square()).clamp(min=0.0)
    weight = old_weight + new_weight
    share = new_weight / weight.clamp(min=torch.finfo(torch.float64).tiny)  # of the batch in the merged sample
    delta = batch_mean - state.mean.double()
    mean = state.mean.double() + share * delta
    variance = (1.0 - share) * (state.variance.double() + share * delta.square()) + share * batch_variance
    seen = moments.n > 0
    merged = RunningStatistics(weight, mean, variance)
    return RunningStatistics(
        *(torch.where(seen, new.to(old.dtype), old) for new, old in zip(merged, state, strict=True))
    )
