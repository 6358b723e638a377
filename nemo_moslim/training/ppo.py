"""PPO (Schulman et al. 2017; MOSLIM Eq. 12) with a critic that starts from the reward model's backbone."""

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout, SampledAnswers
from nemo_moslim.functional.advantages import (
    generalized_advantages,
    masked_moments,
    token_kl,
    token_rewards,
    whiten,
)
from nemo_moslim.parallel.layout import sum_over_data_ranks
from nemo_moslim.policy_config import PPOConfig
from nemo_moslim.training.algorithm import POLICY_METRICS, all_rows, next_kl_coef, policy_loss
from nemo_moslim.training.rl_batches import with_field


class PPO:
    """Rewards per token (KL on each, the mapped reward on the last), GAE, advantages whitened over all ranks.

    `kl_coef` is the controller's state where a target is set; it travels in the checkpoint.
    """

    uses_critic = True
    chooses_by_reward = False
    metric_names = POLICY_METRICS

    def __init__(self, config: PPOConfig):
        self.config, self.samples, self.epochs = config, config.samples, config.epochs
        self.kl_coef = config.kl_coef

    def choose(self, sampled: SampledAnswers, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """See `Algorithm`."""
        return all_rows(sampled, usable)

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """Advantages and returns per token; the KL controller moves on."""
        used, config = self.kl_coef, self.config
        advantages, returns = [], []
        moments = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            kl = token_kl(batch.old_logprobs, batch.ref_logprobs, batch.response_mask)
            rewards = token_rewards(rollout.rewards[batch.rows], kl, batch.response_mask, used)
            gae = generalized_advantages(
                rewards, batch.old_values, batch.response_mask, config.gamma, config.gae_lambda
            )
            advantages.append(gae[0])
            returns.append(gae[1])
            moments += masked_moments(gae[0], batch.response_mask)
        moments = sum_over_data_ranks(moments)
        white = [whiten(a, b.response_mask, moments) for a, b in zip(advantages, batches, strict=True)]
        self.kl_coef = next_kl_coef(used, rollout, batches, config)
        return with_field(batches, advantages=white, returns=returns), {"kl_coef": used}

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Of the policy."""
        return policy_loss(logprobs, entropy, batch, self.config.clip_ratio, self.config.entropy_coef)
