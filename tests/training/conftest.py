"""The reward model's service beside a training."""

import re

import pytest
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
