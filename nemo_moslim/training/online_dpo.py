"""Online DPO: of a prompt's answers, the best by mapped reward is preferred to the worst (Rafailov et al. 2023)."""

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout
from nemo_moslim.functional.advantages import best_and_worst
from nemo_moslim.functional.masked import inside
from nemo_moslim.functional.preference_losses import dpo_loss
from nemo_moslim.policy_config import OnlineDPOConfig


class OnlineDPO:
    """Pairs are neighbouring rows, the better answer first. Pairs of equal reward teach nothing and are counted."""

    uses_critic = False
    unit = 2
    metric_names = ("accuracy", "margin", "entropy", "tokens", "ratio_deviation_max")

    def __init__(self, config: OnlineDPOConfig):
        self.config, self.samples, self.epochs = config, config.samples, config.epochs

    def choose(self, rollout: Rollout, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Best and worst usable answer of each prompt; ties do not count, nor do prompts with fewer than two."""
        rewards, groups, free = rollout.rewards.cpu(), rollout.groups.cpu(), torch.from_numpy(usable)
        best = best_and_worst(rewards.masked_fill(~free, -torch.inf), groups)[0]
        worst = best_and_worst(rewards.masked_fill(~free, torch.inf), groups)[1]
        ids, index = groups.unique(return_inverse=True)
        unpaired = torch.zeros(len(ids)).index_add(0, index, free.float()) < 2
        tied = ~unpaired & (rewards[best] == rewards[worst])
        pairs = torch.stack([best, worst], 1)
        counted = torch.zeros(len(rollout), dtype=torch.bool)
        counted[pairs[~tied & ~unpaired].flatten()] = True
        shares = {"tied_pairs": float(tied.float().mean()), "unpaired_prompts": float(unpaired.float().mean())}
        return pairs.flatten().numpy(), counted.numpy(), shares

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """Nothing to add: the loss needs the reference's log-probabilities alone."""
        return batches, {}

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Counted in pairs."""
        mask = batch.response_mask
        logratios = inside(logprobs - batch.ref_logprobs, mask).sum(-1)
        valid = mask.any(-1)[0::2] & mask.any(-1)[1::2]
        loss, sums = dpo_loss(logratios[0::2], logratios[1::2], valid, self.config.beta)
        deviation = ((logprobs.detach() - batch.old_logprobs).expm1().abs() * mask).amax()
        extra = {"entropy": (entropy.detach() * mask).sum(), "tokens": mask.sum(), "ratio_deviation_max": deviation}
        return loss, sums.pop("count"), {**sums, **extra}
