"""Imports NeMo once (ten seconds) and then starts trainings by forking, each rank a fresh process.

A line of JSON on stdin asks, a line of JSON on stdout answers:

    {"start": FUNCTION, "arguments": {...}, "ranks": N, "folder": DIR}  ->  {"pids": [...]}
    {"wait": [pids...], "timeout": S}                                   ->  {"codes": [...]}  (negative: the signal)
    {"listen": SOCKET}                                                  ->  {"pid": PID}  (see warm_python.py)

FUNCTION is one of training_probes.py; what it returns on rank r is written to DIR/result.r, its output to DIR/output.r.
Like torchrun, a rank that fails takes the others with it.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    import torch

    torch.set_num_threads(1)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "distributed")]
    import training_probes  # noqa: F401

    import nemo_moslim.preload
    import nemo_moslim.serving.serve  # noqa: F401
    from nemo_moslim.cli import compose_config

    compose_config("train_policy", ["run_dir=x", "data=[x]"])  # the settings' parser is slow the first time
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answer = ANSWERS[next(iter(request))](request)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # taking all of NeMo down in order takes seconds


def start(request: dict) -> dict:
    """Fork the ranks of one job."""
    port, pids = free_port(), []
    for rank in range(request["ranks"]):
        pid = os.fork()
        if not pid:
            run_rank(request, rank, port)
        pids.append(pid)
    return {"pids": pids}


def run_rank(request: dict, rank: int, port: int) -> None:
    """The child: environment of torchrun (none for one rank), output to a file, then the function. Never returns."""
    import training_probes

    folder, ranks, code = Path(request["folder"]), request["ranks"], 1
    output = os.open(folder / f"output.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(0)
    if ranks > 1:
        sizes = dict(WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, RANK=rank, LOCAL_RANK=rank, GROUP_RANK=0)
        launcher = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="tests")
        os.environ.update({name: str(value) for name, value in (sizes | launcher).items()})
    try:
        result = getattr(training_probes, request["start"])(**request["arguments"])
        (folder / f"result.{rank}").write_text(json.dumps(result))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(request: dict) -> dict:
    """Exit codes of the ranks; after the timeout, or once one has failed, the others are killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + request["timeout"]
    while len(codes) < len(request["wait"]):
        for pid in set(request["wait"]) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    end = min(end, time.monotonic() + 5.0)
        if time.monotonic() > end:
            for pid in set(request["wait"]) - set(codes):
                os.kill(pid, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.01)
    return {"codes": [codes[pid] for pid in request["wait"]]}


def listen(request: dict) -> dict:
    """Fork the server of warm_python.py."""
    from warm_server import serve

    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a descriptor that is received takes no standard stream's number
        serve(request["listen"])
    return {"pid": pid}


ANSWERS = {"start": start, "wait": wait, "listen": listen}

if __name__ == "__main__":
    main()
