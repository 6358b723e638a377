"""The reward model's job for real: two nodes of one process, stopped ahead of its time, put back, and finished."""

import json
import signal

import pytest
from slurm_job import finish, wait_until

STEPS = 30


def steps(job):
    """Steps that the run has logged."""
    file = job.run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.timeout(600)
def test_stopped_put_back_and_finished(make_job, tokenizer_dir, rating_dir, tiny_model):
    job = make_job(warm=True, CLUSTER="local", DATA=rating_dir, INIT="null")
    settings = [
        *tiny_model, f"tokenizer={tokenizer_dir}", f"trainer.max_steps={STEPS}", f"trainer.validate_every={STEPS}",
        f"trainer.checkpoint_every={STEPS}", "batch.micro_size=4",
    ]  # fmt: skip
    script = "examples/slurm/reward_model_multinode.sub"

    process = job.start(script, *settings)
    wait_until(lambda: len(steps(job)) >= 3, process, 300)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 120) == 0, job.log() + job.rank_log(0)
    saved = len(steps(job))
    assert 3 <= saved < STEPS and job.requeued() == 1, job.log()
    assert f"stopping at step {saved}: told to (SIGTERM)" in job.rank_log(0)
    assert [folder.name for folder in (job.run_dir / "checkpoints").iterdir()] == [f"step={saved:06d}"]
    assert json.loads((job.run_dir / "summary.json").read_text())["ranks"] == 2

    assert finish(job.start(script, *settings), 300) == 0, job.log() + job.rank_log(0, start=1)
    assert f"resuming from {job.run_dir}/checkpoints/step={saved:06d}" in job.rank_log(0, start=1)
    assert steps(job) == list(range(1, STEPS + 1))
    assert job.requeued() == 1 and job.log().rstrip().endswith(f"complete: {job.run_dir}/summary.json")
    assert job.rank_log(1, start=1).count("step ") == 0  # one rank speaks
