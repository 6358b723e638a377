"""From the heads' probabilities and the levels a prompt asks for to one scalar reward (MOSLIM Eq. 11).

Shapes: B batch, N heads (preference dimensions), K levels of one head, C classes (the sum of K over the heads).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NORMALIZE = ("total", "active")


def map_rewards(
    probabilities: Tensor,
    preferences: Tensor,
    avg: Tensor,
    std: Tensor,
    levels: Sequence[int],
    normalize: str = "total",
) -> tuple[Tensor, Tensor]:
    """MOSLIM Eq. 11: r = 1/k * sum_i mask_i * (p_i[target] - avg_i[target]) / std_i[target].

    Args:
        probabilities: [B, C], from `classification.probabilities`; computed on the prompt without its prefix.
        preferences: [B, N] integer, the 1-based level asked per dimension; 0 where the prompt does not name it.
        avg: [C] running average of p (`statistics.mean_std`).
        std: [C] running standard deviation of p, above 0 everywhere.
        levels: K of each head, in order.
        normalize: k is the number of dimensions of the schema (`total`, the paper) or of the prompt (`active`).

    Returns:
        rewards: [B] fp32. 0 for a prompt that asks for nothing.
        parts: [B, N] fp32, what each dimension adds (already divided by k): `parts.sum(-1)` is the reward.

    Raises:
        ValueError: shapes or dtypes do not fit, a level is out of range, a std is not above 0, unknown `normalize`.
    """
    _check_inputs(probabilities, preferences, avg, std, levels, normalize)
    asked = preferences > 0  # [B, N]
    offsets = torch.tensor([sum(levels[:head]) for head in range(len(levels))], device=preferences.device)
    target = offsets + (preferences.long() - 1).clamp(min=0)  # [B, N] index into C
    avg, std = avg.float(), std.float()
    scores = (probabilities.float().gather(-1, target) - avg[target]) / std[target]
    scores = scores.masked_fill(~asked, 0.0)
    k = asked.sum(-1, keepdim=True).clamp(min=1) if normalize == "active" else len(levels)
    parts = scores / k
    return parts.sum(-1), parts


def _check_inputs(
    probabilities: Tensor, preferences: Tensor, avg: Tensor, std: Tensor, levels: Sequence[int], normalize: str
) -> None:
    heads, classes = len(levels), sum(levels)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize: expected one of {', '.join(NORMALIZE)}, got {normalize!r}")
    if probabilities.ndim != 2 or probabilities.shape[1] != classes:
        raise ValueError(
            f"probabilities: expected shape [B, {classes}] for levels {list(levels)}, got {list(probabilities.shape)}"
        )
    if preferences.shape != (probabilities.shape[0], heads):
        raise ValueError(
            f"preferences: expected shape [{probabilities.shape[0]}, {heads}], got {list(preferences.shape)}"
        )
    if preferences.is_floating_point() or preferences.is_complex() or preferences.dtype == torch.bool:
        raise ValueError(f"preferences: expected integer levels (0 = not asked), got {preferences.dtype}")
    for name, value in (("avg", avg), ("std", std)):
        if value.shape != (classes,):
            raise ValueError(f"{name}: expected shape [{classes}], got {list(value.shape)}")
    bad_std = (~(std > 0)).nonzero().flatten().tolist()
    if bad_std:
        raise ValueError(f"std: expected values above 0, got {std[bad_std].tolist()} at classes {bad_std}")
    limits = torch.tensor(list(levels), device=preferences.device)
    outside = ((preferences < 0) | (preferences > limits)).nonzero().tolist()
    if outside:
        row, head = outside[0]
        raise ValueError(
            f"preferences: expected levels 0 (not asked) to {levels[head]} for dimension {head}, "
            f"got {int(preferences[row, head])} in row {row}"
        )
