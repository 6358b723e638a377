"""The queue by itself: whole requests, full or late batches, requests that nobody waits for."""

import threading
import time

import pytest

from nemo_moslim.serving.row_queue import QueueFull, RowQueue, Ticket


def rows_of(batch):
    return [ticket.rows[place] for ticket, place in batch]


def test_a_batch_takes_rows_of_several_requests_in_order():
    queue = RowQueue(limit=10, batch_rows=4, wait_seconds=0.0)
    first, second = Ticket(["a", "b", "c"]), Ticket(["d", "e"])
    queue.put(first)
    queue.put(second)
    batches = [queue.take(1), queue.take(1)]
    assert [rows_of(batch) for batch in batches] == [["a", "b", "c", "d"], ["e"]] and len(queue) == 0
    for ticket, place in batches[0]:
        ticket.fill(place, ticket.rows[place].upper())
    assert first.future.result(0) == ["A", "B", "C"] and not second.future.done()
    second.fill(1, "E")
    assert second.future.result(0) == ["D", "E"]


def test_a_request_enters_whole_or_not_at_all():
    queue = RowQueue(limit=5, batch_rows=2, wait_seconds=0.0)
    queue.put(Ticket([1, 2, 3, 4]))
    with pytest.raises(QueueFull) as full:
        queue.put(Ticket([5, 6]))
    assert full.value.seconds == 1 and len(queue) == 4  # nothing has been measured
    queue.scored(rows=2, seconds=4.0)
    with pytest.raises(QueueFull) as full:
        queue.put(Ticket([5, 6]))
    assert full.value.seconds == 8
    queue.put(Ticket([5]))
    assert len(queue) == 5


def test_a_full_batch_goes_at_once_and_others_wait():
    queue = RowQueue(limit=10, batch_rows=2, wait_seconds=0.3)
    queue.put(Ticket(["a"]))
    later = threading.Timer(0.05, lambda: queue.put(Ticket(["b", "c"])))
    later.start()
    started = time.monotonic()
    assert rows_of(queue.take(1)) == ["a", "b"] and time.monotonic() - started < 0.25
    started = time.monotonic()
    assert rows_of(queue.take(1)) == ["c"] and time.monotonic() - started >= 0.29
    assert queue.take(0.01) == []


def test_rows_that_nobody_waits_for_are_left_out():
    queue = RowQueue(limit=10, batch_rows=2, wait_seconds=0.0)
    given_up, kept, late = Ticket(["a", "b"]), Ticket(["c"]), Ticket(["d"])
    for ticket in (given_up, kept, late):
        queue.put(ticket)
    given_up.future.cancel()
    batch = queue.take(1)
    assert rows_of(batch) == ["c", "d"]
    late.future.cancel()  # while it is scored
    for ticket, place in batch:
        ticket.fill(place, 1.0)
    assert kept.future.result(0) == [1.0] and late.future.cancelled()


def test_a_request_that_is_given_up_takes_no_room():
    queue = RowQueue(limit=3, batch_rows=1, wait_seconds=0.0)
    given_up, kept = Ticket(["a", "b"]), Ticket(["c"])
    queue.put(given_up)
    queue.put(kept)
    queue.give_up(given_up)
    queue.put(Ticket(["d", "e"]))
    assert [rows_of(queue.take(1)) for _ in range(3)] == [["c"], ["d"], ["e"]] and len(queue) == 0


def test_a_failure_reaches_every_request_that_waits():
    queue = RowQueue(limit=10, batch_rows=2, wait_seconds=0.0)
    tickets = [Ticket(["a", "b"]), Ticket(["c"])]
    for ticket in tickets:
        queue.put(ticket)
    queue.fail(RuntimeError("gone"))
    assert [str(ticket.future.exception(0)) for ticket in tickets] == ["gone", "gone"] and len(queue) == 0
