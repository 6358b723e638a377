"""Starts an entry point of examples/ as `python` or `torchrun` would, on this machine.

Importing NeMo takes 10 s and more a process. Where there is no GPU, ranks are forked from a server that has imported it
once: multiprocessing's fork server, under torchrun's own agent. (CUDA does not live through a fork.)
"""

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from nemo_moslim.console import quiet_libraries

PRELOAD = ["nemo_moslim.preload"]
STOP_SECONDS = 600  # that ranks get to end a step and save once they are told to stop; torchrun's own is 30
HANDLED_BY_AGENT = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # while ranks run, they are passed on


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
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks say what is wrong themselves
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, run_id="recipe", start_method="forkserver",
        signals_to_handle=",".join(HANDLED_BY_AGENT), shutdown_timeout=STOP_SECONDS,
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, HANDLED_BY_AGENT)}
    try:
        elastic_launch(config, run_script)(str(script), list(settings))
    except ChildFailedError as failed:
        return failed.get_first_failure()[1].exitcode
    except SignalException as stopped:
        return -stopped.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def run_script(script: str, settings: list[str]) -> None:
    """One rank, in its fork."""
    sys.argv = [script, *settings]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)
