"""The value of an unfinished answer from predicted levels, for a critic that keeps the reward model's heads.

The reward of Eq. 11 is linear in the probabilities p of the finished answer. So its expectation before a token is drawn
is Eq. 11 of the expected p, which does not depend on what the prompt asks for and is learnt from every answer, for all
heads at once.

Shapes: B rows, T answer positions, N heads, C classes (the sum of all heads' levels).
"""

from collections.abc import Sequence

from torch import Tensor

from nemo_moslim.functional.masked import inside
from nemo_moslim.functional.reward_mapping import map_rewards

SMALLEST = 1e-8  # a probability below counts as this in the logarithm


def level_values(
    p: Tensor, asked: Tensor, avg: Tensor, std: Tensor, levels: Sequence[int], normalize: str, mask: Tensor
) -> Tensor:
    """V_t = Eq. 11 of the levels predicted before token t: fp32 [B, T], 0 outside the mask.

    Args:
        p: [B, T, C] predicted probabilities.
        asked: [B, N] integer, 1-based level per dimension, 0 where none is asked for.
        avg, std: [C] statistics of the reward model.
        levels: K of each head, in order.
        normalize: see `map_rewards`.
        mask: [B, T] bool.

    Raises:
        ValueError: see `map_rewards`.
    """
    positions = p.shape[1]
    rewards, _ = map_rewards(p.flatten(0, 1), asked.repeat_interleave(positions, 0), avg, std, levels, normalize)
    return inside(rewards.view_as(mask), mask)


def level_prediction_loss(p: Tensor, final: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the predicted to the finished answer's probabilities: - sum_t sum_c final_c log p_tc.

    Args:
        p: [B, T, C] predicted probabilities, with gradient.
        final: [B, C] of the finished answer by the reward model; a constant.
        mask: [B, T] bool.

    Returns:
        fp32 scalar, a sum over the valid positions and the classes.
    """
    surprise = -(final.detach()[:, None].float() * p.float().clamp_min(SMALLEST).log()).sum(-1)
    return inside(surprise, mask).sum()
