"""README's command as a user types it: torchrun, two ranks, an entry point, and nothing imported before."""

import json
import os
import signal
import subprocess
import sys

from training_client import ROOT


def test_torchrun_trains_on_two_ranks(reward_arguments, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = [*reward_arguments, f"run_dir={tmp_path}/run", "trainer.max_steps=2", "trainer.validate_every=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, ROOT / "examples" / "train_rm.py", *settings, "parallel.tensor=2"],
            env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        assert process.wait(200) == 0, log.read_text()[-6000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] is True and summary["ranks"] == 2
