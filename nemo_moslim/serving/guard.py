"""What is asked of a request before the application sees it: the token, its size, and that it arrives in time."""

import asyncio
import hmac
import json
from collections.abc import Callable

from nemo_moslim.serve_config import ServeLimitsConfig
from nemo_moslim.serving.row_queue import QueueFull

OPEN_PATHS = ("/health",)


class Guard:
    """ASGI application around another one. It reads the whole body, so that size and time are limited for all."""

    def __init__(self, app, token: str | None, limits: ServeLimitsConfig, seconds_to_clear: Callable[[], int]):
        """
        Args:
            seconds_to_clear: when a request that finds no room should come again.
        """
        self.app, self.token, self.limits, self.seconds_to_clear = app, token, limits, seconds_to_clear
        self.held = 0  # bytes of the bodies that are read or worked on

    async def __call__(self, scope, receive, send):
        """One request (or the server's start and end)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self.token and scope["path"] not in OPEN_PATHS and not self._may_enter(headers):
            return await refuse(send, 401, "a bearer token is needed", [(b"www-authenticate", b"Bearer")])
        try:
            body = await asyncio.wait_for(self._read(headers, receive), self.limits.request_seconds)
        except asyncio.TimeoutError:
            return await refuse(send, 408, f"the body did not arrive within {self.limits.request_seconds:g} s")
        except QueueFull as error:
            return await refuse(send, 429, str(error), [(b"retry-after", str(error.seconds).encode())])
        except ValueError as error:
            return await refuse(send, 413, str(error))
        if body is None:
            return None
        try:
            await self._answer(scope, body, receive, send)
        finally:
            self.held -= len(body)

    async def _answer(self, scope, body: bytes, receive, send) -> None:
        """The application's answer; its work ends where the client goes before that begins."""
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        started = False

        async def replay():
            return next(messages, None) or await asyncio.shield(gone)

        async def answer(message):
            nonlocal started
            started = True
            await send(message)

        gone = asyncio.ensure_future(receive())  # nothing but the client's end comes after the body
        work = asyncio.ensure_future(self.app(scope, replay, answer))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or started:
                await work
        finally:
            gone.cancel()
            work.cancel()

    def _may_enter(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token.encode())

    async def _read(self, headers: dict[bytes, bytes], receive) -> bytes | None:
        """The body, which is held from then on; None if the client has gone. ValueError: too large. QueueFull."""
        most = self.limits.request_bytes
        too_large = ValueError(f"the body is over {most} bytes (limits.request_bytes): send fewer items")
        if int(headers.get(b"content-length", b"0")) > most:
            raise too_large
        parts, size, body = [], 0, None
        try:
            while body is None:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                if size + len(part) > most:
                    raise too_large
                if part and self.held + len(part) > self.limits.queue_bytes:
                    raise QueueFull(self.seconds_to_clear())
                parts.append(part)
                size, self.held = size + len(part), self.held + len(part)
                if not message.get("more_body"):
                    body = b"".join(parts)
            return body
        finally:
            if body is None:
                self.held -= size


async def refuse(send, status: int, detail: str, headers: list | None = None) -> None:
    """An answer with a `Problem`; the connection ends, since the body may not have been read."""
    body = json.dumps({"detail": detail}).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    fixed += [(b"connection", b"close"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fixed})
    await send({"type": "http.response.body", "body": body})
