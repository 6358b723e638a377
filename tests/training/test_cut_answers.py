"""`cut_answers=mask` by hand: answers that the length limit cut are not learnt from, and change nothing else."""

import pytest
import torch
from made_rollouts import rollout

from nemo_moslim.policy_config import PPOConfig, RLOOConfig


def test_the_kl_controller_holds_the_mean_of_the_answers_that_count(batches):
    from nemo_moslim.training.ppo import PPO

    config = PPOConfig(
        name="ppo", samples=2, epochs=1, kl_coef=0.1, kl_target=1.3, kl_horizon=100, clip_ratio=0.2, value_clip=None,
        entropy_coef=0.0, gamma=1.0, gae_lambda=1.0, critic="value", critic_lr=1e-3, critic_reads_preferences=True,
    )  # fmt: skip
    ppo = PPO(config)
    ppo.prepare(rollout([1.0, 2.0, 3.0, 4.0]), batches)
    kl = (2 * 1.0 + 1 * 0.8 + 2 * 0.7) / 3  # 1.4, above the target; over all four rows it would be below
    assert ppo.kl_coef == pytest.approx(0.1 * (1 + (kl / 1.3 - 1) * 3 / 100), rel=1e-6)


def test_rloos_kl_controller_moves_as_ppos(batches):
    from nemo_moslim.training.rloo import RLOO

    config = RLOOConfig(
        name="rloo", samples=2, epochs=1, kl_coef=0.5, kl_target=1.0, kl_horizon=50, clip_ratio=0.2, entropy_coef=0.0
    )
    rloo = RLOO(config)
    (first,), metrics = rloo.prepare(rollout([1.0, 2.0, 3.0, 4.0]), batches)
    assert metrics == {"kl_coef": 0.5}  # as used in the step
    # 4.2 nats over the three answers that count: 0.4 above the target of 1.0, clipped at 0.2
    assert rloo.kl_coef == pytest.approx(0.5 * (1 + 0.2 * 3 / 50), rel=1e-6)
    (second,), metrics = rloo.prepare(rollout([1.0, 2.0, 3.0, 4.0]), batches)
    assert metrics == {"kl_coef": pytest.approx(0.506)}
    # rewards 3 and 4, KL 0.8 and 1.4: the first of them gains 0.6 nats' worth of the larger coefficient
    change = (second.advantages - first.advantages)[2, 0]
    assert float(change) == pytest.approx(0.006 * 0.6, rel=1e-3)


def test_rloo_compares_with_a_cut_answers_reward_less_its_kl(batches):
    from nemo_moslim.training.rloo import RLOO

    rloo = RLOO(RLOOConfig("rloo", 2, 1, kl_coef=0.5, kl_target=None, kl_horizon=1, clip_ratio=0.2, entropy_coef=0.0))
    (prepared,), _ = rloo.prepare(rollout([1.0, 2.0, 3.0, 4.0]), batches)
    shaped = [1.0 - 0.5 * 2.0, 2.0 - 0.5 * 3 * 0.9, 3.0 - 0.5 * 0.8, 4.0 - 0.5 * 1.4]
    first, second = shaped[0] - shaped[1], shaped[2] - shaped[3]
    expected = [[first, first, 0.0], [0.0] * 3, [second, 0.0, 0.0], [-second, -second, 0.0]]
    torch.testing.assert_close(prepared.advantages, torch.tensor(expected))
