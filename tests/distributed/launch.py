"""Starts a script on several gloo ranks and returns what it printed; never leaves a process behind."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 6000
_MARKER = "NEMO_MOSLIM_TEST_RUN"


def run_ranks(
    script: str | Path,
    nproc: int,
    args: Sequence[object] = (),
    *,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> str:
    """Runs `torchrun --standalone --nproc-per-node nproc script args...`, one thread per rank.

    Args:
        script: path of the worker, absolute or from the repository root. It should open with the usual
            `if __name__ == "__main__":` guard, since distributed checkpoints spawn processes.
        nproc: number of ranks.
        args: command line of the worker; each is turned into text.
        timeout: seconds after which every rank is killed and the test fails.
        env: variables to add to this process's.
        check: False returns the output of a failing run in place of raising.

    Returns:
        stdout and stderr of all ranks, interleaved.

    Raises:
        AssertionError: the run failed or took too long; the message ends with the tail of its output.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    command += [str(ROOT / script), *map(str, args)]
    marker = f"{_MARKER}={uuid.uuid4().hex}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.update(env or {})
    environment.update([marker.split("=")])
    # A file, not a pipe: a process that outlives its rank (a checkpoint's manager) would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_marked(marker)
            process.wait()
        log.seek(0)
        output = log.read()
    if code is None:
        raise AssertionError(f"{script} {list(args)}: still running after {timeout:g} s\n{output[-_TAIL:]}")
    if check and code != 0:
        raise AssertionError(f"{script} {list(args)}: exit code {code}\n{output[-_TAIL:]}")
    return output


def _kill_marked(marker: str) -> None:
    """Kills every process that inherited the marker: torchrun gives each rank a session of its own, and processes
    that a killed rank leaves behind have no parent to find them by."""
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and marker.encode() in (directory / "environ").read_bytes().split(b"\0"):
                os.kill(int(directory.name), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
