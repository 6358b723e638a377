"""Jobs with stand-ins for Slurm's commands."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from slurm_job import Job


@pytest.fixture
def make_job(tmp_path, request):
    """Jobs of this test; what one left running is killed. `warm`: their Python has imported NeMo already."""
    made = []

    def make(nodes: int = 2, per_node: int = 1, warm: bool = False, **variables: object) -> Job:
        if warm:
            python = request.config.rootpath / "tests" / "distributed" / "warm_python.py"
            variables |= {"PYTHON": python, **request.getfixturevalue("trainings").warm_python()}
        made.append(Job(tmp_path / f"job{len(made)}", nodes, per_node, **variables))
        return made[-1]

    yield make
    for job in made:
        for process in job.processes:  # a shell that starts tasks again goes first
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for pid in [pid for file in job.folder.glob("tasks.*") for pid in file.read_text().split()]:
            try:
                if b"STAND_IN=" + str(job.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
