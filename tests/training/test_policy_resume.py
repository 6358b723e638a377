"""A policy run that is stopped or killed in any phase and started again ends as if nothing had happened."""

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

PPO = ["algorithm=ppo", "algorithm.samples=2", "algorithm.epochs=2", "batch.mini_size=8", "algorithm.kl_target=1.0"]
LAYOUTS = {"one rank": (1, []), "DP=2": (2, [])}


@pytest.fixture(scope="module")
def arguments(policy_arguments):
    """Six steps; a checkpoint every second, a validation every third."""
    steps = ["trainer.max_steps=6", "trainer.validate_every=3", "trainer.checkpoint_every=2"]
    return [*policy_arguments, *PPO, *steps]


@pytest.fixture(scope="module")
def straight(trainings, arguments, tmp_path_factory):
    """Run directory of an uninterrupted run per layout, made once."""
    made = {}

    def run(name):
        if name not in made:
            ranks, layout = LAYOUTS[name]
            made[name] = tmp_path_factory.mktemp("straight")
            trainings.train("train_policy", *arguments, *layout, f"run_dir={made[name]}", ranks=ranks)
        return made[name]

    return run


def assert_same_run(run_dir, expected):
    """Policy, critic, optimizers, controller, samples and metrics to the bit; nothing unfinished left."""
    assert metrics(run_dir) == metrics(expected)
    assert (run_dir / "samples.jsonl").read_text() == (expected / "samples.jsonl").read_text()
    for part in ("", "critic"):
        mine, theirs = (weights(folder / "checkpoints" / "step=000006" / part) for folder in (run_dir, expected))
        assert mine.keys() == theirs.keys() and any("exp_avg_sq" in name for name in mine)
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    states = [(f / "checkpoints" / "step=000006" / "loop.json").read_text() for f in (run_dir, expected)]
    assert states[0] == states[1] and json.loads(states[0])["kl_coef"] != 0.05
    assert list((run_dir / "checkpoints").glob(".*")) == []
    best = [(f / "checkpoints" / "best.json").read_text() for f in (run_dir, expected)]
    assert best[0] == best[1]


@pytest.mark.parametrize(
    ("moment", "count"),
    grid(
        [("collect", 4), ("prepare", 5), ("update", 19), ("policy checkpoint", 3), ("old checkpoints", 2)],
        ("policy checkpoint", 3),
    ),
)
def test_a_kill_in_any_phase(moment, count, straight, trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    job = trainings.start("train", entry="train_policy", arguments=command, fault={"moment": moment, "step": count})
    assert trainings.wait(job) == [-signal.SIGKILL]
    assert len(list_checkpoints(tmp_path)) <= 3
    trainings.train("train_policy", *command)
    assert_same_run(tmp_path, straight("one rank"))


@pytest.mark.exhaustive  # the controller's state: PPO's coefficient above
def test_online_dpo_resumes_with_the_beta_it_was_at(trainings, arguments, tmp_path):
    settings = ["algorithm=online_dpo", "algorithm.samples=2", "algorithm.pairs=all", "algorithm.reward_scale=1.0"]
    settings += ["algorithm.kl_target=1.0", "algorithm.kl_horizon=100", "batch.mini_size=8", "trainer.max_steps=4"]
    command = [argument for argument in arguments if argument not in PPO] + settings
    straight, killed = ([*command, f"run_dir={tmp_path}/{name}"] for name in ("straight", "killed"))
    trainings.train("train_policy", *straight)
    fault = {"moment": "prepare", "step": 4}
    job = trainings.start("train", entry="train_policy", arguments=killed, fault=fault)
    assert trainings.wait(job) == [-signal.SIGKILL] and metrics(tmp_path / "killed")[-1]["step"] == 3
    trainings.train("train_policy", *killed)
    expected, rows = (metrics(tmp_path / name) for name in ("straight", "killed"))
    assert rows == expected and len({row["beta"] for row in rows if "beta" in row}) == 4
    mine, theirs = (weights(tmp_path / name / "checkpoints" / "step=000004") for name in ("killed", "straight"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(int(os.environ.get("MOSLIM_RANDOM_KILLS", "1"))))
def test_a_kill_at_a_random_moment(seed, straight, trainings, arguments, tmp_path):
    """Some seconds into some step: `MOSLIM_RANDOM_KILLS=10` for ten of them."""
    source, command = random.Random(f"kill {seed}"), [*arguments, f"run_dir={tmp_path}"]
    steps = source.randint(0, 5)
    job = trainings.start("train", entry="train_policy", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= steps, job)
    time.sleep(source.uniform(0, 2))
    job.signal(signal.SIGKILL)
    code = trainings.wait(job)
    print(f"seed {seed}: killed after {steps_done(tmp_path)} logged steps, code {code}")
    trainings.train("train_policy", *command)
    assert_same_run(tmp_path, straight("one rank"))


@pytest.mark.exhaustive  # of a reward model's training: test_resume.py
def test_a_kill_of_one_rank_ends_the_job_and_the_run_resumes(straight, trainings, arguments, tmp_path):
    ranks, split = LAYOUTS["DP=2"]
    command = [*arguments, *split, f"run_dir={tmp_path}"]
    job = trainings.start("train", ranks=ranks, entry="train_policy", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= 4, job)
    job.signal(signal.SIGKILL, [1])
    assert all(trainings.wait(job))
    trainings.train("train_policy", *command, ranks=ranks)
    assert_same_run(tmp_path, straight("DP=2"))


def test_sigterm_saves_after_the_step_and_ends_well(straight, trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    job = trainings.start("train", entry="train_policy", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= 3, job)
    job.signal(signal.SIGTERM)
    assert trainings.wait(job) == [0] and "told to (SIGTERM)" in job.output()
    done = metrics(tmp_path)[-1]["step"]
    assert list_checkpoints(tmp_path)[-1].name == f"step={done:06d}" and done < 6
    assert json.loads((tmp_path / "summary.json").read_text())["finished"] is False
    trainings.train("train_policy", *command)
    assert_same_run(tmp_path, straight("one rank"))


def test_a_checkpoint_continues_on_another_layout(straight, trainings, arguments, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    written = straight("one rank")
    source = list_checkpoints(written)[0]
    shutil.copytree(source, tmp_path / "checkpoints" / source.name)
    trainings.train("train_policy", *arguments, f"run_dir={tmp_path}", "parallel.tensor=2", ranks=2)
    rows, expected = metrics(tmp_path), metrics(written)
    assert rows[-1]["step"] == 6
    first = next(row for row in expected if row["step"] == rows[0]["step"])
    for key in ("reward", "loss", "kl", "value_loss"):
        assert rows[0][key] == pytest.approx(first[key], rel=1e-4, abs=1e-6)


def test_a_reward_that_is_no_number_stops_before_the_weights_are_touched(trainings, arguments, tmp_path):
    command = [*arguments, f"run_dir={tmp_path}"]
    job = trainings.start("train_policy_with_bad_reward", arguments=command, step=3)
    assert trainings.wait(job) == [1]
    assert "step 3: the reward of 16 answers is not finite, first for the prompt" in job.output()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step=000002"] and metrics(tmp_path)[-1]["step"] == 2


def test_another_algorithm_cannot_resume_the_run(straight, trainings, arguments, policy_arguments, tmp_path):
    trainings.train(
        "train_policy", *policy_arguments, "algorithm.samples=2", f"run_dir={tmp_path}", "trainer.max_steps=2"
    )
    job = trainings.start("train", entry="train_policy", arguments=[*arguments, f"run_dir={tmp_path}"])
    assert trainings.wait(job) != [0]
    assert "no critic in it; resume with the algorithm that began the run" in job.output()
