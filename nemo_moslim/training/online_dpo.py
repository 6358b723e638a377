"""Online DPO: of a prompt's answers, the best by mapped reward is preferred to the worst (Rafailov et al. 2023).

With more than one pair a prompt also the second best to the second worst, and so on.
"""

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout
from nemo_moslim.functional.advantages import ranked_pairs
from nemo_moslim.functional.masked import inside
from nemo_moslim.functional.preference_losses import dpo_loss
from nemo_moslim.policy_config import OnlineDPOConfig
from nemo_moslim.training.algorithm import next_kl_coef
from nemo_moslim.training.rl_batches import with_field


class OnlineDPO:
    """Pairs are neighbouring rows, the better answer first. Pairs of equal reward teach nothing and are counted.

    `kl_coef` is beta, and the controller's state where a target is set, as PPO's.
    """

    uses_critic = False
    unit = 2
    metric_names = ("accuracy", "margin", "entropy", "tokens", "ratio_deviation_max")

    def __init__(self, config: OnlineDPOConfig):
        self.config, self.samples, self.epochs = config, config.samples, config.epochs
        self.kl_coef, self.beta = config.beta, config.beta  # of the next step, of this one

    def choose(self, rollout: Rollout, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The pairs of each prompt's usable answers; ties do not count, nor do pairs for which answers are missing."""
        pairs, complete, tied = ranked_pairs(
            rollout.rewards.cpu(), rollout.groups.cpu(), torch.from_numpy(usable), self.config.pairs
        )
        counted = torch.zeros(len(rollout), dtype=torch.bool)
        counted[pairs[complete & ~tied].flatten()] = True
        shares = {"tied_pairs": float(tied.float().mean()), "missing_pairs": float((~complete).float().mean())}
        return pairs.flatten().numpy(), counted.numpy(), shares

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """An answer's advantage is its reward less that of the other answer of its pair; the KL controller moves on."""
        self.beta = self.kl_coef
        self.kl_coef = next_kl_coef(self.beta, rollout, batches, self.config)
        columns = []
        for batch in batches:
            rewards = rollout.rewards.cpu()[batch.rows].view(-1, 2)
            leads = (rewards - rewards.flip(1)).flatten()
            columns.append(leads[:, None] * batch.response_mask)
        return with_field(batches, advantages=columns), {"beta": self.beta}

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Counted in pairs."""
        mask = batch.response_mask
        logratios = inside(logprobs - batch.ref_logprobs, mask).sum(-1)
        valid = mask.any(-1)[0::2] & mask.any(-1)[1::2]
        scale, leads = self.config.reward_scale, batch.advantages[0::2, 0]
        beliefs = None if scale is None else (scale * leads).sigmoid()
        loss, sums = dpo_loss(logratios[0::2], logratios[1::2], valid, self.beta, beliefs)
        deviation = ((logprobs.detach() - batch.old_logprobs).expm1().abs() * mask).amax()
        extra = {"entropy": (entropy.detach() * mask).sum(), "tokens": mask.sum(), "ratio_deviation_max": deviation}
        return loss, sums.pop("count"), {**sums, **extra}
