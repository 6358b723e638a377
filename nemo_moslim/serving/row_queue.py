"""Answers that wait to be scored: requests come in on the server's thread, batches go out on the model's.

A request enters whole or not at all; a batch takes what waits, of one or of several requests.
"""

import math
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

RATE_MEMORY = 0.8  # share of the old rate in the moving average of rows per second


class QueueFull(Exception):
    """No room; `seconds` until there should be."""

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full, come again in {seconds} s")
        self.seconds = seconds


@dataclass
class Ticket:
    """A request's rows. `future` becomes the list of their results, or is cancelled when nobody waits any more.

    One that goes `alone` shares no batch: work of another kind than scoring.
    """

    rows: list[Any]
    alone: bool = False
    future: Future = field(default_factory=Future)
    results: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.results = [None] * len(self.rows)
        self._missing = len(self.rows)

    def fill(self, place: int, result: Any) -> None:
        """Results come from one thread; the last one completes the request."""
        self.results[place] = result
        self._missing -= 1
        if not self._missing:
            self.finish(lambda: self.future.set_result(self.results))

    def finish(self, settle) -> None:
        """Settle the future unless its request has been given up."""
        try:
            settle()
        except InvalidStateError:
            pass


Entry = tuple[Ticket, int]  # a row: its request and its place there


class RowQueue:
    """First in, first out."""

    def __init__(self, limit: int, batch_rows: int, wait_seconds: float):
        self.limit, self.batch_rows, self.wait_seconds = limit, batch_rows, wait_seconds
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._rate = 0.0  # rows per second, of the last batches

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, ticket: Ticket) -> None:
        """Add a request's rows.

        Raises:
            QueueFull: they would exceed the limit.
        """
        with self._changed:
            if len(self._entries) + len(ticket.rows) > self.limit:
                raise QueueFull(self.seconds_to_clear())
            self._entries.extend((ticket, place) for place in range(len(ticket.rows)))
            self._changed.notify()

    def take(self, seconds: float) -> list[Entry]:
        """The next batch, once it is full or its first row has waited long enough; empty if none comes in `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries, seconds)
            if not self._entries:
                return []
            self._changed.wait_for(lambda: len(self._entries) >= self.batch_rows, self.wait_seconds)
            batch: list[Entry] = []
            while self._entries and len(batch) < self.batch_rows:
                if batch and (batch[0][0].alone or self._entries[0][0].alone):
                    break
                ticket, place = self._entries.popleft()
                if not ticket.future.cancelled():
                    batch.append((ticket, place))
            return batch

    def give_up(self, ticket: Ticket) -> None:
        """Leave out what waits of a request that nobody waits for any more, so that its rows take no room."""
        with self._changed:
            self._entries = deque(entry for entry in self._entries if entry[0] is not ticket)

    def scored(self, rows: int, seconds: float) -> None:
        """Note how fast a batch was."""
        rate = rows / max(seconds, 1e-9)
        self._rate = rate if not self._rate else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate

    def fail(self, error: Exception) -> None:
        """Give this error to every request that waits."""
        with self._changed:
            while self._entries:
                ticket = self._entries.popleft()[0]
                ticket.finish(lambda ticket=ticket: ticket.future.set_exception(error))

    def seconds_to_clear(self) -> int:
        """Whole seconds in which what waits should be scored, 1 to 60."""
        return min(60, max(1, math.ceil(len(self._entries) / self._rate))) if self._rate else 1
