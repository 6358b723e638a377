"""The reward model's service beside a training, and a micro-batch of made-up answers."""

import re

import numpy as np
import pytest
import torch
from made_rollouts import FINISHED, LENGTHS, rollout
from training_client import told_to_end, wait_for


@pytest.fixture
def start_service(trainings, reward_run):
    """Starts `serve_reward.py` on the reward model; services that are left are told to end."""
    started = []

    def start(*settings: str, ranks: int = 1, port: int = 0):
        arguments = [f"run={reward_run}", f"port={port}", "batch.micro_size=4", *settings]
        job = trainings.start("train", ranks, entry="serve_reward", arguments=arguments)
        wait_for(lambda: "serving" in job.output() or "Error" in job.output(), job)
        started.append(job)
        return job, re.search(r"http://\S+", job.output()).group()

    yield start
    for job in started:
        told_to_end(trainings, job)


@pytest.fixture
def batches(monkeypatch):
    """The rollout's micro-batch on a single rank, as the loop makes it: the reference's log-probabilities are -2."""
    from nemo_moslim.training import algorithm, ppo
    from nemo_moslim.training.rl_batches import policy_batch, whole_answers, with_field

    for module in (algorithm, ppo):
        monkeypatch.setattr(module, "sum_over_data_ranks", lambda values: values)
    made = rollout([1.0, 2.0, 3.0, 4.0])
    batch = policy_batch(made, np.arange(4), FINISHED, pad_id=0, multiple=1)
    (whole,) = whole_answers([batch], made)
    assert whole.response_mask.sum(1).tolist() == list(LENGTHS)
    old = torch.from_numpy(np.stack([np.full(3, -1 - r / 10, dtype=np.float32) for r in range(4)]))
    return with_field(
        [batch], old_logprobs=[old * batch.response_mask], ref_logprobs=[-2.0 * whole.response_mask.float()]
    )
