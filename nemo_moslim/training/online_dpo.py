"""Online DPO: of a prompt's answers, those of higher mapped reward are preferred (Rafailov et al. 2023)."""

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout
from nemo_moslim.functional.advantages import ranked_rows
from nemo_moslim.functional.masked import inside
from nemo_moslim.functional.preference_losses import dpo_loss
from nemo_moslim.policy_config import OnlineDPOConfig
from nemo_moslim.training.algorithm import next_kl_coef
from nemo_moslim.training.rl_batches import with_field


class OnlineDPO:
    """A unit is what a prompt is learnt from, better answers first: best and worst, or all in all their pairs.

    Pairs of equal reward teach nothing and are counted. `kl_coef` is beta, and the controller's state where a target is
    set, as PPO's.
    """

    uses_critic = False
    chooses_by_reward = True
    metric_names = ("accuracy", "margin", "entropy", "tokens", "ratio_deviation_max")

    def __init__(self, config: OnlineDPOConfig):
        self.config, self.samples, self.epochs, self.unit = config, config.samples, config.epochs, config.unit
        self.kl_coef, self.beta = config.beta, config.beta  # of the next step, of this one

    def choose(self, rollout: Rollout, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """The unit of each prompt; answers that are in no pair do not count."""
        rewards, free = rollout.rewards.cpu(), torch.from_numpy(usable)
        rows = ranked_rows(rewards, rollout.groups.cpu(), free)  # [G, K]
        if self.config.pairs == "best_worst":
            worst = (free[rows].sum(1) - 1).clamp(min=1)  # the last usable one; any where there are fewer than two
            rows = torch.stack([rows[:, 0], rows.gather(1, worst[:, None])[:, 0]], 1)
        paired, tied = unit_pairs(free[rows], rewards[rows])
        first, second = torch.triu_indices(self.unit, self.unit, 1)
        learnt = paired & ~tied  # [G, pairs]
        counted = torch.zeros(len(rollout), dtype=torch.bool)
        counted[rows[:, first][learnt]] = True
        counted[rows[:, second][learnt]] = True
        shares = {"tied_pairs": float(tied.float().mean()), "missing_pairs": float((~paired).float().mean())}
        return rows.flatten().numpy(), counted.numpy(), shares

    def prepare(self, rollout: Rollout, batches: list[PolicyBatch]) -> tuple[list[PolicyBatch], dict[str, float]]:
        """An answer's advantage is its reward less the best of its unit's; the KL controller moves on."""
        self.beta = self.kl_coef
        self.kl_coef = next_kl_coef(self.beta, rollout, batches, self.config)
        columns = []
        for batch in batches:
            rewards = rollout.rewards.cpu()[batch.rows].view(-1, self.unit)
            columns.append((rewards - rewards[:, :1]).view(-1, 1) * batch.response_mask)
        return with_field(batches, advantages=columns), {"beta": self.beta}

    def loss(self, logprobs: Tensor, entropy: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Counted in pairs."""
        mask, scale = batch.response_mask, self.config.reward_scale
        logratios = inside(logprobs - batch.ref_logprobs, mask).sum(-1).view(-1, self.unit)
        advantages = batch.advantages[:, 0].view(-1, self.unit)
        paired, tied = unit_pairs(mask.any(-1).view(-1, self.unit), advantages)
        better, worse = torch.triu_indices(self.unit, self.unit, 1, device=mask.device)
        leads = (advantages[:, better] - advantages[:, worse]).flatten()
        beliefs = None if scale is None else (scale * leads).sigmoid()
        chosen, rejected, valid = logratios[:, better], logratios[:, worse], paired & ~tied
        loss, sums = dpo_loss(chosen.flatten(), rejected.flatten(), valid.flatten(), self.beta, beliefs)
        deviation = ((logprobs.detach() - batch.old_logprobs).expm1().abs() * mask).amax()
        extra = {"entropy": (entropy.detach() * mask).sum(), "tokens": mask.sum(), "ratio_deviation_max": deviation}
        return loss, sums.pop("count"), {**sums, **extra}


def unit_pairs(counts: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Of every pair of a unit's answers: whether both count, and whether their rewards are then equal.

    Both bool [U, n (n - 1) / 2] from bool and fp32 [U, n], in the order of `torch.triu_indices`.
    """
    first, second = torch.triu_indices(counts.shape[1], counts.shape[1], 1, device=counts.device)
    paired = counts[:, first] & counts[:, second]
    return paired, paired & (rewards[:, first] == rewards[:, second])
