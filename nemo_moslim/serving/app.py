"""The HTTP interface on rank 0: requests are checked, wait in the queue, and are mapped to rewards.

Shapes: R items of a request, N heads (preference dimensions), C classes (the sum of all heads' levels).
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from torch import Tensor

from nemo_moslim.data.chat import ChatEncoder
from nemo_moslim.functional.reward_mapping import map_rewards
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.scorer import asked_levels
from nemo_moslim.serve_config import ServeConfig
from nemo_moslim.serving.critic_app import add_critic, describe_critic
from nemo_moslim.serving.critic_keeper import CriticKeeper, CriticWork, Refusal
from nemo_moslim.serving.guard import Guard
from nemo_moslim.serving.messages import HealthAnswer, ModelAnswer, Problem, ScoreAnswer, score_request
from nemo_moslim.serving.numbers import Counted, Numbers
from nemo_moslim.serving.ranks import Ranks
from nemo_moslim.serving.row_queue import QueueFull, RowQueue, Ticket

AWAY_SECONDS = "5"  # Retry-After of a service that is being stopped


@dataclass(frozen=True)
class ServedModel:
    """What the interface needs to know of the reward model; statistics fp32 [C] on the host."""

    schema: PreferenceSchema
    loss: str
    average: Tensor
    deviation: Tensor
    max_length: int
    encoder: ChatEncoder
    id: str = field(init=False)

    def __post_init__(self):
        content = [self.schema.to_dict(), self.loss, self.average.tolist(), self.deviation.tolist()]
        object.__setattr__(self, "id", hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16])

    @property
    def levels(self) -> list[int]:
        """K of each head, in order."""
        return [dimension.levels for dimension in self.schema.dimensions]

    def by_dimension(self, values: Sequence[float]) -> dict[str, list[float]]:
        """C values by the dimension's name."""
        return {name: list(values[columns]) for name, columns in self.schema.slices.items()}

    def check_dialogue(self, messages: Sequence) -> None:
        """HTTPException 422 if the chat template does not take these roles."""
        try:
            self.encoder.encode_prompts([[{**message, "content": ""} for message in messages]])
        except Exception as error:  # a template is a program, and raises what it likes
            raise HTTPException(422, f"the chat template of the model refuses this dialogue: {error}") from None


class ModelFailed(RuntimeError):
    """The model has raised; the service ends, and may be started again."""


class Service:
    """What requests share on the server's thread. `keeper` is of the critic, None where none is held."""

    def __init__(self, config: ServeConfig, model: ServedModel, ranks: Ranks, critic: CriticWork | None):
        self.config, self.model = config, model
        wait = config.batch.wait_milliseconds / 1000
        self.queue = RowQueue(config.limits.queue_rows, config.batch.rows, wait)
        self.numbers = Numbers(self.queue)
        self.keeper = critic and CriticKeeper(critic, ranks, config.limits.queue_rows, self.numbers.critic)
        self.stopping = False

    async def probabilities(self, rows: list[tuple]) -> tuple[Tensor, list[bool]]:
        """fp32 [R, C] of (prompt, response) pairs, and which were cut.

        Raises:
            HTTPException: 429 no room, 503 stopping, failed or not scored in time.
        """
        results = await self._results(Ticket(rows), "request_seconds")
        return torch.stack([p for p, _ in results]), [cut for _, cut in results]

    async def work_on_critic(self, name: str, request) -> dict:
        """The answer of the keeper's function of this name.

        Raises:
            HTTPException: as `probabilities`, and what the keeper refuses.
        """
        (answer,) = await self._results(Ticket([(name, request)], alone=True), "critic_seconds")
        return answer

    async def _results(self, ticket: Ticket, limit: str) -> list:
        if self.stopping:
            raise HTTPException(503, "the service is being stopped", {"Retry-After": AWAY_SECONDS})
        seconds = getattr(self.config.limits, limit)
        try:
            self.queue.put(ticket)
        except QueueFull as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.seconds)}) from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(ticket.future), seconds)
        except asyncio.TimeoutError:
            self.queue.give_up(ticket)
            late = f"not done within {seconds:g} s (limits.{limit})"
            raise HTTPException(503, late, {"Retry-After": AWAY_SECONDS}) from None
        except asyncio.CancelledError:  # the client has gone
            self.queue.give_up(ticket)
            raise
        except Refusal as error:
            raise HTTPException(error.status, error.detail) from None
        except ModelFailed as error:
            raise HTTPException(503, str(error), {"Retry-After": AWAY_SECONDS}) from None

    async def score(self, items: list, normalize: str) -> list[dict]:
        """The items of POST /score's answer."""
        for item in items:
            if not isinstance(item.prompt, str):
                self.model.check_dialogue([message.model_dump() for message in item.prompt])
        prompts = [p if isinstance(p, str) else [m.model_dump() for m in p] for p in (item.prompt for item in items)]
        p, cut = await self.probabilities(list(zip(prompts, [item.response for item in items], strict=True)))
        if not torch.isfinite(p).all():
            raise HTTPException(500, "the reward model's probabilities are not finite")
        model = self.model
        asked = asked_levels([item.preferences or {} for item in items], model.schema)
        rewards, parts = map_rewards(p, asked, model.average, model.deviation, model.levels, normalize)
        answers = []
        for row, item in enumerate(items):
            mapped = item.preferences is not None
            named = dict(zip(model.schema.names, parts[row].tolist(), strict=True))
            answers.append(
                {
                    "probabilities": model.by_dimension(p[row].tolist()),
                    "reward": rewards[row].item() if mapped else None,
                    "parts": named if mapped else None,
                    "cut": cut[row],
                }
            )
        return answers

    def description(self) -> dict:
        """The answer of GET /model."""
        model, limits = self.model, self.config.limits
        return {
            "id": model.id, "preferences": model.schema.to_dict(), "loss": model.loss,
            "average": model.by_dimension(model.average.tolist()),
            "deviation": model.by_dimension(model.deviation.tolist()),
            "max_length": model.max_length, "request_items": limits.request_items,
            "request_bytes": limits.request_bytes, "request_seconds": limits.request_seconds,
            "critic": describe_critic(self),
        }  # fmt: skip


def make_app(service: Service, token: str | None) -> Counted:
    """The ASGI application of a service; with a token, everything but /health needs it."""
    problems = {status: {"model": Problem} for status in (400, 401, 408, 413, 422, 429, 500, 503)}
    bearer = [Depends(HTTPBearer(auto_error=False))] if token else []  # checked by Guard; here for the description
    app = FastAPI(title="nemo_moslim reward model", version="1", responses=problems)
    body = score_request(service.model.schema, service.config.normalize, service.config.limits.request_items)

    @app.post("/score", dependencies=bearer, response_model=None, responses={200: {"model": ScoreAnswer}})
    async def score(request: body):
        """Probabilities of every level for each answer, and the reward (Eq. 11) where preferences are given."""
        answers = await service.score(request.items, request.normalize)
        return JSONResponse({"items": answers, "model": service.model.id})

    @app.get("/model", dependencies=bearer)
    async def model() -> ModelAnswer:
        """Dimensions, levels and statistics of the reward model, and the limits of a request."""
        return service.description()

    @app.get("/health")
    async def health(response: Response) -> HealthAnswer:
        """200 while requests are taken, 503 once the service has been told to end."""
        response.status_code = 503 if service.stopping else 200
        return {"status": "stopping" if service.stopping else "ok", "queued": len(service.queue)}

    @app.get("/metrics", dependencies=bearer, response_class=PlainTextResponse)
    async def metrics():
        """Prometheus' text format."""
        return Response(service.numbers.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        return JSONResponse({"detail": first_mistake(error)}, 422)

    if service.keeper:
        add_critic(app, service, bearer)
    return Counted(Guard(app, token, service.config.limits, service.queue.seconds_to_clear), service.numbers)


def first_mistake(error: RequestValidationError) -> str:
    """Place and reason of the first mistake in a body; what was sent is not repeated."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    more = len(error.errors()) - 1
    text = f"{place}: {first['msg']}" + (f" (and {more} more)" if more else "")
    return text.encode("utf-8", "replace").decode()  # a field's name may be no valid Unicode
