"""Runs functions of gpu_probes.py in one process on the GPU, and in one with it hidden: importing NeMo takes long."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds of a call


class ProbeFailed(AssertionError):
    """A function of gpu_probes.py failed; the message ends with its output."""


class ProbeProcess:
    """python gpu_probes.py, which answers one call after the other and ends where one fails."""

    def __init__(self, cpu: bool):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        environment |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
        self.answered, self._log = 0, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "gpu" / "gpu_probes.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def ask(self, function: str, arguments: dict):
        """What the function returns.

        Raises:
            ProbeFailed: it raised, its process ended, or it took longer than LIMIT.
        """
        timer = threading.Timer(LIMIT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise ProbeFailed(f"{function} {arguments}: exit code {code}\n{self._log.read()[-6000:]}")
        self.answered += 1
        return json.loads(line)

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()


_processes: dict[bool, ProbeProcess] = {}


def call(function: str, cpu: bool = False, **arguments):
    """What a function of gpu_probes.py returns, on the GPU or with it hidden.

    One that fails after others is called again in a process of its own: only that failure counts.

    Raises:
        ProbeFailed: see `ProbeProcess.ask`.
    """
    process = _processes.get(cpu) or _processes.setdefault(cpu, ProbeProcess(cpu))
    try:
        return process.ask(function, arguments)
    except BaseException as error:  # an interrupted call too: its answer must not be taken for the next one's
        process.kill()
        del _processes[cpu]
        if not (isinstance(error, ProbeFailed) and process.answered):
            raise
    return call(function, cpu, **arguments)
