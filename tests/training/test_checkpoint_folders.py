import json
from types import SimpleNamespace

import pytest

from nemo_moslim.run_folder import (
    best_record,
    checkpoint_name,
    is_run,
    list_checkpoints,
    mark_best,
    remove_checkpoint,
    resolve_checkpoint,
    step_of,
)
from nemo_moslim.training.telemetry import cut_metrics, read_metrics


def make(run_dir, *names, parts=("weights", "context")):
    for name in names:
        for part in parts:
            (run_dir / "checkpoints" / name / part).mkdir(parents=True)


def names(checkpoints):
    return [checkpoint.name for checkpoint in checkpoints]


def test_names_sort_by_step():
    assert (checkpoint_name(7), checkpoint_name(1234567)) == ("step=000007", "step=1234567")


def test_only_complete_checkpoints_are_listed_in_order(tmp_path):
    make(tmp_path, "step=000010", "step=000002", "step=1000000", "step=000010-exact", ".unfinished-step=000012")
    make(tmp_path, "step=000011", parts=("context",))
    assert names(list_checkpoints(tmp_path)) == ["step=000002", "step=000010", "step=000010-exact", "step=1000000"]
    assert names(list_checkpoints(tmp_path, with_optimizer=True)) == ["step=000002", "step=000010", "step=1000000"]
    assert step_of(tmp_path / "step=000010-exact") == 10
    assert list_checkpoints(tmp_path / "elsewhere") == []


def test_a_run_stands_for_its_best_else_its_last_checkpoint(tmp_path):
    make(tmp_path, "step=000002", "step=000004", "step=000006", ".unfinished-step=000008")
    assert resolve_checkpoint(tmp_path).name == "step=000006"
    mark_best(tmp_path, "step=000004", "score", 0.5)
    assert resolve_checkpoint(tmp_path).name == "step=000004"
    assert resolve_checkpoint(tmp_path / "checkpoints" / "step=000002").name == "step=000002"
    assert list((tmp_path / "checkpoints").glob(".best*")) == []


def test_a_best_that_is_not_there_does_not_count(tmp_path):
    make(tmp_path, "step=000002", ".unfinished-step=000004")
    mark_best(tmp_path, "step=000004", "score", 0.5)
    assert best_record(tmp_path) is None
    assert resolve_checkpoint(tmp_path).name == "step=000002"


def test_nothing_complete_is_an_error(tmp_path):
    make(tmp_path, ".unfinished-step=000004")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        resolve_checkpoint(tmp_path)
    assert is_run(tmp_path) and not is_run(tmp_path / "elsewhere")


def test_removal_takes_the_name_first(tmp_path, monkeypatch):
    make(tmp_path, "step=000002")
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)  # as if killed before the deletion
    remove_checkpoint(tmp_path / "checkpoints" / "step=000002")
    assert list_checkpoints(tmp_path) == []
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [".unfinished-step=000002"]


def test_metrics_after_the_checkpoint_and_half_lines_are_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 5)]
    file.write_text("\n".join(rows) + '\n{"step": 5, "lo')
    cut_metrics(file, 3)
    assert file.read_text().splitlines() == rows[:3]
    cut_metrics(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_answers_may_hold_unicodes_line_separators(tmp_path):
    file = tmp_path / "samples.jsonl"
    rows = [json.dumps({"step": step, "response": "a\u2028b\u2029c\x85d}"}, ensure_ascii=False) for step in range(1, 4)]
    cut_short = '{"step": 4, "response": "x}'
    file.write_text("\n".join([*rows, cut_short]), encoding="utf-8")
    cut_metrics(file, 2)
    assert file.read_text(encoding="utf-8") == "".join(row + "\n" for row in rows[:2])
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, cut_short]), encoding="utf-8")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_run_that_ends_before_its_first_step_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_metric_that_the_validation_rows_do_not_give_is_named(tmp_path):
    from nemo_moslim.training.checkpoint import RunCheckpoint

    trainer = SimpleNamespace(callback_metrics={"validation/loss": 1.0, "validation/score": 0.5, "grad_norm": 1.0})
    callback = RunCheckpoint(str(tmp_path), 1, 1, 1, "accuracy/honesty")
    with pytest.raises(ValueError, match="^trainer.monitor='accuracy/honesty': expected .* validation: loss, score$"):
        callback._is_better(trainer)
