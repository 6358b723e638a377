"""The reward model's classification losses (MOSLIM, Equations 6-10) and the probabilities that go with them.

Shapes: B batch, N heads (preference dimensions), K levels of one head, C classes (the sum of K over the heads).
Heads lie next to each other along C in the schema's order; `levels` holds each head's K in that order.

Every loss takes the same arguments and returns `(loss_sum, count)`: a sum and the number of things summed, never a
mean, so that a caller can add both over micro-batches and ranks and divide once by the global count.

    logits          [B, C]  any floating dtype; the arithmetic is fp32
    targets         [B, C]  float: per labelled head a one-hot (Eq. 8) or a label distribution (Eq. 5), zeros elsewhere
    label_mask      [B, N]  bool: True where the row carries a label of the head
    levels          N ints
    class_weights   [C] or None: every class's term of the cross-entropy is multiplied by its weight. The count stays a
                    count (it is not the sum of weights), so weights change the loss's scale unless they average to one
    label_smoothing share of the target, in [0, 1), that is spread evenly

Rows and heads without a label add exactly zero to the sum and to every gradient, whatever their logits hold.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Protocol

import torch
from torch import Tensor

DISTRIBUTION_TOLERANCE = 1e-3  # how far from one a label distribution may sum (values rounded to three decimals pass)


class ClassificationLoss(Protocol):
    """The signature shared by all losses of this file; see the module's docstring for shapes."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        label_mask: Tensor,
        levels: Sequence[int],
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]: ...


def per_head_loss(
    logits: Tensor,
    targets: Tensor,
    label_mask: Tensor,
    levels: Sequence[int],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy inside each labelled head: MOSLIM Eq. 6-9, summed over heads.

    Smoothing spreads over the K levels of the labelled head.

    Returns:
        loss_sum: scalar fp32, sum over labelled (row, head) pairs of -sum_j L_ij log S_ij.
        count: scalar int64, number of labelled (row, head) pairs.

    Raises:
        ValueError: shapes do not fit together, or label_smoothing is outside [0, 1).
    """
    _check_inputs(logits, targets, label_mask, levels, class_weights, label_smoothing)
    class_mask = _per_class(label_mask, levels)
    logits = logits.float().masked_fill(~class_mask, 0.0)
    targets = targets.float().masked_fill(~class_mask, 0.0)
    log_probs = torch.cat([head.log_softmax(-1) for head in logits.split(list(levels), dim=-1)], dim=-1)  # [B, C]
    if label_smoothing:
        uniform = torch.cat([targets.new_full((k,), 1.0 / k) for k in levels])  # [C]
        targets = (1.0 - label_smoothing) * targets + label_smoothing * uniform * class_mask
    if class_weights is not None:
        targets = targets * class_weights.float()
    return -(targets * log_probs).sum(), label_mask.sum()


def joint_loss(
    logits: Tensor,
    targets: Tensor,
    label_mask: Tensor,
    levels: Sequence[int],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the concatenation of all heads: MOSLIM Eq. 10 read as its left side.

    One softmax spans all C classes; the target is the concatenation of the labelled heads' targets divided by their
    number, so that it sums to one. Heads therefore compete, and a head with one level is meaningful.
    Smoothing spreads over all C classes.

    Returns:
        loss_sum: scalar fp32, sum over rows with at least one label.
        count: scalar int64, number of such rows.

    Raises:
        ValueError: shapes do not fit together, or label_smoothing is outside [0, 1).
    """
    _check_inputs(logits, targets, label_mask, levels, class_weights, label_smoothing)
    row_mask = label_mask.any(-1, keepdim=True)  # [B, 1]
    log_probs = logits.float().masked_fill(~row_mask, 0.0).log_softmax(-1)
    targets = _row_targets(targets, label_mask, levels)
    if label_smoothing:
        targets = (1.0 - label_smoothing) * targets + label_smoothing / targets.shape[-1] * row_mask
    if class_weights is not None:
        targets = targets * class_weights.float()
    return -(targets * log_probs).sum(), row_mask.sum()


def aligned_loss(
    logits: Tensor,
    targets: Tensor,
    label_mask: Tensor,
    levels: Sequence[int],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over class positions shared by the heads: MOSLIM Eq. 10 read as its right side.

    The exponentials of the heads' logits are summed class by class (position j of every head; shorter heads are
    padded with -inf) and normalised over positions. Targets are summed class by class likewise and divided by the
    number of labelled heads. The loss sees only the sum over heads, so it cannot tell which head a level belongs to.
    Smoothing spreads over the max(K) class positions. Class weights multiply each labelled head's own term; the mass
    spread by smoothing takes a position's mean weight over the heads that have it.

    Returns:
        loss_sum: scalar fp32, sum over rows with at least one label.
        count: scalar int64, number of such rows.

    Raises:
        ValueError: shapes do not fit together, or label_smoothing is outside [0, 1).
    """
    _check_inputs(logits, targets, label_mask, levels, class_weights, label_smoothing)
    row_mask = label_mask.any(-1, keepdim=True)  # [B, 1]
    logits = logits.float().masked_fill(~row_mask, 0.0)
    by_position = _pad_heads(logits, levels, -math.inf).logsumexp(1)  # [B, max K]
    log_probs = by_position.log_softmax(-1)
    targets = _row_targets(targets, label_mask, levels)
    if class_weights is not None:
        targets = targets * class_weights.float()
    targets = _pad_heads(targets, levels, 0.0).sum(1)  # [B, max K]
    if label_smoothing:
        spread = label_smoothing / targets.shape[-1] * _position_weights(class_weights, levels, targets)
        targets = (1.0 - label_smoothing) * targets + spread * row_mask
    return -(targets * log_probs).sum(), row_mask.sum()


LOSSES: dict[str, ClassificationLoss] = {"per_head": per_head_loss, "joint": joint_loss, "aligned": aligned_loss}


def probabilities(logits: Tensor, levels: Sequence[int], loss: str) -> Tensor:
    """The probabilities p that Eq. 11 and the metrics read: the softmax the model was trained with.

    Args:
        logits: [..., C], any floating dtype.
        levels: K of each head, in order.
        loss: `per_head` (softmax inside each head, Eq. 7) or `joint`/`aligned` (softmax over all C classes).

    Returns:
        [..., C] fp32. Sums to one inside each head for `per_head`, over all classes otherwise.

    Raises:
        ValueError: unknown loss, or logits whose last dimension is not sum(levels).
    """
    check_loss_name(loss)
    if logits.shape[-1] != sum(levels):
        raise ValueError(
            f"logits: expected a last dimension of {sum(levels)} (levels {list(levels)}), "
            f"got shape {tuple(logits.shape)}"
        )
    logits = logits.float()
    if loss != "per_head":
        return logits.softmax(-1)
    return torch.cat([head.softmax(-1) for head in logits.split(list(levels), dim=-1)], dim=-1)


def check_loss_name(loss: str) -> None:
    """Raise ValueError unless `loss` names one of `LOSSES`."""
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")


def check_levels_for_loss(levels: Mapping[str, int], loss: str) -> None:
    """Refuse a schema that the loss cannot train.

    `per_head` needs two levels in every head: the softmax over one class is the constant 1, so the head never learns
    and its z-score in Eq. 11 is 0/0.

    Args:
        levels: dimension name -> number of levels.
        loss: a key of `LOSSES`.

    Raises:
        ValueError: unknown loss, or `per_head` with a one-level dimension; the message names the config keys.
    """
    check_loss_name(loss)
    single = [name for name, count in levels.items() if count < 2]
    if loss == "per_head" and single:
        keys = ", ".join(f"preferences.{name}.levels" for name in single)
        raise ValueError(
            f"loss: per_head needs at least 2 levels in every dimension, got 1 for {keys} "
            f"(its softmax is constant); set loss=joint or give more levels"
        )


def encode_labels(
    labels: Sequence[Mapping[str, int | Sequence[float] | None]], names: Sequence[str], levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Turn each row's labels into targets and a mask (MOSLIM Eq. 8; Eq. 5 for distributions).

    Args:
        labels: per row, dimension name -> level (1-based int) or distribution over the K levels (K non-negative
            numbers that sum to one; they are normalised). A name left out or mapped to None is unlabelled.
        names: dimension names in head order.
        levels: K of each head, in the same order.

    Returns:
        targets: [B, C] fp32.
        label_mask: [B, N] bool.

    Raises:
        ValueError: unknown dimension, level out of range, or something that is no distribution; names the row
            (counted from 0 in `labels`) and the dimension.
    """
    if len(names) != len(levels):
        raise ValueError(f"levels: expected one entry per dimension {list(names)}, got {list(levels)}")
    head_of = {name: head for head, name in enumerate(names)}
    offsets = [sum(levels[:head]) for head in range(len(levels))]
    targets = torch.zeros(len(labels), sum(levels))
    label_mask = torch.zeros(len(labels), len(levels), dtype=torch.bool)
    for row, row_labels in enumerate(labels):
        for name, label in row_labels.items():
            if name not in head_of:
                raise ValueError(f"label of row {row}: unknown dimension {name!r}, expected one of {', '.join(names)}")
            if label is None:
                continue
            head = head_of[name]
            values = _head_target(label, levels[head], f"label of row {row}, {name}")
            targets[row, offsets[head] : offsets[head] + levels[head]] = torch.tensor(values)
            label_mask[row, head] = True
    return targets, label_mask


def _head_target(label: int | Sequence[float], count: int, where: str) -> list[float]:
    """One head's K target values from a level or a distribution."""
    if isinstance(label, Integral) and not isinstance(label, bool):
        if not 1 <= label <= count:
            raise ValueError(f"{where}: expected a level from 1 to {count}, got {label}")
        return [float(level == label) for level in range(1, count + 1)]
    if isinstance(label, bool | str) or not isinstance(label, Sequence):
        raise ValueError(f"{where}: expected a level (int) or a list of {count} shares, got {label!r}")
    is_share = [isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) and v >= 0 for v in label]
    total = sum(label) if all(is_share) else math.nan
    if len(label) != count or not abs(total - 1.0) <= DISTRIBUTION_TOLERANCE:
        raise ValueError(f"{where}: expected {count} non-negative shares that sum to 1, got {list(label)}")
    return [float(v) / float(total) for v in label]


def _check_inputs(
    logits: Tensor,
    targets: Tensor,
    label_mask: Tensor,
    levels: Sequence[int],
    class_weights: Tensor | None,
    label_smoothing: float,
) -> None:
    """Shape and range checks shared by the losses; none of them reads a tensor's values."""
    heads, classes = len(levels), sum(levels)
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ValueError(f"logits: expected shape [B, {classes}] for levels {list(levels)}, got {tuple(logits.shape)}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets: expected the logits' shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
    if label_mask.shape != (logits.shape[0], heads) or label_mask.dtype != torch.bool:
        raise ValueError(
            f"label_mask: expected bool [{logits.shape[0]}, {heads}], got {label_mask.dtype} {list(label_mask.shape)}"
        )
    if class_weights is not None and class_weights.shape != (classes,):
        raise ValueError(f"class_weights: expected shape [{classes}], got {list(class_weights.shape)}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: expected a share in [0, 1), got {label_smoothing}")


def _per_class(by_head: Tensor, levels: Sequence[int]) -> Tensor:
    """[B, N] -> [B, C]: repeat each head's value over its levels (no device synchronisation)."""
    return torch.cat([by_head[:, head : head + 1].expand(-1, k) for head, k in enumerate(levels)], dim=-1)


def _row_targets(targets: Tensor, label_mask: Tensor, levels: Sequence[int]) -> Tensor:
    """[B, C]: targets of the labelled heads over their number; zeros on rows without a label."""
    labelled = targets.float().masked_fill(~_per_class(label_mask, levels), 0.0)
    return labelled / label_mask.sum(-1, keepdim=True).clamp(min=1)


def _pad_heads(values: Tensor, levels: Sequence[int], fill: float) -> Tensor:
    """[B, C] -> [B, N, max K]: every head padded with `fill` to the longest."""
    longest = max(levels)
    heads = values.split(list(levels), dim=-1)
    return torch.stack([torch.nn.functional.pad(h, (0, longest - h.shape[-1]), value=fill) for h in heads], dim=1)


def _position_weights(class_weights: Tensor | None, levels: Sequence[int], like: Tensor) -> Tensor:
    """[max K]: mean class weight at each class position over the heads that have it (ones without weights)."""
    if class_weights is None:
        return like.new_ones(max(levels))
    heads_at = _pad_heads(like.new_ones(1, sum(levels)), levels, 0.0).sum(1)[0]
    return _pad_heads(class_weights.float()[None], levels, 0.0).sum(1)[0] / heads_at
