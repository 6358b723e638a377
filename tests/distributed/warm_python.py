#!/usr/bin/env python3
"""A Python that has imported NeMo already: `warm_python.py SCRIPT ARGUMENTS…` or `warm_python.py -m MODULE ARGUMENTS…`,
with the server's socket in WARM_PYTHON.

The server forks; the fork gets this process's arguments, environment, folder, input and outputs, signals are passed on,
and its exit code becomes this one's. When this process is killed, so is the fork.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main() -> int:
    server = socket.socket(socket.AF_UNIX)
    server.connect(os.environ["WARM_PYTHON"])
    request = {"command": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(server, [b"fds"], [0, 1, 2])
    lines = server.makefile("rw")
    lines.write(json.dumps(request) + "\n")
    lines.flush()
    pid = int(lines.readline())
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: pass_on(pid, number))
    code = int(lines.readline())
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.exit(main())
