"""Packing of rows into sequences, and packed batches against rows read one at a time."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.data.encoded_rows import EncodedRows
from nemo_moslim.data.packed_dataset import PackedDataset
from nemo_moslim.data.packing import pack_rows
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.sft_dataset import SFTDataset
from nemo_moslim.functional.classification import encode_labels

PAD = 0


def naive_pack_count(lengths, capacity):
    """Packs of best-fit decreasing, one row at a time."""
    free = []
    for length in sorted(lengths, reverse=True):
        room = [i for i, space in enumerate(free) if space >= length]
        if room:
            free[min(room, key=lambda i: free[i])] -= length
        else:
            free.append(capacity - length)
    return sorted(free)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=60), st.integers(24, 40), st.integers(0, 5),
    st.sampled_from([1, 4]),
)  # fmt: skip
def test_every_row_lies_in_one_pack_and_packs_are_those_of_best_fit_decreasing(lengths, capacity, seed, multiple):
    lengths = np.array(lengths)
    packs = pack_rows(lengths, capacity, seed, multiple)
    while capacity % multiple:
        capacity += 1
    assert packs.capacity == capacity and sorted(packs.rows) == list(range(len(lengths)))
    assert [lengths[packs.pack(index)].sum() for index in range(len(packs))] == packs.lengths.tolist()
    padded = np.array([length + -length % multiple for length in lengths])
    sums = [int(padded[packs.pack(index)].sum()) for index in range(len(packs))]
    assert sums == packs.padded_lengths.tolist() and min(sums) > 0 and max(sums) <= capacity
    assert sorted(capacity - n for n in sums) == naive_pack_count(padded, capacity)
    assert packs.fill_rate == pytest.approx(lengths.sum() / (len(packs) * capacity))


def test_packs_follow_from_the_seed():
    lengths = np.random.default_rng(0).integers(1, 50, 400)
    first, again, other = (pack_rows(lengths, 100, seed) for seed in (1, 1, 2))
    assert (first.rows == again.rows).all() and (first.offsets == again.offsets).all()
    assert (first.rows != other.rows).any()


def test_a_million_rows_of_skewed_lengths_fill_packs():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.9, 1_000_000).astype(np.int64), 8, 4096)
    before = time.process_time()
    packs = pack_rows(lengths, 4096, 1)
    assert time.process_time() - before < 60  # a second where rows of one length move together; hours one by one
    assert packs.fill_rate > 0.999 and len(packs.rows) == 1_000_000


def test_the_padding_of_rows_does_not_fill_packs():
    packs = pack_rows(np.array([5, 3, 4, 1]), 10, 1, multiple=4)  # they take 8, 4, 4 and 4 tokens of 12
    assert packs.padded_lengths.tolist() == [12, 8] and packs.capacity == 12
    assert packs.fill_rate == 13 / 24


@pytest.mark.parametrize("lengths", [[], [0, 3], [3, 11]])
def test_rows_that_cannot_be_packed_are_refused(lengths):
    with pytest.raises(ValueError, match="expected rows of 1 to 10 tokens"):
        pack_rows(np.array(lengths, dtype=np.int64), 10, 1)


def encoded(lengths, prompts):
    tokens = np.concatenate([100 * (row + 1) + np.arange(n) for row, n in enumerate(lengths)]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return EncodedRows(
        tokens, offsets, np.array(prompts), np.arange(len(lengths)), np.zeros(len(lengths), dtype=bool), 0
    )


def test_packed_ratings_by_hand():
    targets, mask = encode_labels([{"a": 2}, {"a": 1}, {}], ["a"], [2])
    data = RewardDataset(encoded([3, 2, 4], [1, 1, 2]), targets, mask, [None] * 3, PAD, 8)
    batch = data.packed_batch(np.array([2, 0, -1]))
    assert batch.tokens.tolist() == [[300, 301, 302, 303, 100, 101, 102, PAD]]  # the filler is the row's own pad token
    assert batch.last_index.tolist() == [3, 6, 7] and batch.rows.tolist() == [0, 0, 0]
    assert batch.packing.cu_seqlens.tolist() == [0, 4, 7, 8] and batch.packing.longest == 4
    assert batch.label_mask.tolist() == [[False], [True], [False]]
    assert batch.targets.tolist() == [[0, 0], [0, 1], [0, 0]]
    padded = data.packed_batch(np.array([0, 1])).packing
    assert padded.cu_seqlens.tolist() == [0, 3, 5, 8]  # the padding is a sequence of its own


def test_packed_ratings_padded_one_by_one_by_hand():
    targets, mask = encode_labels([{"a": 2}, {"a": 1}, {}], ["a"], [2])
    data = RewardDataset(encoded([3, 2, 5], [1, 1, 2]), targets, mask, [None] * 3, PAD, 8)
    batch = data.packed_batch(np.array([2, 0, -1]), sequence_multiple=4)
    assert batch.tokens.tolist() == [[300, 301, 302, 303, 304, *[PAD] * 3, 100, 101, 102, *[PAD] * 5]]
    assert batch.last_index.tolist() == [4, 10, 12]  # the filler's own token is the fourth sequence's first
    assert batch.packing.cu_seqlens.tolist() == [0, 8, 12, 16] and batch.packing.longest == 8
    longer = data.packed_batch(np.array([2]), sequence_multiple=4)
    assert longer.packing.cu_seqlens.tolist() == [0, 8] and longer.packing.cu_seqlens.dtype == torch.int32
    assert data.packed_batch(np.array([0]), sequence_multiple=4).packing.cu_seqlens.tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    ("loss_on", "counted"), [("answers", [0, 1, 0, 1, 1, 0, 0, 0]), ("all", [1, 1, 0, 1, 1, 0, 0, 0])]
)
def test_packed_text_by_hand(loss_on, counted):
    data = SFTDataset(encoded([3, 3], [2, 1]), loss_on, PAD, 8)
    batch = data.packed_batch(np.array([0, 1]))
    assert batch.tokens.tolist() == [[100, 101, 102, 200, 201, 202, PAD, PAD]]
    assert batch.loss_mask.tolist() == [counted]
    labels = batch.labels[batch.loss_mask > 0].tolist()
    assert labels == ([102, 201, 202] if loss_on == "answers" else [101, 102, 201, 202])
    apart = data.packed_batch(np.array([0, -1, 1]), sequence_multiple=4)
    assert apart.tokens.tolist() == [[100, 101, 102, *[PAD] * 5, 200, 201, 202, *[PAD] * 5]]
    assert apart.loss_mask.tolist() == [[*counted[:3], *[0] * 5, *counted[3:6], *[0] * 5]]


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=12), seed=st.integers(0, 9), filler=st.booleans())
def test_a_pack_holds_its_rows_tokens_and_counts_what_padded_rows_count(lengths, seed, filler):
    base = SFTDataset(encoded(lengths, [1] * len(lengths)), "answers", PAD, 8)
    data = PackedDataset.build(base, 16, seed)
    assert data.lengths.sum() == sum(lengths) and data.counted == base.counted
    total = 0
    for index in range(len(data)):
        batch = data.batch(np.array([index, -1] if filler else [index]))
        ends = batch.packing.cu_seqlens.tolist()
        assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape and batch.tokens.shape[1] % 8 == 0
        assert (
            ends[0] == 0
            and ends[-1] == batch.tokens.shape[1]
            and all(a < b for a, b in zip(ends, ends[1:], strict=False))
        )
        assert batch.packing.longest == max(np.diff(ends))
        for start, row in zip(ends, data.packs.pack(index), strict=False):
            np.testing.assert_array_equal(batch.tokens[0, start : start + lengths[row]], base.rows.row(row))
        total += batch.loss_mask.sum()
    assert total == base.counted
