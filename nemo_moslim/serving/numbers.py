"""What GET /metrics tells Prometheus."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CRITIC_PATHS = ("/values", "/update_critic", "/save_critic", "/load_critic", "/critic")
# others are counted as one, so that nobody can make up labels
PATHS = ("/score", "/model", "/health", "/metrics", *CRITIC_PATHS)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
ROWS = tuple(2**power for power in range(13))


class Numbers:
    """Counters of one service; a registry of its own, so that several can live in a process."""

    def __init__(self, queue):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own = {"registry": self.registry}
        self.requests = Counter("moslim_requests", "Requests by path and status", ["path", "status"], **own)
        taken = "From request to answer"
        self.request_seconds = Histogram("moslim_request_seconds", taken, ["path"], buckets=SECONDS, **own)
        self.answers = Counter("moslim_answers_scored", "Answers scored", **own)
        self.batch_rows = Histogram("moslim_batch_rows", "Answers scored together", buckets=ROWS, **own)
        self.batch_seconds = Histogram("moslim_batch_seconds", "Time to score a batch", buckets=SECONDS, **own)
        self.critic_rows = Counter("moslim_critic_answers", "Answers that the critic worked on", ["work"], **own)
        self.critic_work = Counter("moslim_critic_work", "Values asked for, and updates", ["work"], **own)
        Gauge("moslim_queued_answers", "Answers that wait", **own).set_function(lambda: len(queue))

    def batch(self, rows: int, seconds: float) -> None:
        """A batch has been scored."""
        self.answers.inc(rows)
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def critic(self, work: str, rows: int) -> None:
        """The critic has found values, or has learnt."""
        self.critic_work.labels(work).inc()
        self.critic_rows.labels(work).inc(rows)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class Counted:
    """ASGI application around another one that counts its answers."""

    def __init__(self, app, numbers: Numbers):
        self.app, self.numbers = app, numbers

    async def __call__(self, scope, receive, send):
        """One request (or the server's start and end)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in PATHS else "other"
        started = time.perf_counter()

        async def counted(message):
            if message["type"] == "http.response.start":
                self.numbers.requests.labels(path, str(message["status"])).inc()
                self.numbers.request_seconds.labels(path).observe(time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, counted)
