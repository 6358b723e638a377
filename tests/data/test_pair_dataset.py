"""Files of preference pairs and their batches."""

import json

import numpy as np
import pytest

from nemo_moslim.data.pair_dataset import PairDataset
from nemo_moslim.data.pairs import read_pairs, weighted_margins

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad", "objective": "helpfulness", "margins": {"honesty": 0.5}}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"chosen": None}, "chosen is missing"),
        ({"rejected": " "}, "rejected is empty"),
        ({"prompt": 3}, "prompt is not text"),
        ({"margins": [1]}, "margins is not a mapping"),
        ({"margins": {"honesty": "1"}}, "the margin of honesty is not a number"),
        ({"margins": {"honesty": True}}, "the margin of honesty is not a number"),
    ],
)
def test_malformed_pairs_are_located(tmp_path, change, match):
    assert read_pairs(write(tmp_path / "a.jsonl", PAIR)) == [PAIR]
    with pytest.raises(ValueError, match=rf"b\.jsonl:2: {match}"):
        read_pairs(write(tmp_path / "b.jsonl", PAIR, {**PAIR, **change}))


def test_margins_by_hand():
    rows = [PAIR, {**PAIR, "margins": {"honesty": -1.0, "harmless": 0.25}}]
    rows[0]["margins"]["harmless"] = 1.0
    margins, weight = weighted_margins(rows, {"helpfulness": 0.5, "honesty": 0.3, "harmless": 0.2}, 4.0, "a.jsonl")
    assert weight == 0.5 and margins == pytest.approx([4 * (0.15 + 0.2), 4 * (-0.3 + 0.05)])
    assert weighted_margins([PAIR], {"helpfulness": 1.0, "beauty": 0.0}, 4.0, "a.jsonl") == ([0.0], 1.0)


@pytest.mark.parametrize(
    ("rows", "weights", "match"),
    [
        ([PAIR], {"honesty": 1.0}, "helpfulness orders the pairs of a.jsonl, its weight must be above 0"),
        ([PAIR], {"helpfulness": 1.0, "beauty": 0.1}, "a.jsonl: row 1 has no margin of beauty"),
        ([PAIR, {**PAIR, "objective": "honesty"}], {"helpfulness": 1.0}, "got helpfulness, honesty"),
        ([{**PAIR, "objective": None}], {"helpfulness": 1.0}, "needs pairs of one objective, got None"),
    ],
)
def test_weights_that_do_not_fit_the_pairs_are_refused(rows, weights, match):
    with pytest.raises(ValueError, match=match):
        weighted_margins(rows, weights, 1.0, "a.jsonl")


def pair(chosen, rejected, prompt="red apple"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def build(encoder, pairs, **changes):
    options = dict(max_length=40, long_rows="raise", pad_multiple=8, origin="a.jsonl") | changes
    return PairDataset.build(pairs, [float(i) for i in range(len(pairs))], encoder, **options)


def test_a_batch_holds_the_better_answer_first(encoder):
    data = build(
        encoder, [pair("good apple", "bad"), pair("nice", "red pear and green", prompt="name"), pair("a", "b")]
    )
    data.ref_logprobs[:] = np.arange(6).reshape(3, 2)
    batch = data.batch(np.array([1, -1, 0]))
    assert batch.tokens.shape[0] == 6 and batch.tokens.shape[1] % 8 == 0 and len(batch) == 6
    assert batch.valid.tolist() == [True, False, True] and batch.margins.tolist() == [1.0, 0.0, 0.0]
    assert batch.ref_logprobs.tolist()[:2] == [2.0, 3.0] and batch.ref_logprobs.tolist()[4:] == [0.0, 1.0]
    for row, (prompt, answer) in {
        0: ("name", "nice"),
        1: ("name", "red pear and green"),
        5: ("red apple", "bad"),
    }.items():
        (before,), (response,) = encoder.encode_prompts([prompt]), encoder.encode_responses([answer])
        assert batch.prompt_lengths[row] == len(before) and batch.response_mask[row].sum() == len(response)
        assert batch.tokens[row, : len(before) + len(response)].tolist() == before + response
    assert not batch.response_mask[2:4].any()
    assert data.lengths.tolist()[2] == data.rows.lengths[4] + data.rows.lengths[5] and data.counted == 3


def test_both_answers_of_a_pair_lie_behind_one_prompt(encoder):
    pairs = [pair("good apple", "bad"), pair("nice", "red pear and green", prompt="name")]
    data = build(encoder, pairs, share_prompts=True)
    batch = data.batch(np.array([1, 0, -1]))
    tokens, before = batch.together.tokens[0], batch.together.before
    for row in range(4):
        prompt, answer = int(batch.prompt_lengths[row]), int(batch.response_mask[row].sum())
        places = before[row, :answer]
        assert tokens[places].tolist() == batch.tokens[row, prompt - 1 : prompt + answer - 1].tolist()
    assert before[0, 0] == before[1, 0] != before[2, 0] == before[3, 0]
    assert (tokens != data.pad_id).sum() == data.lengths.sum() - batch.prompt_lengths[[0, 2]].sum()
    assert data.batch(np.array([-1])).together.packing.cu_seqlens[-1] == data.pad_multiple


def test_a_pair_goes_with_the_answer_that_is_dropped(encoder):
    long = "apple pear red green blue good bad nice name some fruits they are is the a I tell you about them happy " * 3
    data = build(encoder, [pair("good", long), pair("good", "bad"), pair(long, "bad")], long_rows="drop")
    assert len(data) == 1 and data.margins.tolist() == [1.0] and data.rows.dropped == 2
    with pytest.raises(ValueError, match="a.jsonl: row 2 has"):
        build(encoder, [pair("good", long)])
    with pytest.raises(ValueError, match="no pair to use"):
        build(encoder, [pair("good", long)], long_rows="drop")
