"""What a run leaves: the best checkpoint, the kept ones, exact statistics, early stopping; and how it refuses."""

import json

import numpy as np
import pytest
from grids import grid
from training_client import metrics, weights

from nemo_moslim.run_folder import best_record, list_checkpoints

LEVELS = {"helpfulness": 5, "honesty": 5, "harmless": 2}


def test_best_is_marked_and_kept_beside_the_newest(trainings, reward_arguments, tmp_path):
    steps = ["trainer.validate_every=2", "trainer.checkpoint_every=4", "trainer.keep_checkpoints=1"]
    trainings.train("train_rm", *reward_arguments, *steps, f"run_dir={tmp_path}", "trainer.monitor=loss")
    losses = {row["step"]: row["validation"]["loss"] for row in metrics(tmp_path) if "validation" in row}
    assert list(losses) == list(range(2, 11, 2))
    best, record = min(losses, key=losses.get), best_record(tmp_path)
    assert record["checkpoint"] == f"step={best:06d}" and record["metric"] == "loss"
    assert record["value"] == pytest.approx(losses[best], rel=1e-6)
    assert {p.name for p in list_checkpoints(tmp_path)} == {f"step={best:06d}", "step=000010"}


def test_early_stopping_ends_a_run_that_no_longer_improves(trainings, reward_arguments, tmp_path):
    still = ["optimizer.lr=1e-30", "optimizer.min_lr=0", "optimizer.weight_decay=0", "trainer.validate_every=2"]
    command = [*reward_arguments, *still, f"run_dir={tmp_path}", "trainer.early_stop_patience=2"]
    trainings.train("train_rm", *command)
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 7))  # best at 2, patience spent at 4 and 6
    assert best_record(tmp_path)["checkpoint"] == "step=000002"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 6

    trainings.train("train_rm", *command)  # the same command again: what is ended stays ended
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 7))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 6
    trainings.train("train_rm", *command[:-1], "trainer.early_stop_patience=3")
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 9))


def test_tensorboard_and_wandb_get_what_metrics_jsonl_gets(trainings, reward_arguments, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = ["trainer.tensorboard=true", "trainer.wandb_project=tests", "trainer.max_steps=4"]
    trainings.train("train_rm", *reward_arguments, *loggers, "trainer.validate_every=4", f"run_dir={tmp_path}")
    rows = metrics(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([row["loss"] for row in rows])
    last = rows[-1]["validation"]["loss"]
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [(4, pytest.approx(last))]
    (offline,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert offline.stat().st_size > 1000


@pytest.mark.parametrize("ranks", grid([1, 2], 2))
def test_exact_statistics_are_those_of_a_pass_over_the_rows(trainings, reward_arguments, rating_dir, ranks, tmp_path):
    command = [*reward_arguments, f"run_dir={tmp_path}", "statistics.mode=exact", "trainer.max_steps=10"]
    command += ["trainer.validate_every=5", "trainer.checkpoint_every=5", f"parallel.pipeline={ranks}"]
    trainings.train("train_rm", *command, ranks=ranks)
    name = best_record(tmp_path)["checkpoint"]
    assert name.endswith("-exact")
    exact = tmp_path / "checkpoints" / name
    trained = exact.with_name(name.removesuffix("-exact"))
    assert [p.name for p in list_checkpoints(tmp_path, with_optimizer=True)] == ["step=000005", "step=000010"]
    state, source = weights(exact), weights(trained)
    assert not any("exp_avg" in key for key in state)
    assert state.keys() == {key for key in source if not key.startswith("optimizer.")}
    probe = dict(run_dir=str(tmp_path), checkpoint_of=str(trained), data=str(rating_dir))
    p = np.array(trainings.run("head_probabilities", **probe).results()[0])
    ratings = [json.loads(line) for line in (rating_dir / "train.jsonl").read_text().splitlines()]
    offset = 0
    for dimension, levels in LEVELS.items():
        rows = p[[dimension in rating["labels"] for rating in ratings]][:, offset : offset + levels]
        for part, expected in (("weight", len(rows)), ("mean", rows.mean(0)), ("variance", rows.var(0))):
            got = state[f"module.output_layer.statistics_{part}"][offset : offset + levels].numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-3 if part == "variance" else 1e-5)
        offset += levels
    for key in (k for k in state if k.startswith("module.") and "statistics" not in k):
        np.testing.assert_array_equal(state[key].numpy(), source[key].numpy(), err_msg=key)
    trainings.train("train_rm", *command, ranks=ranks)
    assert best_record(tmp_path)["checkpoint"] == name


def test_mean_of_the_newest_checkpoints(trainings, reward_arguments, rating_dir, tmp_path):
    command = [*reward_arguments, f"run_dir={tmp_path}", "average_checkpoints=2", "trainer.max_steps=15"]
    command += ["trainer.validate_every=5", "trainer.checkpoint_every=5", "trainer.keep_checkpoints=2"]
    trainings.train("train_rm", *command, "trainer.monitor=loss", ranks=2)
    averaged = tmp_path / "checkpoints" / "step=000015-averaged"
    first, second, mean = (
        weights(folder) for folder in (averaged.with_name("step=000010"), averaged.with_name("step=000015"), averaged)
    )
    learnt = [key for key in mean if key.startswith("module.") and "statistics" not in key]
    assert any(not np.array_equal(first[key], second[key]) for key in learnt)
    for key in learnt:
        expected = (first[key].double() + second[key].double()) / 2
        np.testing.assert_allclose(mean[key].double(), expected, rtol=1e-6, atol=1e-8, err_msg=key)
    probe = dict(run_dir=str(tmp_path), checkpoint_of=str(averaged), data=str(rating_dir))
    p = np.array(trainings.run("head_probabilities", **probe).results()[0])
    ratings = [json.loads(line) for line in (rating_dir / "train.jsonl").read_text().splitlines()]
    helpfulness = p[["helpfulness" in rating["labels"] for rating in ratings]][:, :5]
    np.testing.assert_allclose(mean["module.output_layer.statistics_mean"][:5], helpfulness.mean(0), rtol=1e-5)
    losses = {row["step"]: row["validation"]["loss"] for row in metrics(tmp_path) if "validation" in row}
    record = best_record(tmp_path)
    if record["checkpoint"] == averaged.name:
        assert record["value"] < min(losses.values())
    else:
        assert record["value"] == pytest.approx(min(losses.values()), rel=1e-6)
    trainings.train("train_rm", *command, "trainer.monitor=loss", ranks=2)  # the same command again changes nothing
    assert best_record(tmp_path) == record


@pytest.fixture(scope="module")
def refusals(trainings, reward_arguments, rating_dir, tokenizer_dir, sft_run, tmp_path_factory):
    """Exit code and stderr of each wrong command, by name."""
    folder = tmp_path_factory.mktemp("refusals")
    other = folder / "other_schema"
    other.mkdir()
    for file in ("train.jsonl", "validation.jsonl"):
        (other / file).write_text((rating_dir / file).read_text())
    entry = {"levels": 3, "score_range": [1, 3], "levels_from": 1}
    (other / "manifest.json").write_text(json.dumps({"schema": {"tone": entry}}))
    empty = folder / "empty"
    empty.mkdir()
    long_row = folder / "long"
    long_row.mkdir()
    (long_row / "validation.jsonl").write_text((rating_dir / "validation.jsonl").read_text())
    row = {"prompt": "a", "response": "good " * 90, "labels": {"helpfulness": 1}}
    (long_row / "train.jsonl").write_text(json.dumps(row) + "\n")
    command = [*reward_arguments, f"run_dir={folder}/run"]
    no_init = [argument for argument in command if not argument.startswith("model.init")]
    cases = {
        "no data": [*command, f"data={folder}/nothing"],
        "other schema": [*command, f"data={other}"],
        "world size": [*command, "parallel.tensor=2"],
        "one level": [*command, "preferences=datatype1", f"data={rating_dir}"],
        "no tokenizer": no_init,
        "not a tokenizer": [*no_init, f"tokenizer={empty}"],
        "not a model": [*command, f"model.init={empty}"],
        "long row": [*command, f"data={long_row}"],
        "unknown key": [*command, "trainer.max_step=3"],
        "wrong type": [*command, "trainer.max_steps=many"],
        "out of range": [*command, "model.hidden_dropout=1.5"],
        "missing": [argument for argument in command if not argument.startswith("data=")],
        "fp8": [*command, "precision=fp8"],
        "batch": [*command, "batch.global_size=18"],
        "monitor": [*command, "trainer.monitor=acuracy"],
    }
    results = trainings.run("call_with_errors", entry="train_rm", cases=list(cases.values())).results()[0]
    return dict(zip(cases, results, strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no data", ["data=", "train.jsonl", "prepare_data"]),
        ("other schema", ["preferences", "tone 3", "helpfulness 5"]),
        ("world size", ["parallel: tensor=2", "multiple of 2 ranks, got 1"]),
        ("one level", ["per_head", "preferences.helpfulness.levels", "loss=joint"]),
        ("no tokenizer", ["tokenizer is not set", "tokenizer=DIR"]),
        ("not a tokenizer", ["tokenizer=", "not a Hugging Face tokenizer folder"]),
        ("not a model", ["model.init=", "neither a run directory"]),
        ("long row", ["train.jsonl", "row 1", "over the model's 64", "batch.long_rows", "model.max_length"]),
        ("unknown key", ["trainer.max_step", "trainer.max_steps"]),
        ("wrong type", ["trainer.max_steps", "many"]),
        ("out of range", ["model.hidden_dropout=1.5", "[0, 1)"]),
        ("missing", ["data is not set"]),
        ("fp8", ["precision=fp8", "precision=bf16"]),
        ("batch", ["18", "batch.global_size", "batch.micro_size"]),
        ("monitor", ["trainer.monitor='acuracy'", "accuracy/honesty", "loss", "score"]),
    ],
)
def test_a_users_error_is_one_line_with_exit_code_2(refusals, name, words):
    result = refusals[name]
    assert result["code"] == 2, result
    assert result["stderr"].startswith("error: ") and result["stderr"].count("\n") == 1
    for word in words:
        assert word in result["stderr"]
