"""CUDA's streams and events on a machine without a GPU, for `nemo_moslim.parallel.cpu`."""

import time
from typing import Any


class Stream:
    """A stream of a device that runs everything at once: waiting is done before it begins."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def wait_stream(self, _stream: Any) -> None:
        pass

    def wait_event(self, _event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_exception: Any) -> None:
        pass


class Event(Stream):
    """A point in time; `elapsed_time` answers in milliseconds, as CUDA's does."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.recorded: float | None = None

    def record(self, _stream: Any = None) -> None:
        self.recorded = time.perf_counter()

    def wait(self, _stream: Any = None) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        if self.recorded is None or end.recorded is None:
            raise RuntimeError("elapsed_time: both events must have been recorded")
        return (end.recorded - self.recorded) * 1000.0
