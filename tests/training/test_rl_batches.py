from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_moslim.batches import Rollout


@pytest.fixture(scope="module")
def rl_batches():
    from nemo_moslim.training import rl_batches

    return rl_batches


def rollout(prompts, answers):
    rows = len(answers)
    return Rollout(
        prompts=["p"] * rows,
        preferences=[{}] * rows,
        prompt_tokens=[np.array(p, dtype=np.int32) for p in prompts],
        plain_prompt_tokens=[np.array(p[1:], dtype=np.int32) for p in prompts],
        answers=[np.array(a, dtype=np.int32) for a in answers],
        texts=["a"] * rows,
        finished=np.ones(rows, dtype=bool),
        generator_logprobs=[np.zeros(len(a)) for a in answers],
        groups=torch.zeros(rows, dtype=torch.int64),
        rewards=torch.zeros(rows),
        parts=torch.zeros(rows, 1),
        obtained=torch.ones(rows, 1),
        asked=torch.arange(rows)[:, None],
        probabilities=torch.arange(2.0 * rows).view(rows, 2),
        cut_for_scoring=0,
    )


def test_every_row_is_dealt_once_and_micro_batches_are_sorted_by_length(rl_batches):
    lengths = np.random.default_rng(0).integers(5, 90, 48)
    updates = rl_batches.deal(lengths, 1, mini_size=16, micro_size=4, seed=(1, 2))
    assert [update.shape for update in updates] == [(4, 4)] * 3
    assert sorted(np.concatenate([u.flatten() for u in updates])) == list(range(48))
    for update in updates:
        assert (np.diff(lengths[update.flatten()]) >= 0).all()
    again = rl_batches.deal(lengths, 1, 16, 4, (1, 2))
    assert all((a == b).all() for a, b in zip(updates, again, strict=True))
    assert any((a != b).any() for a, b in zip(updates, rl_batches.deal(lengths, 1, 16, 4, (1, 3)), strict=True))


def test_pairs_stay_together(rl_batches):
    updates = rl_batches.deal(np.arange(24)[::-1], 2, mini_size=8, micro_size=4, seed=(0,))
    for micro in np.concatenate(updates):
        assert (micro[0::2] + 1 == micro[1::2]).all() and (micro[0::2] % 2 == 0).all()


def test_a_batch_holds_prompt_then_answer_and_masks_what_must_not_count(rl_batches, monkeypatch):
    made = rollout([[9, 1, 2], [9, 3]], [[4, 5], [6, 7, 8]])
    counted = np.array([True, False])
    batch = rl_batches.policy_batch(made, np.array([1, 0]), counted, pad_id=0, multiple=4)
    assert batch.tokens.tolist() == [[9, 3, 6, 7, 8, 0, 0, 0], [9, 1, 2, 4, 5, 0, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 3] and batch.rows.tolist() == [1, 0]
    (scored,) = rl_batches.with_probabilities([batch], made)
    assert batch.asked.tolist() == [[1], [0]] and scored.probabilities.tolist() == [[2.0, 3.0], [0.0, 1.0]]
    assert batch.response_mask.tolist() == [[False] * 3, [True, True, False]]
    with monkeypatch.context() as without_gpu:
        without_gpu.setattr(torch.Tensor, "cuda", lambda self, **_: self)
        moved = batch.to_device()
    assert (moved.answer_rows.tolist(), moved.answer_places.tolist()) == ([1, 1], [0, 1])
    plain = rl_batches.policy_batch(made, np.array([0]), counted, pad_id=0, multiple=1, tagged=False)
    assert plain.tokens.tolist() == [[1, 2, 4, 5]] and plain.prompt_lengths.tolist() == [2]


def test_a_critic_that_reads_no_tags_learns_the_returns_of_the_same_answers(rl_batches, monkeypatch):
    """`algorithm.critic_reads_preferences=false`, in two steps, whose deals differ."""
    from nemo_moslim.training import rl_loop

    monkeypatch.setattr(rl_loop, "data_parallel_place", lambda: (0, 1))
    made = rollout([[9, 1], [9, 2, 2], [9, 3], [9, 4, 4, 4]], [[4], [5, 5], [6, 6, 6], [7]])
    loop = object.__new__(rl_loop.PolicyTraining)
    loop.config = SimpleNamespace(
        trainer=SimpleNamespace(seed=1), batch=SimpleNamespace(prompts=4, mini_size=2, micro_size=2),
        parallel=SimpleNamespace(tensor=1, sequence=False, context=1), precision="fp32",
    )  # fmt: skip
    loop.algorithm = SimpleNamespace(config=SimpleNamespace(critic_reads_preferences=False))
    loop.critic, loop.pad_id, deals = object(), 0, []
    for step in (0, 1):
        loop.step = step
        updates, plan = loop._deal(made, np.arange(4), np.ones(4, dtype=bool))
        flat = [batch for update in updates for batch in update]
        returns = [10.0 * batch.rows[:, None] + batch.response_mask.cumsum(1) for batch in flat]
        filled = rl_loop.with_field(flat, old_values=[-column for column in returns], returns=returns)
        filled = rl_loop.with_probabilities(filled, made)
        critic = loop._critic_batches(
            rl_batches.regrouped(filled, updates), [b for update in plan for b in update], plan
        )
        assert [len(update) for update in critic] == [1, 1]
        for mine, policys in zip([batch for update in critic for batch in update], filled, strict=True):
            assert torch.equal(mine.returns, policys.returns) and torch.equal(mine.old_values, policys.old_values)
            assert torch.equal(mine.probabilities, made.probabilities[mine.rows])
            assert torch.equal(mine.response_mask, policys.response_mask)
            for place, row in enumerate(mine.rows.tolist()):
                answer = made.answers[row].tolist()
                for batch, prompts in ((mine, made.plain_prompt_tokens), (policys, made.prompt_tokens)):
                    expected = [*prompts[row].tolist(), *answer]
                    assert batch.tokens[place, : len(expected)].tolist() == expected
                assert mine.returns[place, : len(answer)].tolist() == [
                    10.0 * row + k for k in range(1, len(answer) + 1)
                ]
        deals.append([batch.rows.tolist() for batch in filled])
    assert deals[0] != deals[1]
