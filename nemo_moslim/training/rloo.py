"""RLOO (Ahmadian et al. 2024): the reward less the mean reward of the other answers to the same prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout, SampledAnswers
from nemo_moslim.functional.advantages import leave_one_out
from nemo_moslim.policy_config import RLOOConfig
from nemo_moslim.training.algorithm import POLICY_METRICS, all_rows, answer_kl, next_kl_coef, policy_loss
from nemo_moslim.training.rl_batches import answer_mask, generator_logprobs, with_field


class RLOO:
    """The KL to the reference, summed over the answer, is taken off its reward before the comparison.

    `kl_coef` is the controller's state where a target is set, as PPO's.
    """

    uses_critic = False
    chooses_by_reward = False
    metric_names = POLICY_METRICS

    def __init__(self, config: RLOOConfig):
        self.config, self.samples, self.epochs = config, config.samples, config.epochs
        self.kl_coef = config.kl_coef

    def choose(self, sampled: SampledAnswers, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """See `Algorithm`."""
        return all_rows(sampled, usable)

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """One advantage per answer, the same on all its tokens; the KL controller moves on.

        An answer that does not count is still compared with.
        """
        used = self.kl_coef
        shaped = rollout.rewards - used * whole_answer_kl(rollout, batches)
        advantages = leave_one_out(shaped, rollout.groups)
        columns = [advantages[batch.rows][:, None] * batch.response_mask for batch in batches]
        self.kl_coef = next_kl_coef(used, rollout, batches, self.config)
        return with_field(batches, advantages=columns), {"kl_coef": used}

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `policy_loss`."""
        return policy_loss(logprobs, entropy, batch, self.config.clip_ratio, self.config.entropy_coef)


def whole_answer_kl(rollout: Rollout, batches: Sequence[PolicyBatch]) -> Tensor:
    """`answer_kl` with that of the answers that do not count: fp32 [R].

    The trainer has no log-probabilities of these, and takes the generator's; they differ by rounding (`mismatch`).
    """
    filled = [
        torch.where(batch.response_mask.any(-1, keepdim=True), batch.old_logprobs, generator_logprobs(batch, rollout))
        for batch in batches
    ]
    masks = [answer_mask(batch, rollout) for batch in batches]
    return answer_kl(rollout, with_field(batches, old_logprobs=filled, response_mask=masks))
