"""Starts an entry point of examples/ as `python` or `torchrun` would, on this machine.

Importing NeMo takes 10 s and more a process. Where there is no GPU, ranks are forked from a server that has imported it
once, multiprocessing's fork server. (CUDA does not live through a fork.)
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from nemo_moslim.console import quiet_libraries

PRELOAD = ["nemo_moslim.preload"]
STOP_SECONDS = 600  # that torchrun's ranks get to end a step and save once they are told to stop; its default is 30


def can_fork() -> bool:
    """Whether this machine has no GPU."""
    return not any(Path("/dev").glob("nvidia[0-9]*"))


def launch(script: Path, settings: Sequence[str], ranks: int) -> int:
    """Run `python SCRIPT SETTINGS…`; ranks > 0: `torchrun --standalone --nproc-per-node RANKS SCRIPT SETTINGS…`.

    Output and errors go where this process's went at the first call. Returns the exit code, of the first rank that
    failed where they are forked; negative where a signal ended it.
    """
    if can_fork():
        _start_server()  # it imports in the background: what runs without ranks, such as data, need not wait
        if ranks:
            return _fork_ranks(script, settings, ranks)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    environment = {"PYTHONWARNINGS": "ignore", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(STOP_SECONDS), **os.environ}
    if ranks:
        environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun warns without it
    command = [sys.executable, *launcher, str(script), *settings]
    return subprocess.run(command, check=False, env=environment).returncode


def _start_server() -> None:
    """A second call does nothing."""
    from multiprocessing import forkserver

    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; read when the server imports torch
    multiprocessing.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]  # a stage without ranks has all cores


def _fork_ranks(script: Path, settings: Sequence[str], ranks: int) -> int:
    quiet_libraries()
    from torch.multiprocessing import ProcessExitedException, start_processes

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told: list[int] = []

    def pass_on(number, _):
        told.append(number)
        for process in context.processes:
            process.terminate()

    context = start_processes(
        _run_rank, (str(script), list(settings), ranks, port), nprocs=ranks, join=False, start_method="forkserver"
    )
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while not context.join():
            pass
    except ProcessExitedException as failed:
        return failed.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return -told[0] if told else 0


def _run_rank(rank: int, script: str, settings: list[str], ranks: int, port: int) -> None:
    """One rank, in its fork, with what torchrun tells a rank."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="recipe",
        TORCHELASTIC_ERROR_FILE=os.devnull,
    )  # fmt: skip
    sys.argv = [script, *settings]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)
