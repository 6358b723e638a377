"""PPO whose critic is the service's: it learns what a critic on the policy's ranks learns, and nothing is lost."""

import json
import signal

import pytest
import torch
from grids import grid
from ports import free_port
from training_client import metrics, steps_done, told_to_end, wait_for, weights

PPO = ["algorithm=ppo", "algorithm.samples=2", "algorithm.epochs=2", "batch.mini_size=8", "algorithm.kl_target=1.0"]
SETTINGS = ["trainer.max_steps=4", "trainer.validate_every=4", "trainer.checkpoint_every=2"]
TENSOR = ["parallel.tensor=2", "parallel.sequence=true"]
CLOSE = ("reward", "loss", "kl", "value_loss", "explained_variance", "value_clip_fraction", "value_grad_norm")


@pytest.fixture(scope="module")
def arguments(policy_arguments):
    """Everything but run_dir and reward."""
    return [a for a in policy_arguments if not a.startswith("reward=")] + PPO + SETTINGS


@pytest.fixture
def start(start_service):
    """A service with a critic: its job and address."""

    def started(folder, *layout, ranks=1, port=0):
        critic = [
            "critic=true",
            f"critic_dir={folder}",
            "critic_training.micro_size=4",
            "critic_training.max_length=90",
        ]
        return start_service(*critic, *layout, "limits.request_items=7", ranks=ranks, port=port)

    return started


@pytest.fixture(scope="module")
def straight(trainings, arguments, reward_run, tmp_path_factory):
    """Run directory of the same training with the critic on its own ranks."""
    run_dir = tmp_path_factory.mktemp("straight")
    trainings.train("train_policy", *arguments, f"reward={reward_run}", f"run_dir={run_dir}")
    return run_dir


def critic_weights(folder, steps):
    """Of the service's checkpoint of its only training."""
    (checkpoints,) = folder.glob("run-*/checkpoints")
    assert len(list(checkpoints.iterdir())) == 2  # the last, and the one before it
    return weights(checkpoints / f"step={steps:06d}")


@pytest.mark.parametrize(
    ("ranks", "layout"),
    grid([(1, []), (2, TENSOR), (2, ["parallel.pipeline=2"])], (2, TENSOR)),
)
def test_it_learns_what_a_critic_in_process_learns(trainings, start, arguments, straight, tmp_path, ranks, layout):
    """In a layout of its own; the policy's ranks are two where the service has one."""
    job, url = start(tmp_path / "critic", *layout, ranks=ranks)
    command = [*arguments, f"reward={url}", f"run_dir={tmp_path}/run", "algorithm.critic=service"]
    trainings.train("train_policy", *command, ranks=3 - ranks)
    rows, others = metrics(tmp_path / "run"), metrics(straight)
    assert rows[1]["value_loss"] == pytest.approx(others[1]["value_loss"], rel=1e-6)
    for row, other in zip(rows, others, strict=True):
        assert row["step"] == other["step"]
        for key in CLOSE if row["step"] else ():
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), (row["step"], key)
    found, expected = critic_weights(tmp_path / "critic", 4), weights(straight / "checkpoints/step=000004/critic")
    assert found.keys() == expected.keys() and any("exp_avg_sq" in name for name in found)
    for name, value in expected.items():
        if value.is_floating_point() and "optimizer" not in name:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
    assert told_to_end(trainings, job) == [0] * ranks, job.output()


def test_neither_sides_end_loses_or_repeats_an_update(trainings, start, arguments, tmp_path):
    """The service is killed; then both are told to end; both start again."""
    reference, folder, port = tmp_path / "reference", tmp_path / "critic", free_port()
    service, url = start(tmp_path / "reference_critic", port=port)
    command = [*arguments, f"reward={url}", "algorithm.critic=service", "trainer.max_steps=7"]
    trainings.train("train_policy", *command, f"run_dir={reference}")
    told_to_end(trainings, service)

    command += [f"run_dir={tmp_path}/run"]
    service, _ = start(folder, port=port)
    policy = trainings.start("train", entry="train_policy", arguments=command)
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, policy)  # row 0 and a step
    service.signal(signal.SIGKILL)
    trainings.wait(service)
    rows = steps_done(tmp_path / "run") + 2  # a step may be ending; a service that is back may be used at once
    service, _ = start(folder, port=port)
    wait_for(lambda: steps_done(tmp_path / "run") >= rows, policy)
    service.signal(signal.SIGTERM)
    policy.signal(signal.SIGTERM)
    assert trainings.wait(policy) == [0], policy.output()
    assert trainings.wait(service) == [0], service.output()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"] is False

    start(folder, port=port)
    trainings.train("train_policy", *command)
    assert metrics(tmp_path / "run") == metrics(reference)
    found, expected = (critic_weights(path, 7) for path in (folder, tmp_path / "reference_critic"))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
