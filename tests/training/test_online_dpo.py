"""Online DPO's pairs, beliefs and loss by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_rollouts import rollout

from nemo_moslim.policy_config import OnlineDPOConfig


def online_dpo_config(**changed):
    plain = {"samples": 2, "pairs": "best_worst", "epochs": 1, "beta": 0.5, "reward_scale": None}
    return OnlineDPOConfig("online_dpo", **{**plain, "kl_target": None, "kl_horizon": 50, **changed})


def test_online_dpo_pairs_the_finished_answers():
    from nemo_moslim.training.online_dpo import OnlineDPO

    finished = np.array([True, True, False, True, False, False, True, True, True])
    made = rollout([2.0, 1.0, 9.0, 5.0, 6.0, 7.0, 3.0, 3.0, 3.0], finished, lengths=[1] * 9)
    made = replace(made, groups=torch.arange(9) // 3)
    algorithm = OnlineDPO(online_dpo_config(samples=3))
    rows, counted, shares = algorithm.choose(made, finished)
    assert rows.reshape(-1, 2)[0].tolist() == [0, 1] and rows.shape == (6,)  # row 2 is the best, and was cut
    assert counted.tolist() == [True, True] + [False] * 7  # a lone finished answer; a tie
    assert shares == {"tied_pairs": pytest.approx(1 / 3), "missing_pairs": pytest.approx(1 / 3)}
    rows, counted, shares = algorithm.choose(made, np.ones(9, dtype=bool))
    assert rows.tolist()[:4] == [2, 1, 5, 3] and np.flatnonzero(counted).tolist() == [1, 2, 3, 5]
    assert shares["missing_pairs"] == 0.0


def test_online_dpo_learns_from_all_pairs_of_the_finished_answers():
    from nemo_moslim.training.online_dpo import OnlineDPO

    finished = np.array([True, True, False, True, False, False, True, True, True])
    made = rollout([2.0, 1.0, 9.0, 5.0, 6.0, 7.0, 3.0, 4.0, 3.0], finished, lengths=[1] * 9)
    made = replace(made, groups=torch.arange(9) // 3)
    rows, counted, shares = OnlineDPO(online_dpo_config(samples=3, pairs="all")).choose(made, finished)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 6, 8]  # the cut answers last in their unit
    assert np.flatnonzero(counted).tolist() == [0, 1, 6, 7, 8]
    # of nine pairs two miss an answer in the first unit, three in the second; rows 6 and 8 are alike
    assert shares == {"tied_pairs": pytest.approx(1 / 9), "missing_pairs": pytest.approx(5 / 9)}


def unit_batch(batches, rows, rewards):
    """The micro-batch of these rows, all of which count, and log-probabilities with logratios 4, 3, 2, 1."""
    made = rollout(rewards)
    batch = replace(batches[0], rows=torch.tensor(rows), response_mask=torch.ones(4, 3).bool())
    batch = replace(batch, ref_logprobs=torch.zeros(4, 3))
    return made, batch, torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize("scale", [None, 3.0])
def test_online_dpo_believes_pairs_as_far_as_their_rewards_are_apart(scale, batches):
    from nemo_moslim.training.online_dpo import OnlineDPO

    made, batch, logprobs = unit_batch(batches, [1, 0, 2, 3], [1.0, 2.0, 3.0, 1.0])
    algorithm = OnlineDPO(online_dpo_config(reward_scale=scale))
    (batch,), _ = algorithm.prepare(made, [batch])
    loss, count, _ = algorithm.loss(logprobs, torch.zeros_like(logprobs), batch)
    beliefs = [1 / (1 + np.exp(-scale * lead)) if scale else 1.0 for lead in (1.0, 2.0)]
    expected = sum(p * np.log1p(np.exp(-0.5)) + (1 - p) * np.log1p(np.exp(0.5)) for p in beliefs)  # both margins 0.5
    assert float(loss) == pytest.approx(expected, rel=1e-5) and count == 2


def test_online_dpo_with_all_pairs_by_hand(batches):
    from nemo_moslim.training.online_dpo import OnlineDPO

    made, batch, logprobs = unit_batch(batches, [3, 1, 0, 2], [1.0, 2.0, 0.5, 4.0])
    algorithm = OnlineDPO(online_dpo_config(samples=4, pairs="all", reward_scale=2.0))
    (batch,), _ = algorithm.prepare(made, [batch])
    batch.response_mask[3] = False  # the worst answer does not count
    loss, count, metrics = algorithm.loss(logprobs, torch.zeros_like(logprobs), batch)
    expected = 0.0
    for lead, difference in ((2.0, 1.0), (3.0, 2.0), (1.0, 1.0)):  # rewards 4, 2, 1 and logratios 4, 3, 2
        belief, margin = 1 / (1 + np.exp(-2.0 * lead)), 0.5 * difference
        expected += belief * np.log1p(np.exp(-margin)) + (1 - belief) * np.log1p(np.exp(margin))
    assert float(loss) == pytest.approx(expected, rel=1e-5) and count == 3 and metrics["accuracy"] == 3


def test_all_pairs_that_are_believed_little_pull_like_rloo(batches):
    """To first order in reward_scale the gradient is leave-one-out's, times reward_scale * beta * (K - 1) / 4."""
    from nemo_moslim.functional.advantages import leave_one_out
    from nemo_moslim.training.online_dpo import OnlineDPO

    made, batch, _ = unit_batch(batches, [3, 1, 0, 2], [1.0, 2.0, 0.5, 4.0])
    algorithm = OnlineDPO(online_dpo_config(samples=4, pairs="all", reward_scale=1e-3))
    (batch,), _ = algorithm.prepare(made, [batch])
    logprobs = torch.zeros(4, 3, requires_grad=True)
    algorithm.loss(logprobs, torch.zeros_like(logprobs), batch)[0].backward()
    advantages = leave_one_out(made.rewards, torch.zeros(4).long())[batch.rows]
    torch.testing.assert_close(-logprobs.grad[:, 0], advantages * 1e-3 * 0.5 * 3 / 4, rtol=1e-3, atol=1e-8)


def test_online_dpos_kl_controller_moves_as_ppos(batches):
    from nemo_moslim.training.online_dpo import OnlineDPO

    (batch,) = batches
    algorithm = OnlineDPO(online_dpo_config(kl_target=1.0))
    logprobs = batch.old_logprobs + torch.tensor([1.0, 0.0, 0.0, 2.0])[:, None] * batch.response_mask  # row 1 is cut
    for beta in (0.5, 0.5 * (1 + 0.2 * 3 / 50)):  # 1.4 nats an answer, above the target by more than the clip of 0.2
        (prepared,), metrics = algorithm.prepare(rollout([1.0, 2.0, 4.0, 3.0]), batches)
        assert metrics == {"beta": pytest.approx(beta, rel=1e-6)}
        loss, count, _ = algorithm.loss(logprobs, torch.zeros_like(logprobs), prepared)
        margin = beta * (0.8 - 1.4 - 2 * 2.0)  # of the second pair; the first has a cut answer
        assert float(loss) == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5) and count == 1
