"""Answers to the same prompt in one sequence: what lies where."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.shared_prompts import AnswersTogether, together
from nemo_moslim.preferences import PreferenceSchema

PARTS = st.lists(st.integers(5, 9), min_size=1, max_size=5)


def arrays(*rows):
    return [np.array(row, dtype=np.int32) for row in rows]


def test_neighbours_with_one_prompt_have_it_once():
    prompts = arrays([7, 8], [7, 8], [9], [7, 8])
    found = together(prompts, arrays([1, 2, 3], [4], [5, 6], [1]), pad_id=0, multiple=8)
    packing = found.packing
    assert found.tokens.tolist() == [[7, 8, 1, 2, 3, 4, 9, 5, 6, 7, 8, 1, 0, 0, 0, 0]]
    assert packing.cu_seqlens.tolist() == [0, 6, 9, 12, 16] and packing.longest == 5
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    assert packing.pieces.tolist() == [0, 0, 1, 1, 1, 2, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert found.ends.tolist() == [4, 5, 8, 11]
    assert found.before[0].tolist() == [1, 2, 3]  # the prompt's last token predicts the first of each answer
    assert packing.places.tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, -1, -1], [6, 7, 8, -1, -1], [9, 10, 11, -1, -1]]
    assert found.before[1, 0] == 1 and found.before[2, :2].tolist() == [6, 7] and found.before[3, 0] == 10


def dataset(encoder, prompts):
    schema = PreferenceSchema.from_dict({"helpfulness": {"levels": 5, "score_range": [1, 5]}})
    rows = [{"prompt": prompt, "response": "good " * (i + 1), "labels": {}} for i, prompt in enumerate(prompts)]
    return RewardDataset.build(rows, schema, encoder, 100, "raise", 8, "rows")


def test_answers_to_a_prompt_make_blocks(encoder):
    base = dataset(encoder, ["red", "red", "blue", "red", "red", "blue"])
    together = AnswersTogether.build(base, 3)
    blocks = [np.flatnonzero(together.block_of == block).tolist() for block in range(together.blocks)]
    assert sorted(blocks) == [[0, 1, 3], [2, 5], [4]]  # the longest red one is left over
    assert AnswersTogether.build(base, 1).blocks == len(base)
    red, blue = (base.rows.prompt_lengths[row] for row in (0, 2))
    lengths = base.lengths
    first = (lengths[[0, 1, 3]].sum() - 2 * red) / 3
    second = (lengths[[2, 5]].sum() - blue) / 2
    np.testing.assert_allclose(together.lengths, [first, first, second, first, lengths[4], second])


def test_a_micro_batch_reads_a_prompt_once_for_its_neighbours(encoder):
    base = dataset(encoder, ["red", "red", "blue"])
    batch = AnswersTogether.build(base, 2).batch(np.array([0, 1, -1, -1, 2]))
    used = base.lengths.sum() - base.rows.prompt_lengths[0] + 1  # fillers share their one token
    assert batch.tokens.shape == (1, -(-used // 8) * 8) and batch.packing.cu_seqlens.tolist()[-2:][0] == used
    ends = [int(base.rows.row(row)[-1]) for row in range(3)]
    assert batch.tokens[0, batch.last_index].tolist() == [*ends[:2], base.pad_id, base.pad_id, ends[2]]
    rows = base.batch(np.array([0, 1, -1, -1, 2]))
    assert torch.equal(batch.targets, rows.targets) and torch.equal(batch.label_mask, rows.label_mask)
    for row, (place, length) in enumerate(zip(batch.packing.places, (rows.last_index + 1).tolist(), strict=True)):
        assert torch.equal(batch.tokens[0, place[:length]], rows.tokens[row, :length]) and (place[length:] == -1).all()


def test_attention_goes_by_rows_where_that_is_less_work():
    """Rows of 42, 98, 99 and 100 tokens. The first is a block of its own, since 98^2 / 2 - 42^2 / 2 = 3920 scores more
    are over the 2000 of a call. By rows 2 * 2000 + 1.3 * (42^2 / 2 + 3 * 100^2 / 2) = 24,647 scores, by prompts
    2 * 2000 + 2 + 235 * 237 and 2 * 2000 + 2 + 96 * 98, 73,107. A prompt of 80 tokens with four answers of 2: by rows
    2000 + 1.3 * 4 * 82^2 / 2 = 19,482, by prompts 2 * 2000 + 80^2 / 2 + 8 * 88 = 7,904."""
    prompts = arrays([7, 8], [7, 8], [7, 8], [9, 9])
    found = together(prompts, arrays(*([5] * size for size in (98, 97, 40, 96))), 0, 1).packing
    assert [list(block.shape) for block in found.blocks] == [[1, 42], [3, 100]]
    for block, rows in zip(found.blocks, ([2], [3, 1, 0]), strict=True):
        for places, row in zip(block, rows, strict=True):
            length = int((found.places[row] >= 0).sum())
            assert torch.equal(places[:length], found.places[row, :length]) and (places[length:] == 0).all()
    flat = torch.cat([block.flatten() for block in found.blocks])
    assert torch.equal(flat[found.back], torch.arange(len(found.back)))  # every token comes back to its place
    long_prompt = together(arrays(*[[7] * 80] * 4), arrays(*[[5, 5]] * 4), 0, 1).packing
    assert long_prompt.blocks == () and long_prompt.back is None


@given(st.lists(st.tuples(PARTS, st.lists(PARTS, min_size=1, max_size=3)), min_size=1, max_size=4), st.integers(1, 8))
def test_every_row_is_there_and_each_token_is_predicted_from_the_one_before(groups, multiple):
    rows = [(prompt, answer) for prompt, answers in groups for answer in answers]
    found = together(arrays(*(p for p, _ in rows)), arrays(*(a for _, a in rows)), 0, multiple)
    tokens, packing = found.tokens[0], found.packing
    assert len(tokens) % multiple == 0 and packing.cu_seqlens[-1] == len(tokens)
    assert int(packing.positions.max()) < packing.longest
    starts = packing.cu_seqlens[:-1]
    for row, (prompt, answer) in enumerate(rows):
        end = int(found.ends[row])
        start = int(starts[torch.searchsorted(packing.cu_seqlens, end, right=True) - 1])
        own = slice(end + 1 - len(answer), end + 1)
        assert tokens[start : start + len(prompt)].tolist() == prompt and tokens[own].tolist() == answer
        assert packing.positions[start : start + len(prompt)].tolist() == list(range(len(prompt)))
        assert packing.positions[own].tolist() == list(range(len(prompt), len(prompt) + len(answer)))
        assert packing.pieces[start : start + len(prompt)].tolist() == [0] * len(prompt)
        assert len(set(packing.pieces[own].tolist())) == 1 and int(packing.pieces[end]) > 0
        before = found.before[row, : len(answer)].tolist()
        assert tokens[before].tolist() == [prompt[-1], *answer[:-1]]
        assert packing.positions[before].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
