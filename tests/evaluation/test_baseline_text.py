"""The TF-IDF floor on made-up rows whose words decide the level."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from made_rows import write_rows

from nemo_moslim.evaluation.against_text_baseline import against_text_baseline
from nemo_moslim.evaluation.baseline_text import row_text, text_baseline
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


def test_a_head_without_labelled_rows_is_a_dash(tmp_path, capsys):
    schema = {name: {"levels": levels, "score_range": [0, 1]} for name, levels in (("safe", 2), ("brief", 2))}
    rows = [{"prompt": "p", "response": "ab"[i % 2] * 5, "labels": {"safe": 1 + i % 2}} for i in range(8)]
    write_rows(tmp_path / "rows.jsonl", rows)
    np.savez(tmp_path / "result.npz", rows=np.arange(8), probabilities=np.full((8, 4), 0.5))
    config = SimpleNamespace(
        train=f"{tmp_path}/rows.jsonl", data=f"{tmp_path}/rows.jsonl", result=f"{tmp_path}/result.json",
        output=f"{tmp_path}/out.json", preferences=schema, bootstrap_samples=20,
    )  # fmt: skip
    against_text_baseline(config)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["safe"]["n"] == 8 and report["safe"]["baseline_accuracy"] == 1.0
    brief = report["brief"]
    assert brief.pop("n") == 0 and brief.pop("accuracy_gain") == brief.pop("macro_f1_gain")
    assert brief and set(brief.values()) == {None}
    assert "brief (n=0): accuracy - against - [-, -], majority -, of train -" in capsys.readouterr().out
