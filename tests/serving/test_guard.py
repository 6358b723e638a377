"""The bytes of bodies that are read or worked on are bounded, without a server or a model."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nemo_moslim.serve_config import ServeLimitsConfig
from nemo_moslim.serving.guard import Guard

LIMITS = ServeLimitsConfig(
    queue_rows=8, queue_bytes=10, request_items=8, request_bytes=6, request_seconds=0.2, critic_seconds=1.0
)
GONE = {"type": "http.disconnect"}


def parts(*sizes, last=True):
    """A body in pieces."""
    return [
        {"type": "http.request", "body": b" " * size, "more_body": not (last and place == len(sizes) - 1)}
        for place, size in enumerate(sizes)
    ]


class Application:
    """Answers 200 once it may."""

    def __init__(self):
        self.may_answer = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await receive()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def status(guard, messages):
    """What one request is answered, and its headers."""
    waiting, sent = iter(messages), []

    async def receive():
        message = next(waiting, None)
        return message if message else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "path": "/score", "headers": []}, receive, send)
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (None, {})


async def until_held(guard, size):
    """Lets other tasks go on."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert guard.held == size


def test_bodies_over_the_limit_together_are_refused_until_one_is_answered():
    async def requests():
        app = Application()
        guard = Guard(app, None, LIMITS, lambda: 7)
        first = asyncio.create_task(status(guard, parts(3, 3)))
        await until_held(guard, 6)
        refused, headers = await status(guard, parts(2, 3))
        assert refused == 429 and headers[b"retry-after"] == b"7" and guard.held == 6
        others = [asyncio.create_task(status(guard, parts(size))) for size in (4, 0)]
        await until_held(guard, 10)
        app.may_answer.set()
        assert [(await task)[0] for task in (first, *others)] == [200, 200, 200] and guard.held == 0
        assert (await status(guard, parts(2, 3)))[0] == 200

    asyncio.run(requests())


@pytest.mark.parametrize(
    ("messages", "expected"),
    [([*parts(3, last=False), GONE], None), (parts(3, 4), 413), (parts(3, last=False), 408)],
)
def test_a_body_that_is_not_taken_leaves_its_room(messages, expected):
    async def request():
        guard = Guard(Application(), None, LIMITS, lambda: 7)
        assert (await status(guard, messages))[0] == expected and guard.held == 0

    asyncio.run(request())


def test_the_queue_has_room_for_any_request():
    with pytest.raises(ValueError, match="limits.request_bytes=11: expected at most limits.queue_bytes=10"):
        replace(LIMITS, request_bytes=11)
    with pytest.raises(ValueError, match="limits.request_items=9: expected at most limits.queue_rows=8"):
        replace(LIMITS, request_items=9)


def test_work_for_a_client_that_has_gone_ends_unless_it_is_being_answered():
    async def requests():
        ended = []

        class Working(Application):
            async def __call__(self, scope, receive, send):
                try:
                    await super().__call__(scope, receive, send)
                    await asyncio.sleep(0)  # the answer's body
                    ended.append("answered")
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise

        guard = Guard(Working(), None, LIMITS, lambda: 1)
        assert await status(guard, [*parts(4), GONE]) == (None, {})
        await until_held(guard, 0)
        assert ended == ["cancelled"]
        guard.app.may_answer.set()
        assert (await status(guard, parts(4)))[0] == 200 and ended[-1] == "answered"

    asyncio.run(requests())


def test_rows_of_a_client_that_has_gone_take_no_room():
    from nemo_moslim.serving.app import Service
    from nemo_moslim.serving.row_queue import RowQueue, Ticket

    async def requests():
        service = object.__new__(Service)
        service.stopping, service.queue = False, RowQueue(limit=4, batch_rows=4, wait_seconds=0.0)
        service.config = SimpleNamespace(limits=LIMITS)
        waiting = asyncio.ensure_future(service._results(Ticket(["a", "b"]), "critic_seconds"))
        await asyncio.sleep(0)
        assert len(service.queue) == 2
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled() and len(service.queue) == 0

    asyncio.run(requests())
