"""From one reward per answer to what the policy learns from: per-token rewards and GAE, leave-one-out, ranking.

Shapes: B rows (answers), T response positions, G groups (answers to the same prompt). A mask [B, T] is True on the
answer's tokens, its EOS included: a run from position 0, then padding. A row without any True is filler and counts
nowhere. What stands at masked positions is never read: NaN there changes nothing.
"""

import math

import torch
from torch import Tensor

from nemo_moslim.functional.masked import check_masked, inside

MAX_KL_ERROR = 0.2  # Ziegler et al. 2019, section 2.2


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """k1 estimator of KL(policy || reference) per token (Schulman 2020, "Approximating KL divergence").

    k1_t = log pi(y_t) - log pi_ref(y_t). Unbiased over samples of the policy; a single value may be negative.

    Args:
        logprobs: [B, T] of the sampled tokens under the policy that sampled them.
        ref_logprobs: [B, T] of the same tokens under the reference.
        mask: [B, T] bool.

    Returns:
        [B, T] fp32, 0 outside the mask.

    Raises:
        ValueError: shapes or the mask do not fit.
    """
    _check_inputs(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    return inside(logprobs, mask) - inside(ref_logprobs, mask)


def token_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards per token: the KL penalty on each, the answer's reward on its last (Ziegler et al. 2019, Eq. 2).

    r_t = -kl_coef * kl_t + [t is the answer's last token] * reward.

    Args:
        rewards: [B], one per answer.
        kl: [B, T] from `token_kl`.
        mask: [B, T] bool.
        kl_coef: 0 or above.

    Returns:
        [B, T] fp32, 0 outside the mask and so everywhere in a filler row.

    Raises:
        ValueError: shapes or the mask do not fit, a negative `kl_coef`.
    """
    _check_inputs(mask, kl=kl)
    if rewards.shape != mask.shape[:1]:
        raise ValueError(f"rewards: expected shape [{mask.shape[0]}], got {list(rewards.shape)}")
    if not 0.0 <= kl_coef < math.inf:
        raise ValueError(f"kl_coef: expected a number at or above 0, got {kl_coef}")
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)  # [B, T], one True per answer
    return inside(rewards[:, None].expand(mask.shape), last) - kl_coef * inside(kl, mask)


def generalized_advantages(
    token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, Eq. 16).

    delta_t = r_t + gamma * V_{t+1} - V_t,  A_t = delta_t + gamma * lambda * A_{t+1},  R_t = A_t + V_t,
    with V and A equal to 0 after the answer's last token: the episode ends there.

    Args:
        token_rewards: [B, T].
        values: [B, T], V_t is the critic's estimate before token t is emitted.
        mask: [B, T] bool.
        gamma: discount, in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        advantages: [B, T] fp32.
        returns: [B, T] fp32. Both are 0 outside the mask and detached from the graph.

    Raises:
        ValueError: shapes or the mask do not fit, `gamma` or `gae_lambda` outside [0, 1].
    """
    _check_inputs(mask, token_rewards=token_rewards, values=values)
    for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    values = inside(values.detach(), mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = inside(token_rewards.detach(), mask) + gamma * next_values - values  # 0 outside the mask
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(deltas.shape[0])  # [B]
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    return advantages, advantages + values


def masked_moments(x: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares over the mask: fp64 [3], additive over any split of the rows, detached.

    Args:
        x: [B, T].
        mask: [B, T] bool.

    Raises:
        ValueError: shapes or the mask do not fit.
    """
    _check_inputs(mask, x=x)
    counted = x.detach().double().masked_fill(~mask, 0.0)
    return torch.stack([mask.sum().double(), counted.sum(), counted.square().sum()])


def whiten(x: Tensor, mask: Tensor, moments: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps), with the population variance that the moments give.

    Args:
        x: [B, T].
        mask: [B, T] bool.
        moments: [3] from `masked_moments`, summed over every rank and micro-batch that is whitened together.
        eps: added to the variance.

    Returns:
        [B, T] fp32, 0 outside the mask; 0 everywhere where all values are equal.

    Raises:
        ValueError: shapes or the mask do not fit.
    """
    _check_inputs(mask, x=x)
    if moments.shape != (3,):
        raise ValueError(f"moments: expected shape [3] (count, sum, sum of squares), got {list(moments.shape)}")
    count, total, squares = moments.double()
    mean = total / count.clamp(min=1.0)
    variance = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    return ((x.double() - mean) / (variance + eps).sqrt()).masked_fill(~mask, 0.0).float()


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """RLOO's advantage: the reward minus the mean of the others in its group (Ahmadian et al. 2024).

    A_i = r_i - 1/(k-1) * sum_{j != i} r_j = (k * r_i - sum_j r_j) / (k-1), k the size of i's group.

    Args:
        rewards: [B].
        groups: [B] int64, equal for answers to the same prompt; any ids in any order, groups may differ in size.

    Returns:
        [B] fp32; sums to 0 in each group.

    Raises:
        ValueError: shapes or dtypes do not fit, a group has a single row.
    """
    _check_groups(rewards, groups)
    ids, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    alone = ids[sizes < 2].tolist()
    if alone:
        raise ValueError(f"groups: leave-one-out expects at least 2 rows per group, got 1 in group {alone[0]}")
    r = rewards.double()
    sums = torch.zeros(len(ids), dtype=r.dtype, device=r.device).index_add(0, index, r)  # [G]
    k = sizes[index]
    return ((k * r - sums[index]) / (k - 1)).float()


def ranked_rows(rewards: Tensor, groups: Tensor, usable: Tensor) -> Tensor:
    """The rows of each group from best to worst, behind them those that are not usable (Online DPO).

    Groups are in ascending order of their id. Among equal rewards the earlier row comes first.

    Args:
        rewards: [B], no NaN where usable.
        groups: [B] int64, any ids in any order; all groups have K rows.
        usable: [B] bool, rows that may be ranked.

    Returns:
        [G, K] int64 row indices.

    Raises:
        ValueError: shapes or dtypes do not fit, a usable reward is NaN, groups differ in size.
    """
    _check_groups(rewards, groups)
    nan_rows = (rewards.isnan() & usable).nonzero().flatten().tolist()
    if nan_rows:
        raise ValueError(f"rewards: expected numbers to rank, got NaN in rows {nan_rows}")
    sizes = groups.unique(return_counts=True)[1].tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"groups: expected groups of one size, got sizes {sorted(set(sizes))}")
    order = torch.arange(len(rewards), device=rewards.device)
    for key in (-rewards.double().masked_fill(~usable, -torch.inf), groups):  # stable: the last key decides first
        order = order[key[order].argsort(stable=True)]
    return order.view(len(sizes), -1) if sizes else order.view(0, 0)


def adapt_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, rows: int) -> float:
    """The proportional controller of Ziegler et al. 2019, section 2.2, with K_beta = rows / horizon.

    error = clip(kl / target - 1, -0.2, 0.2),  kl_coef <- kl_coef * (1 + error * rows / horizon).

    Args:
        kl_coef: the coefficient that was used.
        kl: the mean over the batch's answers of the sum of `token_kl`.
        target: the KL per answer to hold, above 0.
        horizon: the answers over which a full error acts once, above 0.
        rows: answers in the batch, fewer than 5 * horizon so that the coefficient keeps its sign.

    Raises:
        ValueError: `kl` is not finite; `target`, `horizon` or `rows` out of range.
    """
    if not math.isfinite(kl):
        raise ValueError(f"kl: expected a finite number, got {kl}")
    for name, value in (("target", target), ("horizon", horizon)):
        if not value > 0:
            raise ValueError(f"kl {name}: expected a number above 0, got {value}")
    if not 0 <= rows < horizon / MAX_KL_ERROR:
        raise ValueError(f"rows: expected 0 to below {horizon / MAX_KL_ERROR:g} (5 * horizon), got {rows}")
    error = min(max(kl / target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1.0 + error * rows / horizon)


def _check_inputs(mask: Tensor, **tensors: Tensor) -> None:
    check_masked(mask, **tensors)
    gaps = (mask[:, 1:] & ~mask[:, :-1]).any(-1).nonzero().flatten().tolist()
    if gaps:
        raise ValueError(f"mask: expected one run of True from position 0 in each row, got a gap in rows {gaps}")


def _check_groups(rewards: Tensor, groups: Tensor) -> None:
    if rewards.ndim != 1:
        raise ValueError(f"rewards: expected shape [B], got {list(rewards.shape)}")
    if groups.shape != rewards.shape or groups.dtype != torch.int64:
        raise ValueError(f"groups: expected int64 {list(rewards.shape)}, got {groups.dtype} {list(groups.shape)}")
