"""The TF-IDF floor on made-up rows whose words decide the level."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from nemo_moslim.evaluation import baseline_text
from nemo_moslim.evaluation.against_text_baseline import compare_head, head_line
from nemo_moslim.evaluation.baseline_text import most_frequent, row_text, text_baseline
from nemo_moslim.evaluation.reward_accuracy import reward_metrics
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(
    dimensions=(Dimension("helpful", 3, (1, 3)), Dimension("safe", 2, (0, 1)), Dimension("brief", 2, (0, 1)))
)
WORDS = {1: "useless nonsense", 2: "a partial reply", 3: "full thorough detail"}


def make_rows(seed, count):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        helpful, safe = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        filler = " ".join(rng.choice(["river", "stone", "cloud", "tree"], 5))
        text = f"{filler} {WORDS[helpful]} {'you fool' if safe == 1 else 'dear friend'}"
        labels = {"helpful": helpful} if rng.random() < 0.5 else {"safe": [0.9, 0.1] if safe == 1 else 2}
        rows.append({"prompt": "Tell me.", "response": text, "labels": labels, "levels": [helpful, safe, 0]})
    return rows


def test_learns_each_head_from_its_own_rows_and_answers_for_every_row():
    train, validation = make_rows(0, 120), make_rows(1, 40)
    probabilities = text_baseline(train, validation, SCHEMA)
    truth = np.array([row["levels"] for row in validation])
    metrics = reward_metrics(probabilities, truth, SCHEMA, "per_head")
    assert metrics["helpful"]["accuracy"] == 1.0 and metrics["safe"]["accuracy"] == 1.0
    assert metrics["helpful"]["majority"] < 0.6
    assert np.array_equal(probabilities[:, 5:], np.full((40, 2), 0.5))  # brief: no row to learn from


def test_a_level_never_seen_gets_no_probability():
    train = [row for row in make_rows(2, 80) if row["labels"].get("helpful") != 3]
    probabilities = text_baseline(train, make_rows(3, 5), SCHEMA)
    assert np.array_equal(probabilities[:, 2], np.zeros(5))
    assert np.allclose(probabilities[:, :2].sum(1), 1.0)


def test_ties_for_the_last_features_go_by_the_alphabet(monkeypatch):
    """scikit-learn's own max_features breaks them by a sort that is not stable."""
    counts = np.ones(5000, dtype=int)
    counts[[4999, 17]] = 2, 3
    assert most_frequent(counts, 6).tolist() == [0, 1, 2, 3, 17, 4999]
    assert most_frequent(counts, 9000).tolist() == list(range(5000))
    # Each of 300 words occurs once; the first of the alphabet, "a000", is all that a limit of one leaves of them.
    monkeypatch.setattr(baseline_text, "MAX_FEATURES", 1)
    words = [f"a{number:03}" for number in range(300)]
    train = [{"prompt": "?", "response": word, "labels": {"safe": 1 + (word == "a000")}} for word in words[::-1]]
    asked = [{"prompt": "?", "response": word} for word in words[:3]]
    known, other, third = text_baseline(train, asked, SCHEMA)[:, 4]
    assert known > 2 * other and other == third


def test_one_level_in_training_is_certain():
    train = [{"prompt": "a", "response": "b", "labels": {"safe": 2}}]
    assert text_baseline(train, make_rows(4, 3), SCHEMA)[:, 3:5].tolist() == [[0.0, 1.0]] * 3


def test_text_of_a_row_and_errors():
    assert row_text("p", "r") == "p\nr"
    assert text_baseline(make_rows(0, 30), [], SCHEMA).shape == (0, 7)
    with pytest.raises(ValueError, match="no training row carries a label"):
        text_baseline([{"prompt": "a", "response": "b", "labels": {}}], [], SCHEMA)
    with pytest.raises(ValueError, match="row 0: unknown dimension"):
        text_baseline([{"prompt": "a", "response": "b", "labels": {"kind": 1}}], [], SCHEMA)


def dialogue(text):
    return [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": text}]  # fmt: skip


def test_dialogues_are_read_message_by_message():
    assert row_text(dialogue("Tell me."), "Yes.") == "Hello.\nHi.\nTell me.\nYes."
    train, validation = ([{**row, "prompt": dialogue(row["prompt"])} for row in make_rows(s, 60)] for s in (0, 1))
    assert text_baseline(train, validation, SCHEMA).shape == (60, 7)


def test_a_head_without_labelled_rows_is_a_dash():
    levels, nothing = np.array([1, 2, 2, 1]), np.zeros(4, dtype=int)
    samples = SimpleNamespace(bootstrap_samples=20)
    rated = compare_head(levels, levels, np.array([1, 1, 2, 1]), levels, 2, samples)
    assert (rated["n"], rated["accuracy"], rated["baseline_accuracy"], rated["majority_train"]) == (4, 1.0, 0.75, 0.5)
    assert "brief (n=4): accuracy 1.0000 against 0.7500 [+0.0000, +" in head_line("brief", rated)
    only_here = compare_head(levels, levels, levels, nothing, 2, samples)
    assert only_here["majority_train"] is None and "of train -; macro-F1 1.0000" in head_line("brief", only_here)
    empty = compare_head(nothing, levels, levels, levels, 2, samples)
    assert "brief (n=0): accuracy - against - [-, -], majority -, of train -; macro-F1 - against - [-, -]" == head_line(
        "brief", empty
    )
    assert json.loads(json.dumps(empty, allow_nan=False))["macro_f1_gain"]["low"] is None
