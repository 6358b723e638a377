"""Starts a script on several gloo ranks and returns what it printed; never leaves a process behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 6000


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.update(env or {})
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        raise AssertionError(f"{script} {list(args)}: still running after {timeout:g} s\n{output[-_TAIL:]}") from None
    except BaseException:
        _kill(process)
        raise
    if check and process.returncode != 0:
        raise AssertionError(f"{script} {list(args)}: exit code {process.returncode}\n{output[-_TAIL:]}")
    return output


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends the launcher and its ranks: torchrun gives each rank a session, so their ids are read before it dies."""
    ranks = _descendants(process.pid)
    for pid in (*ranks, process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _descendants(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found
