"""Answers to the same prompt in one sequence: what lies where."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.shared_prompts import PromptGroups, together
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
    assert found.before[1, 0] == 1 and found.before[2, :2].tolist() == [6, 7] and found.before[3, 0] == 10


def dataset(encoder, prompts):
    schema = PreferenceSchema.from_dict({"helpfulness": {"levels": 5, "score_range": [1, 5]}})
    rows = [{"prompt": prompt, "response": "good " * (i + 1), "labels": {}} for i, prompt in enumerate(prompts)]
    return RewardDataset.build(rows, schema, encoder, 100, "raise", 8, "rows")


def test_a_reward_models_rows_are_grouped_by_their_prompts(encoder):
    base = dataset(encoder, ["red", "red", "red", "blue", "blue", "red", "red", "red", "red"])
    groups = PromptGroups.of(base)  # three rows a prompt
    assert [group.tolist() for group in groups.groups] == [[0, 1, 2], [3, 4], [5, 6, 7], [8]] and groups.largest == 3
    red, blue = (base.rows.prompt_lengths[row] for row in (0, 3))
    saved = [2 * red, blue, 2 * red, 0]
    assert groups.lengths.tolist() == [
        base.lengths[g].sum() - less for g, less in zip(groups.groups, saved, strict=True)
    ]
    batch, rows = groups.batch(np.array([1, -1, 0])), groups.rows_of(np.array([1, -1, 0]))
    assert rows.tolist() == [3, 4, 0, 1, 2] and batch.rows.tolist() == [0] * 5
    ends = [base.rows.row(row)[-1] for row in rows]
    assert batch.tokens[0, batch.last_index].tolist() == ends and not batch.label_mask.any()
    assert len(groups.batch(np.array([-1])).last_index) == 1 and len(groups.rows_of(np.array([-1]))) == 0
    assert PromptGroups.of(dataset(encoder, ["red", "blue", "green", "green"])) is None


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
