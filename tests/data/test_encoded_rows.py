import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_moslim.data.encoded_rows import encode_rows, shorten

PROMPT, ANSWER = list(range(10, 18)), [1, 2, 3, 4, 5, 6, 7, 0]  # 8 + 8 tokens; 0 is the end


@pytest.mark.parametrize(
    ("max_length", "long_rows", "expected"),
    [
        (16, "raise", (PROMPT, ANSWER)),
        (16, "drop", (PROMPT, ANSWER)),
        (12, "cut_prompt", (PROMPT[4:], ANSWER)),
        (12, "cut_response", (PROMPT[2:], ANSWER[2:])),  # the prompt keeps half of 12, the answer its last 6
        (15, "cut_response", (PROMPT[1:], ANSWER)),  # half of 15 is 7; the whole answer still fits
        (8, "cut_prompt", (PROMPT[6:], ANSWER[2:])),  # a quarter of 8 stays of the prompt
        (8, "cut_response", (PROMPT[4:], ANSWER[4:])),
    ],
)
def test_shorten_by_hand(max_length, long_rows, expected):
    assert shorten(PROMPT, ANSWER, max_length, long_rows) == expected


def test_shorten_drops_and_refuses():
    assert shorten(PROMPT, ANSWER, 15, "drop") is None
    with pytest.raises(ValueError, match="16 tokens, over the model's 15: choose long_rows=drop.*batch.long_rows"):
        shorten(PROMPT, ANSWER, 15, "raise")


@given(
    prompt=st.integers(1, 30), response=st.integers(1, 30), max_length=st.integers(4, 40),
    rule=st.sampled_from(["cut_prompt", "cut_response"]),
)  # fmt: skip
def test_a_shortened_row_fits_and_keeps_both_ends(prompt, response, max_length, rule):
    before, after = list(range(100, 100 + prompt)), list(range(200, 200 + response))
    short = shorten(before, after, max_length, rule)
    assert len(short[0]) + len(short[1]) == min(prompt + response, max_length)
    assert short[0] and before[-len(short[0]) :] == short[0]
    assert short[1] and after[-len(short[1]) :] == short[1]


ROWS = [
    {"prompt": "nice name", "response": "good"},
    {"prompt": "apple", "response": "red " * 60},
    {"prompt": "some fruits", "response": "they are red"},
]


def test_rows_lie_flat_with_their_prompts_and_ends(encoder):
    rows = encode_rows(ROWS, encoder, 512, "raise", "file")
    assert len(rows) == 3 and rows.kept.tolist() == [0, 1, 2] and (rows.cut, rows.dropped) == (0, 0)
    assert rows.tokens.dtype == np.int32
    for index, row in enumerate(ROWS):
        prompt, response = encoder.encode_prompts([row["prompt"]])[0], encoder.encode_responses([row["response"]])[0]
        assert rows.row(index).tolist() == prompt + response
        assert rows.prompt_lengths[index] == len(prompt) and rows.lengths[index] == len(prompt + response)
        assert rows.row(index)[-1] == encoder.eos_id


def test_dropped_and_cut_rows_are_counted(encoder):
    dropped = encode_rows(iter(ROWS), encoder, 64, "drop", "file")
    assert dropped.kept.tolist() == [0, 2] and (dropped.cut, dropped.dropped) == (0, 1)
    cut = encode_rows(ROWS, encoder, 64, "cut_response", "file")
    assert cut.kept.tolist() == [0, 1, 2] and (cut.cut, cut.dropped) == (1, 0)
    assert cut.lengths[1] == 64 and cut.row(1)[-1] == encoder.eos_id


def test_too_long_rows_name_file_and_row(encoder):
    with pytest.raises(ValueError, match="train.jsonl: row 2 has .* tokens, over the model's 64:"):
        encode_rows(ROWS, encoder, 64, "raise", "train.jsonl")
    with pytest.raises(ValueError, match="train.jsonl: no rows to use \\(3 dropped"):
        encode_rows(ROWS, encoder, 4, "drop", "train.jsonl")


def test_more_rows_than_one_encoding_batch(encoder, monkeypatch):
    monkeypatch.setattr("nemo_moslim.data.encoded_rows.ENCODE_BATCH", 2)
    whole = encode_rows(ROWS * 3, encoder, 64, "drop", "file")
    assert whole.kept.tolist() == [0, 2, 3, 5, 6, 8] and whole.dropped == 3
