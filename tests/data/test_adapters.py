import pytest

from nemo_moslim.data.adapters import Layout, find_field, prompt_record, rating_records, sft_record
from nemo_moslim.data.rows import RowError
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema((Dimension("helpfulness", 5, (1, 5)), Dimension("harmless", 2, (0, 1))))
ULTRA = Layout(
    prompt="instruction",
    items="completions",
    dimensions={"helpfulness": "annotations.helpfulness.Rating", "harmless": "annotations.safety"},
    text_numbers=True,
)
TABLE = Layout(dimensions={"helpfulness": "helpfulness", "harmless": "harmless"})


def records(row, layout=TABLE, text_numbers=False):
    return list(rating_records(row, layout, SCHEMA, 1000, text_numbers))


def test_native_ultrafeedback():
    def completion(rating):
        return {"model": "m", "response": "r", "annotations": {"helpfulness": {"Rating": rating, "Rationale": "x"}}}

    row = {"source": "s", "instruction": "i", "completions": [completion(rating) for rating in ("3", "N/A", "9")]}
    good, unlabelled, bad = records(row, ULTRA)
    assert good == {"prompt": "i", "response": "r", "labels": {"helpfulness": 3}, "source": "s", "model": "m"}
    assert unlabelled["labels"] == {}
    assert isinstance(bad, RowError) and "completions[2]" in str(bad) and bad.kind == "helpfulness is out of range"
    for broken in (None, [], "x", {"a": 1}):
        (error,) = records({"instruction": "i", "completions": broken}, ULTRA)
        assert isinstance(error, RowError)
    (error,) = records({"instruction": "i", "completions": [7]}, ULTRA)
    assert "completions[0]" in str(error)


def test_safety_scores_zero_to_one():
    row = {
        "instruction": "i",
        "completions": [{"response": "r", "annotations": {"safety": score}} for score in ("0", 1)],
    }
    assert [record["labels"] for record in records(row, ULTRA)] == [{"harmless": 1}, {"harmless": 2}]


def test_table_keeps_other_columns():
    row = {"source": "s", "prompt": "p", "response": "r", "helpfulness": 4, "harmless": None, "id": 3, "honesty": 2}
    labels = {"helpfulness": 4}
    assert records(row) == [{"prompt": "p", "response": "r", "labels": labels, "source": "s", "id": 3, "honesty": 2}]
    (error,) = records({**row, "labels": 1})
    assert error.kind == "column labels is in the way"
    (record,) = records({"prompt": "p", "response": "r", "helpfulness": "4", "harmless": ""}, text_numbers=True)
    assert record["labels"] == {"helpfulness": 4}


def test_fields_replace_the_layout():
    layout = Layout.from_config(
        {"prompt": "prompt", "response": "response"},
        {"prompt": "q.text", "response": None, "dimensions": {"harmless": "scores.safe"}},
        SCHEMA,
    )
    row = {"q": {"text": "p"}, "response": "r", "helpfulness": 5, "scores": {"safe": 0}}
    (record,) = records(row, layout)
    assert (record["prompt"], record["labels"]) == ("p", {"helpfulness": 5, "harmless": 1})
    for fields, match in (
        ({"promt": "x"}, "unknown key promt"),
        ({"dimensions": {"tone": "x"}}, "unknown dimension 'tone'"),
        ({"prompt": 3}, "path of prompt"),
    ):
        with pytest.raises(ValueError, match=match):
            Layout.from_config({}, fields, SCHEMA)


def test_find_field():
    assert find_field({"a": {"b": 1}}, "a.b") == 1
    assert find_field({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert find_field({"a": 1}, "a.b") is None
    assert find_field({}, "a.b") is None


def test_sft_layouts():
    def pair(row):
        record = sft_record(row, TABLE, 1000)
        return record["prompt"], record["response"]

    assert pair({"prompt": "p", "response": "r"}) == ("p", "r")
    assert pair({"instruction": "i", "input": "", "output": "o"}) == ("i", "o")
    assert pair({"instruction": "i", "input": None, "output": "o"}) == ("i", "o")
    assert pair({"instruction": "i", "input": "x", "output": "o"}) == ("i\n\nx", "o")
    assert pair({"chosen": "\n\nHuman: p\n\nAssistant: r", "rejected": "z"}) == ("p", "r")
    for bad in (
        {},
        {"prompt": "p"},
        {"output": "o"},
        {"instruction": "i", "output": ""},
        {"chosen": "p"},
        {"response": "r"},
        {"instruction": "i", "input": 3, "output": "o"},
    ):
        with pytest.raises(RowError):
            sft_record(bad, TABLE, 1000)


def test_prompt_layouts():
    assert prompt_record({"prompt": "p", "source": "s", "turn": 1}, TABLE, 1000) == {"prompt": "p", "source": "s"}
    assert prompt_record({"instruction": "i", "input": "x"}, TABLE, 1000) == {"prompt": "i\n\nx"}
    assert prompt_record({"chosen": "\n\nHuman: p\n\nAssistant: r"}, TABLE, 1000) == {"prompt": "p"}
    assert prompt_record({"instruction": "i"}, ULTRA, 1000) == {"prompt": "i"}
    with pytest.raises(RowError, match="no prompt"):
        prompt_record({"text": "p"}, TABLE, 1000)
