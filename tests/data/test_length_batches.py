import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.data.length_batches import (
    TrainingBatches,
    evaluation_batches,
    pad_length,
    padding_share,
    rank_share,
)


def skewed(rows, seed=0):
    """Lengths like those of answers: many short, a long tail."""
    return np.clip(np.random.default_rng(seed).lognormal(4.5, 0.9, rows).astype(np.int64), 8, 1024)


@pytest.mark.parametrize(("longest", "multiple", "padded"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5)])
def test_pad_length(longest, multiple, padded):
    assert pad_length(longest, multiple) == padded


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 60), micro=st.integers(1, 3), per_step=st.integers(1, 4), window=st.integers(1, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_row_comes_once_per_epoch(rows, micro, per_step, window, seed):
    """Whole windows are pieces of a stream of permutations: counts of rows never differ by more than one."""
    plan = TrainingBatches(skewed(rows), micro * per_step, micro, micro, window, seed)
    counts = np.zeros(rows, dtype=int)
    for number in range(window):
        batch = plan.step(number)
        assert batch.shape == (per_step, micro)
        np.add.at(counts, batch.flatten(), 1)
    assert counts.sum() == micro * per_step * window
    assert counts.max() - counts.min() <= 1
    for number in range(window, 4 * window):
        np.add.at(counts, plan.step(number).flatten(), 1)
    assert counts.max() - counts.min() <= 1


def test_a_step_depends_on_its_number_alone():
    lengths = skewed(100)
    forward, backward = (TrainingBatches(lengths, 12, 4, 4, 5, 3) for _ in range(2))
    inorder = [forward.step(number) for number in range(23)]
    for number in reversed(range(23)):
        np.testing.assert_array_equal(backward.step(number), inorder[number])
    other_seed = TrainingBatches(lengths, 12, 4, 4, 5, 4)
    assert any((other_seed.step(number) != inorder[number]).any() for number in range(3))


def test_epochs_and_windows_differ_in_order():
    plan = TrainingBatches(skewed(48), 12, 4, 4, 2, 3)
    epochs = [np.concatenate([plan.step(4 * epoch + i).flatten() for i in range(4)]) for epoch in range(2)]
    np.testing.assert_array_equal(np.sort(epochs[0]), np.arange(48))
    np.testing.assert_array_equal(np.sort(epochs[1]), np.arange(48))
    assert (epochs[0] != epochs[1]).any()


def test_lengths_of_a_step_are_not_sorted_over_training():
    """Buckets are dealt at random: the first steps are not the short ones."""
    lengths = skewed(3200)
    plan = TrainingBatches(lengths, 32, 8, 8, 16, 0)
    means = [lengths[plan.step(number)].mean() for number in range(96)]
    assert abs(np.corrcoef(means, np.arange(96))[0, 1]) < 0.3


def test_padding_is_small_on_skewed_lengths():
    lengths = skewed(4000)
    bucketed, one_window = (TrainingBatches(lengths, 32, 8, 8, window, 0) for window in (16, 1))
    share = padding_share(lengths, (bucketed.step(i) for i in range(64)), 8)
    assert share < 0.10
    assert padding_share(lengths, (one_window.step(i) for i in range(64)), 8) > 2 * share


def test_rows_of_a_block_follow_each_other():
    """Blocks of three rows: their lengths here are that of the block, so that sorting keeps them together too."""
    block_of = np.tile(np.arange(16), 3)
    lengths = skewed(16)[block_of] + block_of / 100
    plan = TrainingBatches(lengths, 12, 6, 6, 4, 3, block_of)
    rows = np.concatenate([plan.step(step) for step in range(4)])
    assert sorted(rows.ravel()) == list(range(48))  # an epoch
    for micro_batch in rows:
        first, second = block_of[micro_batch.reshape(2, 3)]
        assert len(set(first)) == len(set(second)) == 1
    assert not np.array_equal(rows, np.concatenate([plan.step(step) for step in range(4, 8)]))


def test_padding_share_by_hand():
    lengths = np.array([3, 8, 9])
    batches = [np.array([[0, 1], [2, -1]])]  # 2 rows of 8, then 2 rows of 16: 48 places for 20 tokens
    assert padding_share(lengths, iter(batches), 8) == pytest.approx(1 - 20 / 48)
    packed = np.array([4, 8, 12])  # one after the other: 12 tokens in 16 places, 12 in 16
    assert padding_share(lengths, iter(batches), 8, packed) == pytest.approx(1 - 20 / 32)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 50), micro=st.integers(1, 3), per_step=st.integers(1, 4), ranks=st.integers(1, 4))
def test_evaluation_reads_every_row_once_over_all_ranks(rows, micro, per_step, ranks):
    global_size = micro * per_step * ranks
    batches = list(evaluation_batches(skewed(rows), global_size, micro))
    seen = np.concatenate([rank_share(b, rank, ranks).flatten() for b in batches for rank in range(ranks)])
    assert len(batches) == -(-rows // global_size)
    assert (seen == -1).sum() == len(batches) * global_size - rows
    np.testing.assert_array_equal(np.sort(seen[seen >= 0]), np.arange(rows))


@given(micro_batches=st.integers(1, 12), ranks=st.integers(1, 4))
def test_rank_shares_are_a_partition_of_equal_parts(micro_batches, ranks):
    batch = np.arange(micro_batches * ranks * 2).reshape(micro_batches * ranks, 2)
    shares = [rank_share(batch, rank, ranks) for rank in range(ranks)]
    assert {len(share) for share in shares} == {micro_batches}
    np.testing.assert_array_equal(np.sort(np.concatenate(shares).flatten()), batch.flatten())


def test_ranks_run_neighbours_in_length_at_the_same_time():
    lengths = skewed(200)
    batch = TrainingBatches(lengths, 32, 4, 4, 4, 0).step(0)
    longest = [lengths[rows].max() for rows in batch]
    assert longest == sorted(longest)
    first, second = (rank_share(batch, rank, 2) for rank in range(2))
    np.testing.assert_array_equal(np.stack([first, second], 1).reshape(batch.shape), batch)


def test_a_group_gives_ranks_rows_of_like_length():
    """Two ranks with one micro-batch each: lengths differ widely, unless both are dealt together."""
    lengths = skewed(2048)

    def imbalance(group_size):
        plan = TrainingBatches(lengths, 32, 16, group_size, 16, 0)
        longest = np.array([lengths[plan.step(step)].max(axis=1) for step in range(64)])
        return float((longest.max(axis=1) / longest.min(axis=1)).mean())

    assert imbalance(32) < 1.2 < 1.5 < imbalance(16)
    used = np.concatenate([TrainingBatches(lengths, 32, 16, 32, 16, 0).step(step).ravel() for step in range(64)])
    assert sorted(used) == list(range(2048))
