"""README's command as a user types it: torchrun, two ranks, an entry point, and nothing imported before; a rank that
fails has imported NeMo already."""

import json
import os
import signal
import subprocess
import sys
import time

from training_client import ROOT


def torchrun(tmp_path, script, *arguments, **variables) -> tuple[int, str]:
    """Exit code and output of a script on two ranks; `variables` of the environment."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    environment |= variables
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, script, *arguments],
            env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(200), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_torchrun_trains_on_two_ranks(reward_arguments, tmp_path):
    settings = [*reward_arguments, f"run_dir={tmp_path}/run", "trainer.max_steps=2", "trainer.validate_every=2"]
    code, output = torchrun(tmp_path, ROOT / "examples" / "train_rm.py", *settings, "parallel.tensor=2")
    assert code == 0, output[-6000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] is True and summary["ranks"] == 2


def test_a_rank_that_fails_takes_the_other_along_and_says_why(trainings, policy_arguments, tmp_path):
    moment, scripts = tmp_path / "moment", ROOT / "tests" / "distributed"
    settings = [*policy_arguments, "algorithm=rloo", "algorithm.samples=2", f"run_dir={tmp_path}/run"]
    command = [scripts / "warm_python.py", scripts / "failing_rank.py", moment, *settings]
    code, output = torchrun(tmp_path, *command, **trainings.warm_python())
    assert code == 1 and "rank 1 fails on purpose" in output, output[-6000:]
    assert time.time() - float(moment.read_text()) < 60  # the other waits for it in a collective
    assert not (tmp_path / "run" / "summary.json").exists()
