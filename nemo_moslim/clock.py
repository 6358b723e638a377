"""Where the time goes: seconds per named phase."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Adds up the seconds spent in each phase since the last `take`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block under `name`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call, and start again."""
        taken, self.seconds = self.seconds, {}
        return taken
