"""Rank 0 of the service: the model works on the main thread, HTTP on another."""

import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn
from torch import Tensor

from nemo_moslim.data.chat import Prompt
from nemo_moslim.serve_config import ServeConfig
from nemo_moslim.serving.app import ModelFailed, ServedModel, Service, make_app
from nemo_moslim.serving.critic_keeper import CriticWork, Refusal
from nemo_moslim.serving.ranks import IDLE_SECONDS, SCORE, STOP, Ranks
from nemo_moslim.serving.row_queue import Entry, Ticket

POLL_SECONDS = 0.2  # how soon an idle model sees that the server has ended
Probabilities = Callable[[Sequence[Prompt], Sequence[str]], tuple[Tensor, Tensor]]  # fp32 [R, C], cut bool [R]


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; ValueError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"host={host} port={port}: cannot listen there ({error}); give another port=…") from None
    return listener


def lead(
    config: ServeConfig,
    model: ServedModel,
    probabilities: Probabilities,
    ranks: Ranks,
    listener: socket.socket,
    critic: CriticWork | None = None,
    token: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which must reach the main thread; what waits is still scored.

    Args:
        token: what clients have to send; None: nothing.
    """
    service = Service(config, model, ranks, critic)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(service, token),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=seconds_to_end(config),
        )
    )

    def stop(*_) -> None:
        service.stopping = True  # the server ends once what waits is done, and answers 503 until then

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    if not server.started:
        raise RuntimeError("the HTTP server did not start; its error is above")
    host, port = listener.getsockname()[:2]
    wanted = "a token is wanted" if token else "no token is wanted"
    print(f"serving {config.run} on http://{host}:{port} (model {service.model.id}, {wanted})", flush=True)
    try:
        work(service, probabilities, ranks, server, thread)
    except BaseException as error:
        service.queue.fail(ModelFailed(f"the model has failed: {error}"))
        raise
    ranks.share(STOP)
    if not service.stopping:
        raise RuntimeError("the HTTP server ended by itself; its error is above")
    print("stopped: everything that waited has been scored", flush=True)


def seconds_to_end(config: ServeConfig) -> int:
    """Within which every request that was taken is answered, so that a client that hangs holds up the end no longer."""
    limits = config.limits
    return math.ceil(limits.request_seconds + (limits.critic_seconds if config.critic else limits.request_seconds))


def work(
    service: Service, probabilities: Probabilities, ranks: Ranks, server: uvicorn.Server, http: threading.Thread
) -> None:
    """Score batch after batch, and what the critic is asked for in between, until the server's thread has ended."""
    last_sign = time.monotonic()
    while http.is_alive() or len(service.queue):
        batch = service.queue.take(POLL_SECONDS)
        if not batch:
            server.should_exit = server.should_exit or service.stopping
            if time.monotonic() - last_sign > IDLE_SECONDS:
                ranks.share(None)
                last_sign = time.monotonic()
            continue
        if batch[0][0].alone:
            work_on_critic(service, *batch[0])
        else:
            score(service, batch, probabilities, ranks)
        last_sign = time.monotonic()


def score(service: Service, batch: list[Entry], probabilities: Probabilities, ranks: Ranks) -> None:
    """A batch on all ranks; its requests learn what was found."""
    started = time.perf_counter()
    rows: list[tuple[Prompt, str]] = [ticket.rows[place] for ticket, place in batch]
    prompts, responses = map(list, zip(*rows, strict=True))
    ranks.share((SCORE, prompts, responses))
    p, cut = probabilities(prompts, responses)
    p, cut = p.cpu(), cut.tolist()
    seconds = time.perf_counter() - started
    service.queue.scored(len(batch), seconds)
    service.numbers.batch(len(batch), seconds)
    for (ticket, place), row, shortened in zip(batch, p, cut, strict=True):
        ticket.fill(place, (row, shortened))


def work_on_critic(service: Service, ticket: Ticket, place: int) -> None:
    """A request to the critic, on all ranks."""
    name, request = ticket.rows[place]
    try:
        ticket.fill(place, getattr(service.keeper, name)(request))
    except Refusal as refusal:
        ticket.finish(lambda error=refusal: ticket.future.set_exception(error))
