"""PPO's policy and the service of its reward model and critic as two steps of one job: the service fails once, the
training finishes."""

import json
import os
import signal

import pytest
from ports import free_port
from slurm_job import finish, wait_until


def steps(job):
    """Steps that the run has logged."""
    file = job.run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def service_log(job, attempt):
    """What the service printed in an attempt; empty before it is there."""
    folder = job.run_dir / "logs" / f"job-{job.environment['SLURM_JOB_ID']}-start-0"
    file = folder / f"service-{attempt}-rank-0.log"
    return file.read_text() if file.exists() else ""


def service_tasks(job):
    """Processes of the service, from what the stand-in of srun wrote."""
    pids = [int(pid) for file in job.folder.glob("tasks.*") for pid in file.read_text().split()]
    lines = {pid: open(f"/proc/{pid}/cmdline", "rb").read() for pid in pids}
    return [pid for pid, line in lines.items() if b"serve_reward.py" in line]


@pytest.mark.exhaustive  # the scripts: test_service_decisions.py; a service that is killed: test_reward_service.py
@pytest.mark.timeout(900)
def test_both_run_and_the_service_is_started_again(
    make_job, policy_arguments, sft_run, reward_run, prompt_dir, tmp_path
):
    places = dict(DATA=prompt_dir, POLICY=sft_run, REWARD=reward_run)
    service = dict(SERVICE_NODES=1, SERVICE_PORT=free_port(), SERVICE_CLUSTER="local", SERVICE_PRECISION="fp32")
    service |= dict(CRITIC_DIR=tmp_path / "critic")
    job = make_job(nodes=2, warm=True, CLUSTER="local", SERVICE_PAUSE=0, **places, **service)
    given = [a for a in policy_arguments if a.partition("=")[0] not in ("policy", "reward", "data", "max_length")]
    given += ["max_length=64", "long_prompts=cut_left"]  # as long as the service's critic reads
    settings = [*given, "algorithm.samples=2", "trainer.max_steps=10", "trainer.validate_every=10"]
    settings += ["trainer.checkpoint_every=5", "algorithm.epochs=2", "batch.mini_size=8"]

    process = job.start("examples/slurm/policy_with_service.sub", *settings)
    wait_until(lambda: len(steps(job)) >= 2, process, 500)
    (task,) = service_tasks(job)
    os.kill(task, signal.SIGKILL)
    assert finish(process, 500) == 0, job.log() + job.rank_log(0)
    assert steps(job) == list(range(11)) and "complete:" in job.log() and job.requeued() == 0
    assert "service failed" in job.log() and "start 1 in 0 s" in job.log()
    assert "serving" in service_log(job, 0) and "everything that waited has been scored" in service_log(job, 1)
    assert json.loads((job.run_dir / "summary.json").read_text())["finished"] is True
    (critic,) = tmp_path.glob("critic/run-*/checkpoints")
    assert sorted(path.name for path in critic.iterdir()) == ["step=000005", "step=000010"]
    assert not list(job.folder.glob("tasks.*"))  # nothing runs on
