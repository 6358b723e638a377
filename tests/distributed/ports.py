"""Ports for servers of tests."""

import random
import socket

SOURCE = random.SystemRandom()  # tests seed the usual one, and workers would then draw the same


def free_port() -> int:
    """A port from 20001 to 31998 that nothing listens on.

    Linux gives those from 32768 on to any connection, so that one of them can be taken before its server listens,
    or between two starts of it.
    """
    while True:
        port = SOURCE.randint(20001, 31998)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
