"""Losses on pairs of answers (DPO, MODPO), and which answer of a pair a controlled prompt prefers (CDPO).

Shapes: P pairs, N preference dimensions. A loss is a sum over valid pairs, so sums of micro-batches and ranks add up;
the caller all-reduces and divides by the global "count". What stands at pairs that are not valid is never read: NaN
there changes no value or gradient. Metrics are detached fp32 scalars.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_moslim.functional.masked import check_positive, inside


def dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, valid: Tensor, beta: float, beliefs: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO's loss on pairs (Rafailov et al. 2023, Eq. 7); MOSLIM Eq. 3 where the prompts carry tags.

    margin = beta * (chosen_logratio - rejected_logratio),  loss = -sum log sigmoid(margin)

    With `beliefs` p the loss is -sum p log sigmoid(margin) + (1 - p) log sigmoid(-margin), least where sigmoid(margin)
    is p: reward-aware preference optimization (Nemotron-4 340B 2024; NeMo-Aligner's `rpo_bwd_kl`) but for a constant.

    Args:
        chosen_logratios: [P], sum over the better answer's tokens of logprobs - ref_logprobs.
        rejected_logratios: [P], the same of the worse answer.
        valid: [P] bool, False for pairs that do not count (ties, filler).
        beta: above 0.
        beliefs: [P], the probability that the chosen answer is better; None: certain.

    Returns:
        loss: fp32 scalar, a sum.
        metrics:
            count: valid pairs.
            accuracy: valid pairs whose implicit reward beta * logratio is higher for the chosen answer.
            margin: sum of margin.

    Raises:
        ValueError: shapes or dtypes do not fit, `beta` is not above 0.
    """
    no_margins = torch.zeros_like(valid, dtype=torch.float32)
    loss, metrics = modpo_loss(chosen_logratios, rejected_logratios, no_margins, valid, beta, weight=1.0)
    if beliefs is not None:  # log sigmoid(-margin) = log sigmoid(margin) - margin
        margin = beta * (inside(chosen_logratios, valid) - inside(rejected_logratios, valid))
        loss = loss + ((1.0 - inside(beliefs.detach(), valid)) * margin).sum()
    return loss, metrics


def modpo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    margins: Tensor,
    valid: Tensor,
    beta: float,
    weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """MODPO's loss on pairs that are ordered by one objective (Zhou et al. 2023): DPO with a margin.

    margin = (beta * (chosen_logratio - rejected_logratio) - m) / weight,  loss = -sum log sigmoid(margin),
    m = sum over the other objectives of their weight times (reward of the chosen - reward of the rejected answer).

    With weight 1 and m = 0 it is DPO's. The difference of logratios grows with m: answers that the other objectives
    reward gain probability even where the pairs' own objective is indifferent.

    Args:
        chosen_logratios: [P], sum over the better answer's tokens of logprobs - ref_logprobs.
        rejected_logratios: [P], the same of the worse answer.
        margins: [P], m; constants.
        valid: [P] bool, False for pairs that do not count.
        beta: above 0.
        weight: of the objective that orders the pairs, above 0.

    Returns:
        loss: fp32 scalar, a sum.
        metrics:
            count: valid pairs.
            accuracy: valid pairs whose logratio is higher for the chosen answer.
            margin: sum of margin.

    Raises:
        ValueError: shapes or dtypes do not fit, `beta` or `weight` is not above 0.
    """
    if valid.ndim != 1 or valid.dtype != torch.bool:
        raise ValueError(f"valid: expected bool [P], got {valid.dtype} {list(valid.shape)}")
    columns = {"chosen_logratios": chosen_logratios, "rejected_logratios": rejected_logratios, "margins": margins}
    for name, value in columns.items():
        if value.shape != valid.shape:
            raise ValueError(f"{name}: expected shape {list(valid.shape)}, got {list(value.shape)}")
    check_positive("beta", beta)
    check_positive("weight", weight)
    difference = beta * (inside(chosen_logratios, valid) - inside(rejected_logratios, valid))  # 0 where not valid
    margin = (difference - inside(margins.detach(), valid)) / weight
    loss = -inside(F.logsigmoid(margin), valid).sum()
    margin, difference = margin.detach(), difference.detach()
    return loss, {"count": valid.sum().float(), "accuracy": (difference > 0).sum().float(), "margin": margin.sum()}


def controlled_scores(ratings: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
    """CDPO's score of an answer under a controlled prompt (Guo et al. 2024).

    score = sum_i weights_i * g_i,  g_i = -|rating_i - asked_i| where the prompt asks for dimension i, else rating_i.

    An exact match (distance 0) is the best that an asked dimension can give.

    Args:
        ratings: [..., N] of the answer, on a scale of the caller's.
        asked: [..., N] wanted ratings on the same scale, NaN where the prompt does not name the dimension.
        weights: [N], 0 or above.

    Returns:
        [...] fp32.

    Raises:
        ValueError: shapes do not fit, a rating is NaN, a weight is negative.
    """
    if ratings.shape != asked.shape or weights.shape != ratings.shape[-1:]:
        shapes = [list(x.shape) for x in (ratings, asked, weights)]
        raise ValueError(f"ratings, asked, weights: expected shapes [..., N], [..., N], [N], got {shapes}")
    if ratings.isnan().any():
        raise ValueError("ratings: expected a number for every dimension, got NaN")
    if not (weights >= 0).all():
        raise ValueError(f"weights: expected values of 0 or above, got {weights.tolist()}")
    ratings, asked = ratings.float(), asked.float()
    gains = torch.where(asked.isnan(), ratings, -(ratings - asked).abs())
    return (gains * weights.float()).sum(-1)


def preferred_answers(first: Tensor, second: Tensor, asked: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Order pairs of answers by their controlled scores.

    A dimension that either answer has no rating of counts for neither. A pair is not valid if such a dimension is
    asked for, or if the scores are equal.

    Args:
        first: [P, N] ratings of one answer, NaN where it has none.
        second: [P, N] of the other.
        asked: [P, N] wanted ratings, NaN where not asked.
        weights: [N], 0 or above.

    Returns:
        first_is_better: [P] bool, meaningless where not valid.
        valid: [P] bool.

    Raises:
        ValueError: shapes do not fit, a weight is negative.
    """
    if first.shape != second.shape:
        raise ValueError(f"second: expected the shape of first {list(first.shape)}, got {list(second.shape)}")
    unrated = first.isnan() | second.isnan()  # [P, N]
    scores = [
        controlled_scores(x.masked_fill(unrated, 0.0), asked.masked_fill(unrated, torch.nan), weights)
        for x in (first, second)
    ]
    unknown = (unrated & ~asked.isnan()).any(-1)
    return scores[0] > scores[1], (scores[0] != scores[1]) & ~unknown
