"""A training whose loss or gradients are no longer numbers stops before it touches a weight, with one message."""

import math

import pytest

from nemo_moslim.run_folder import list_checkpoints


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_an_optimizer_stops_ahead_of_its_step(norm):
    from nemo_moslim.training.optimizer import stop_at_bad_gradients

    class Optimizer:
        stepped = False

        def get_grad_norm(self):
            return norm if self.bad else 1.0

        def step(self):
            self.get_grad_norm()
            self.stepped = True

    optimizer = Optimizer()
    stop_at_bad_gradients(optimizer)
    optimizer.bad = True
    with pytest.raises(FloatingPointError, match=f"the gradient's norm is {norm}: weights are left as they were"):
        optimizer.step()
    assert not optimizer.stepped
    optimizer.bad = False
    optimizer.step()
    assert optimizer.stepped


def test_a_reward_model_whose_loss_is_no_number(trainings, reward_arguments, tmp_path):
    settings = ["optimizer.lr=1e30", "optimizer.warmup_steps=3", "trainer.max_steps=6", "trainer.checkpoint_every=1"]
    job = trainings.start("train", entry="train_rm", arguments=[*reward_arguments, *settings, f"run_dir={tmp_path}"])
    assert trainings.wait(job) == [1]
    assert "FloatingPointError: loss is nan at step 2: weights are left as they were" in job.output()
    assert list_checkpoints(tmp_path)[-1].name == "step=000001"


def test_a_policy_whose_loss_is_no_number(trainings, policy_arguments, tmp_path):
    settings = ["algorithm=ppo", "algorithm.samples=2", "batch.mini_size=8", "optimizer.lr=1e30"]
    job = trainings.start(
        "train", entry="train_policy", arguments=[*policy_arguments, *settings, f"run_dir={tmp_path}"]
    )
    assert trainings.wait(job) == [1]
    place = "policy: step 1, epoch 1, update 2: loss is nan: weights are left as they were"
    assert f"FloatingPointError: {place}" in job.output() and "; the first prompt here is '" in job.output()


def test_a_policy_whose_logits_are_no_numbers(trainings, policy_arguments, tmp_path):
    settings = ["algorithm=rloo", "algorithm.samples=2", "optimizer.lr=1e30", "trainer.checkpoint_every=1"]
    job = trainings.start(
        "train", entry="train_policy",
        arguments=[*policy_arguments, *settings, "trainer.validate_every=4", f"run_dir={tmp_path}"],
    )  # fmt: skip
    assert trainings.wait(job) == [1]
    assert "FloatingPointError: step 2, generation: the logits of token 1 of an answer to prompt" in job.output()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step=000001"]
