"""Stopped or killed at any moment and started again by the same command, a run ends as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from grids import grid
from training_client import metrics, steps_done, wait_for, weights

from nemo_moslim.run_folder import list_checkpoints

LAST = "step=000012"
LAYOUTS = {"one rank": (1, []), "TP=2": (2, ["parallel.tensor=2"]), "DP=2": (2, [])}


@pytest.fixture(scope="module")
def arguments(reward_arguments):
    """Twelve steps with dropout; step 7 neither validates nor saves, 4 and 8 validate, 12 does both."""
    steps = ["trainer.max_steps=12", "trainer.validate_every=4", "trainer.checkpoint_every=3"]
    return [*reward_arguments, *steps, "model.hidden_dropout=0.1", "model.attention_dropout=0.1"]


@pytest.fixture(scope="module")
def straight(trainings, arguments, tmp_path_factory):
    """Run directory of an uninterrupted run per layout, made once."""
    made = {}

    def run(name):
        if name not in made:
            ranks, layout = LAYOUTS[name]
            made[name] = tmp_path_factory.mktemp("straight")
            trainings.train("train_rm", *arguments, *layout, f"run_dir={made[name]}", ranks=ranks)
        return made[name]

    return run


def assert_same_run(run_dir, expected, last=LAST):
    """Weights, optimizer, statistics and metrics to the bit; the same best checkpoint; nothing unfinished left."""
    assert metrics(run_dir) == metrics(expected)
    mine, theirs = (weights(folder / "checkpoints" / last) for folder in (run_dir, expected))
    assert mine.keys() == theirs.keys()
    assert any("exp_avg_sq" in name for name in mine) and any("statistics_variance" in name for name in mine)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    best, expected_best = ((f / "checkpoints" / "best.json").read_text() for f in (run_dir, expected))
    assert best == expected_best
    assert list((run_dir / "checkpoints").glob(".*")) == []


def test_dropout_is_at_work(straight, trainings, arguments, tmp_path):
    trainings.train("train_rm", *arguments, "model.hidden_dropout=0", f"run_dir={tmp_path}", "trainer.max_steps=1")
    assert metrics(tmp_path)[0]["loss"] != metrics(straight("one rank"))[0]["loss"]


@pytest.mark.parametrize("layout", grid(LAYOUTS, "DP=2"))
def test_sigterm_saves_at_the_step_boundary_and_the_run_resumes(layout, straight, trainings, arguments, tmp_path):
    ranks, split = LAYOUTS[layout]
    command = [*arguments, *split, f"run_dir={tmp_path}"]
    stopped = trainings.train("train_rm", *command, ranks=ranks, fault={"moment": "sigterm", "step": 7})
    assert "stopping at step 7" in stopped.output()
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 8))
    assert (tmp_path / "checkpoints" / "step=000007" / "weights").is_dir()
    assert json.loads((tmp_path / "summary.json").read_text())["finished"] is False
    trainings.train("train_rm", *command, ranks=ranks)
    assert_same_run(tmp_path, straight(layout))
    summary, expected = (json.loads((run / "summary.json").read_text()) for run in (tmp_path, straight(layout)))
    assert summary["finished"] is True and summary["tokens"] == expected["tokens"]  # those before the stop included


@pytest.mark.exhaustive  # from outside: test_policy_resume.py
def test_sigterm_at_a_validation_step_and_from_outside(straight, trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    trainings.train("train_rm", *command, fault={"moment": "sigterm", "step": 8})
    assert metrics(tmp_path) == metrics(straight("one rank"))[:8]
    job = trainings.start("train", entry="train_rm", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= 9, job)
    job.signal(signal.SIGTERM)
    assert trainings.wait(job) == [0]
    trainings.train("train_rm", *command)
    assert_same_run(tmp_path, straight("one rank"))


def test_killed_in_the_middle_of_every_moment_of_a_checkpoint(straight, trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    best = json.loads((straight("one rank") / "checkpoints" / "best.json").read_text())["checkpoint"]
    assert best == "step=000004"  # the step at which "unmarked" is tried below
    for moment, step in [("writing", 3), ("unmarked", 4), ("unnamed", 4), ("unnamed", 6), ("writing", 9)]:
        fault = {"moment": moment, "step": step}
        job = trainings.start("train", entry="train_rm", arguments=command, fault=fault)
        assert trainings.wait(job) == [-signal.SIGKILL], job.output()[-3000:]
        folder = tmp_path / "checkpoints"
        assert [p.name for p in folder.glob(".unfinished-*")] == [f".unfinished-step={step:06d}"]
        assert not (folder / f"step={step:06d}").exists()
        assert all(checkpoint.name < f"step={step:06d}" for checkpoint in list_checkpoints(tmp_path))
    trainings.train("train_rm", *command)
    assert_same_run(tmp_path, straight("one rank"))


@pytest.mark.parametrize("seed", range(int(os.environ.get("MOSLIM_RANDOM_KILLS", "0"))))
def test_a_kill_at_a_random_moment(seed, straight, trainings, arguments, tmp_path):
    """Some seconds into some step, in each layout by turns: `MOSLIM_RANDOM_KILLS=10` for ten of them."""
    source, name = random.Random(f"kill {seed}"), list(LAYOUTS)[seed % len(LAYOUTS)]
    ranks, split = LAYOUTS[name]
    command, steps = [*arguments, *split, f"run_dir={tmp_path}"], source.randint(0, 11)
    job = trainings.start("train", ranks, entry="train_rm", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= steps, job)
    time.sleep(source.uniform(0, 2))
    with contextlib.suppress(ProcessLookupError):  # it may have ended
        job.signal(signal.SIGKILL)
    codes = trainings.wait(job)
    print(f"seed {seed}, {name}: killed after {steps_done(tmp_path)} logged steps, codes {codes}")
    trainings.train("train_rm", *command, ranks=ranks)
    assert_same_run(tmp_path, straight(name))


@pytest.mark.exhaustive  # a rank that ends alone: test_torchrun.py; what a kill leaves: the test of its moments above
def test_one_rank_of_two_killed_between_checkpoints(straight, trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    job = trainings.start("train", ranks=2, entry="train_rm", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= 5, job)
    job.signal(signal.SIGKILL, ranks=[1])
    assert trainings.wait(job)[1] == -signal.SIGKILL
    trainings.train("train_rm", *command, ranks=2)
    assert_same_run(tmp_path, straight("DP=2"))


def test_bf16_resumes_and_keeps_the_head_in_fp32(trainings, arguments, tmp_path):
    command = [*arguments, "precision=bf16"]
    trainings.train("train_rm", *command, f"run_dir={tmp_path}/straight")
    trainings.train("train_rm", *command, f"run_dir={tmp_path}/resumed", fault={"moment": "sigterm", "step": 7})
    trainings.train("train_rm", *command, f"run_dir={tmp_path}/resumed")
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    state = weights(tmp_path / "straight" / "checkpoints" / LAST)
    head = {name: value.dtype for name, value in state.items() if name.startswith("module.output_layer.")}
    assert len(head) == 4 and set(head.values()) == {torch.float32}
    backbone = {value.dtype for name, value in state.items() if name.startswith("module.decoder.")}
    assert torch.bfloat16 in backbone


def test_a_finished_run_started_again_changes_nothing(straight, trainings, arguments, tmp_path):
    shutil.copytree(straight("one rank"), tmp_path / "run")
    trainings.train("train_rm", *arguments, f"run_dir={tmp_path}/run")
    assert_same_run(tmp_path / "run", straight("one rank"))
