"""A job of the scripts in examples/slurm on this machine, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).resolve().parents[2]


class Job:
    """One job over all its starts. `folder` takes what the stand-ins write and the batch script's log."""

    def __init__(self, folder: Path, nodes: int, per_node: int, **variables: object):
        self.folder, self.starts, self.processes = folder, 0, []
        folder.mkdir(exist_ok=True)
        (folder / "state").write_text("RUNNING\n")
        number = free_port() - 20000  # launch.sh makes the port of the job's number
        environment = {
            "PATH": f"{ROOT}/tests/slurm/stand_in:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "STAND_IN": folder, "SLURM_JOB_ID": number, "SLURM_NNODES": nodes, "SLURM_NTASKS": nodes * per_node,
            "SLURM_JOB_NODELIST": ",".join(["127.0.0.1"] * nodes), "SLURM_SUBMIT_DIR": ROOT, "HOME": folder,
            "IMAGE": "none.sqsh", "CODE": ROOT, "PYTHON": sys.executable, "RUN_DIR": folder / "run",
            "PRESET": "", "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore",
            **variables,
        }  # fmt: skip
        self.environment = {name: str(value) for name, value in environment.items()}

    @property
    def run_dir(self) -> Path:
        """Where the training of the job writes."""
        return Path(self.environment["RUN_DIR"])

    def start(self, script: str | Path, *arguments: str) -> subprocess.Popen:
        """The batch script, started (again) as Slurm does; its output is appended to one log."""
        environment = {**self.environment, "SLURM_RESTART_COUNT": str(self.starts)}
        if not self.starts:  # Slurm sets it from the second start on
            del environment["SLURM_RESTART_COUNT"]
        self.starts += 1
        with (self.folder / "batch.log").open("a") as log:
            process = subprocess.Popen(
                ["bash", ROOT / script, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        """What the batch script printed, over all starts."""
        return (self.folder / "batch.log").read_text()

    def rank_log(self, rank: int, start: int = 0) -> str:
        """What a task printed in a start."""
        name = f"job-{self.environment['SLURM_JOB_ID']}-start-{start}"
        return (self.run_dir / "logs" / name / f"rank-{rank}.log").read_text()

    def requeued(self) -> int:
        """How often the job was put back."""
        file = self.folder / "requeued"
        return len(file.read_text().split()) if file.exists() else 0


def finish(process: subprocess.Popen, seconds: float) -> int:
    """Exit code of a batch script; after `seconds` it and its tasks are killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {seconds:g} s") from None


def wait_until(condition, process: subprocess.Popen, seconds: float) -> None:
    """Poll until `condition()`.

    Raises:
        AssertionError: the script ended, or the time is over.
    """
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"in vain; exit code {process.poll()}")
        time.sleep(0.01)
