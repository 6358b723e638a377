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
    assert batch.asked.tolist() == [[1], [0]] and batch.probabilities.tolist() == [[2.0, 3.0], [0.0, 1.0]]
    assert batch.response_mask.tolist() == [[False] * 3, [True, True, False]]
    with monkeypatch.context() as without_gpu:
        without_gpu.setattr(torch.Tensor, "cuda", lambda self, **_: self)
        moved = batch.to_device()
    assert (moved.answer_rows.tolist(), moved.answer_places.tolist()) == ([1, 1], [0, 1])
    plain = rl_batches.policy_batch(made, np.array([0]), counted, pad_id=0, multiple=1, tagged=False)
    assert plain.tokens.tolist() == [[1, 2, 4, 5]] and plain.prompt_lengths.tolist() == [2]
