"""Patient JSON requests: some at a time, so many a minute, tried again where that can help. Shared by both HTTP judges.

Secrets travel in the Authorization header alone; whatever a server says is cleared of them before it is passed on.
"""

import asyncio
import email.utils
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from nemo_moslim.judging_config import EndpointConfig

T = TypeVar("T")
NOT_FOR_THIS_CALLER = {401: "the key was not accepted", 403: "the key may not do this", 404: "check url and model"}
AGAIN = {408, 409, 425, 429}  # and every 5xx


class Rejected(Exception):
    """The server will not take this request, however often it is sent."""

    def __init__(self, status: int, text: str):
        super().__init__(f"HTTP {status}: {text}")
        self.status, self.text = status, text


class Unavailable(Exception):
    """No usable reply after every attempt."""


@dataclass(frozen=True)
class _Wait:
    """Why a request is sent again, the server's words, and how long it asked us to wait (seconds, where it did)."""

    cause: str
    text: str = ""
    seconds: float | None = None


class PatientClient:
    """Posts JSON and reads JSON; counts what happened in `counts`."""

    def __init__(self, settings: EndpointConfig, secret: str | None, secret_name: str):
        """
        Args:
            secret: the bearer token, or None.
            secret_name: the setting that names it, for messages.
        """
        self.settings, self._secret, self._secret_name = settings, secret, secret_name
        self.counts: Counter[str] = Counter()  # requests, and requests sent again, by cause
        self._not_before = 0.0  # when the next request may start (time.monotonic), for all of them
        self._http: httpx.AsyncClient | None = None
        self._succeeded = False  # any request yet

    @asynccontextmanager
    async def session(self) -> AsyncIterator["PatientClient"]:
        """Connections are open inside the block."""
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        limits = httpx.Limits(max_connections=self.settings.concurrency)
        timeout = httpx.Timeout(self.settings.timeout, pool=None)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as self._http:
            yield self

    async def for_all(self, items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Run `work` on every item, `concurrency` at a time; the first error stops all."""
        waiting = iter(items)

        async def worker() -> None:
            for item in waiting:
                await work(item)

        tasks = [asyncio.create_task(worker()) for _ in range(min(self.settings.concurrency, len(items)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def post(self, url: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the reply to `body`; a reply of another form is asked for again.

        Raises:
            Rejected: the server will not take the request.
            Unavailable: no usable reply after `attempts`.
            ValueError: the key or the address is wrong, so that no request can succeed; nobody listens there, and no
                request has succeeded yet.
        """
        wait = _Wait("nothing was tried")
        for attempt in range(self.settings.attempts):
            if attempt:
                self.counts["again: " + wait.cause] += 1
                await self._back_off(attempt, wait)
            await self._turn()
            self.counts["requests"] += 1
            reply = await self._send(url, body)
            if isinstance(reply, httpx.Response):
                try:
                    return read(reply.json())
                except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                    reply = _Wait("unreadable reply")
            wait = reply
        raise Unavailable(f"{wait.cause}, {self.settings.attempts} attempts{': ' * bool(wait.text)}{wait.text}")

    async def _send(self, url: str, body: dict[str, Any]) -> "httpx.Response | _Wait":
        """A successful response, or why to try again."""
        try:  # httpx limits each read; a server that sends a byte now and then is stopped by the whole's limit
            response = await asyncio.wait_for(self._http.post(url, json=body), self.settings.timeout)
        except (httpx.TimeoutException, asyncio.TimeoutError):
            return _Wait("timeout")
        except httpx.ConnectError as error:
            reason = self._cleared(str(error))
            if not self._succeeded:
                raise ValueError(f"{url}: no connection ({reason}): check the address, or start the server") from error
            return _Wait("no connection", reason)
        except httpx.RemoteProtocolError:
            return _Wait("broken reply")
        except httpx.TransportError as error:
            return _Wait(type(error).__name__)
        except httpx.DecodingError:
            return _Wait("broken reply")
        status = response.status_code
        if response.is_success:
            self._succeeded = True
            return response
        text = self._cleared(response.text)
        if status in AGAIN or status >= 500:
            return _Wait(f"HTTP {status}", text, _retry_after(response.headers.get("Retry-After")))
        if status in NOT_FOR_THIS_CALLER:
            name = self._secret_name if status != 404 else "url"
            raise ValueError(f"{url} says HTTP {status} ({NOT_FOR_THIS_CALLER[status]}; see {name}): {text}")
        raise Rejected(status, text)

    async def _back_off(self, attempt: int, wait: _Wait) -> None:
        """Exponential, with jitter; a server that says when to come back holds up every request until then."""
        longest = self.settings.longest_wait
        if wait.seconds is not None:
            self._not_before = max(self._not_before, time.monotonic() + min(wait.seconds, longest))
        seconds = min(longest, self.settings.first_wait * 2 ** (attempt - 1))
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))

    async def _turn(self) -> None:
        """Wait until the next request may start: evenly spaced where there is a limit per minute."""
        now = time.monotonic()
        start = max(now, self._not_before)
        if self.settings.requests_per_minute is not None:
            self._not_before = start + 60.0 / self.settings.requests_per_minute
        await asyncio.sleep(start - now)

    def _cleared(self, text: str) -> str:
        """The beginning of a server's message on one line, without the secret."""
        if self._secret:
            text = text.replace(self._secret, "***")
        return " ".join(text.split())[:300]


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None for anything else."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
