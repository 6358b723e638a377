"""The other side of warm_python.py: a fork of the training server that forks for every script, with a keeper each."""

import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

POLL_SECONDS = 0.02


def serve(path: str) -> None:
    """Start scripts until the training server is gone. Never returns."""
    server = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(1.0)
    while os.getppid() == server:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        if not os.fork():
            listener.close()
            keep(client)
        client.close()
    os._exit(0)


def keep(client: socket.socket) -> None:
    """Start one client's script, tell its pid and its exit code; kill it when the client is gone. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.setblocking(True)
    _, streams, _, _ = socket.recv_fds(client, 3, 3)
    lines = client.makefile("rw")
    request = json.loads(lines.readline())
    pid = os.fork()
    if not pid:
        client.close()
        run(request, streams)
    lines.write(f"{pid}\n")
    lines.flush()
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if select.select([client], [], [], POLL_SECONDS)[0]:  # nothing is sent any more: it is gone
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
    lines.write(f"{os.waitstatus_to_exitcode(ended[1])}\n")
    lines.flush()
    os._exit(0)


def run(request: dict, streams: list[int]) -> None:
    """The script or module as Python would run it. Never returns."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    is_module, code = request["command"][0] == "-m", 0
    sys.argv = request["command"][is_module:]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(sys.argv[0]).parent))
    try:
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
