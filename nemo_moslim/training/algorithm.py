"""What online algorithms have in common, and the little in which they differ.

Shapes: B rows of a micro-batch, T answer positions, R answers of a step.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout, SampledAnswers
from nemo_moslim.functional.advantages import adapt_kl_coef, token_kl
from nemo_moslim.functional.policy_losses import clipped_policy_loss
from nemo_moslim.parallel.layout import sum_over_data_ranks
from nemo_moslim.policy_config import OnlineDPOConfig, PPOConfig, RLOOConfig

POLICY_METRICS = ("clipped", "ratio", "ratio_deviation_max", "approx_kl", "entropy")  # of `policy_loss`


class Algorithm(Protocol):
    """An online algorithm; `training/rl_loop.py` runs it."""

    samples: int  # answers per prompt
    epochs: int  # passes over a step's answers
    uses_critic: bool
    chooses_by_reward: bool  # `choose` is given the rollout; otherwise it comes before the scores
    metric_names: tuple[str, ...]  # of `loss`

    def choose(self, sampled: SampledAnswers, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Rows to train on, those of a prompt together, and which of all rows count: int64 [n], bool [R]; metrics.

        `usable`, bool [R], is False for answers that must not count.
        """

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """Batches with advantages and returns, from rewards and log-probabilities; metrics of the step."""

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss sum, count, sums of the metrics; logprobs and entropy fp32 [B, T] with gradients."""


def all_rows(sampled: SampledAnswers, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Every usable answer is trained on."""
    return np.arange(len(sampled)), usable, {}


def answer_kl(rollout: Rollout, batches: Sequence[PolicyBatch]) -> Tensor:
    """KL to the reference summed over each answer (k1), on every rank: fp32 [R]; 0 for answers that do not count."""
    sums = torch.zeros(len(rollout))
    for batch in batches:
        kl = token_kl(batch.old_logprobs, batch.ref_logprobs, batch.response_mask).sum(-1)
        sums.index_add_(0, batch.rows, kl)
    return sum_over_data_ranks(sums)


def counted_answers(batches: Sequence[PolicyBatch]) -> int:
    """Answers that are trained on, over all ranks."""
    counted = sum(int(batch.response_mask.any(-1).sum()) for batch in batches)
    return int(sum_over_data_ranks(torch.tensor([counted])).item())


def next_kl_coef(
    kl_coef: float, rollout: Rollout, batches: Sequence[PolicyBatch], config: PPOConfig | RLOOConfig | OnlineDPOConfig
) -> float:
    """What the controller makes of the coefficient that a step has used; the same where no `kl_target` is set."""
    if config.kl_target is None:
        return kl_coef
    answers = counted_answers(batches)
    kl = float(answer_kl(rollout, batches).sum()) / max(answers, 1)
    return adapt_kl_coef(kl_coef, kl, config.kl_target, config.kl_horizon, answers)


def policy_loss(
    logprobs: Tensor, entropy: Tensor, batch: PolicyBatch, clip_ratio: float, entropy_coef: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """PPO's clipped loss less the entropy bonus; on the first update its gradient is REINFORCE's."""
    loss, sums = clipped_policy_loss(logprobs, batch.old_logprobs, batch.advantages, batch.response_mask, clip_ratio)
    bonus = (entropy * batch.response_mask).sum()
    sums["ratio_deviation_max"] = sums.pop("ratio_deviation")
    return loss - entropy_coef * bonus, sums.pop("count"), {**sums, "entropy": bonus.detach()}
