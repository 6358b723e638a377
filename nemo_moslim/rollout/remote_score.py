"""A reward model in another job, behind the interface of one on these ranks (examples/serve_reward.py).

Rank 0 asks the service and hands its answers to the others. Scoring changes nothing in the service, so that a request
is sent again until it is answered: while the service is restarted, nothing is lost or scored twice over. It waits for
scores in a thread, which calls no collectives and leaves tensors alone; the ranks go on until they need them.

Shapes: R rows, N heads (preference dimensions), C classes (the sum of all heads' levels).
"""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import requests
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_moslim.data.chat import Prompt
from nemo_moslim.keys import SERVICE_TOKEN, service_token
from nemo_moslim.parallel.layout import is_rank_zero, world_size
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.scorer import Scores, most_likely_levels
from nemo_moslim.stop_request import StopRequest

AWAY = (408, 429, 502, 503, 504)  # come again
NOT_ITS_OWN = (404, 500)  # of a proxy or another server, where they come without the service's words
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0  # beyond what the service gives a request
OTHERS_WAIT = timedelta(days=1)  # for rank 0, which waits as long as it is told to; a dead one is noticed at once
POLL_SECONDS = 0.2  # how soon a wait sees that this process is told to stop
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds between two attempts, doubled each time


class ServiceError(ValueError):
    """The service does not give what a step needs: it is away, refuses, or answers in another form."""


class ServiceUnavailable(ServiceError):
    """The service has not answered for as long as it was given, or until this process was told to stop."""


class Refused(ServiceError):
    """The service does not do what it is asked for; `status` is HTTP's."""

    def __init__(self, text: str, status: int):
        super().__init__(text, status)
        self.text, self.status = text, status

    def __str__(self) -> str:
        return self.text


class RewardService:
    """Requests to a service, repeated while it is away. Every rank makes one and calls it alike.

    Attributes:
        gave_up: the last request failed; the same on every rank.
    """

    def __init__(self, url: str, patience: float, stop: StopRequest):
        """
        Args:
            patience: seconds that a request is tried again for, after its first failure.
            stop: ends the waiting for a service that is away.

        Raises:
            ServiceUnavailable: no answer in that time.
            ValueError: something else than this service answers, or it wants another token.
        """
        self._answered = False  # ever
        self.url, self.patience, self.stop, self.gave_up = url.rstrip("/"), patience, stop, False
        self._group = None
        if world_size() > 1:  # of its own: the others wait for rank 0 while that one waits for the service
            self._group = dist.new_group(backend="gloo", timeout=OTHERS_WAIT)
        self._session, self._answer_seconds = requests.Session(), ANSWER_SECONDS
        self.model = self.on_every_rank(self._first_answer)
        self.schema = PreferenceSchema.from_dict(self.model["preferences"])
        self._answer_seconds += 2 * self.model["request_seconds"]

    def _first_answer(self) -> dict[str, Any]:
        if token := service_token():
            self._session.headers["Authorization"] = f"Bearer {token}"
        model = self.ask("GET", "/model")
        if problem := mistake_in_model(model):
            raise ServiceError(f"reward={self.url}: GET /model answers {problem}: it is no serve_reward.py")
        return model

    def start(self, items: Sequence[dict], normalize: str) -> Callable[[], list[dict]]:
        """Send items to POST /score; what is returned waits for the scored ones and gives them on every rank.

        Every rank passes all items and calls it, before the service is asked for anything else.

        Raises (what is returned):
            ServiceUnavailable: no answer in time, or told to stop while the service is away.
            ServiceError: the service refuses a row, serves another model than at the start, or its answer has another
                form than `POST /score`'s, or numbers that are not finite.
        """
        head, tail = f'{{"normalize":"{normalize}","items":['.encode(), b"]}"

        def ask() -> list[dict]:
            rows = [json.dumps(item, ensure_ascii=False).encode() for item in items]
            parts = self.within_limits(rows, len(head + tail))
            answers = [answer for part in parts for answer in self._scored(head + part + tail)]
            if problem := mistake_in_scores(answers, items, self.schema):
                raise self.misfit("POST /score", problem)
            return answers

        answered = in_background(ask) if is_rank_zero() else ask  # the others do not call it
        return lambda: self.on_every_rank(answered)

    def _scored(self, body: bytes) -> list[dict]:
        answer = self.ask("POST", "/score", body)
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
            raise self.misfit("POST /score", "without a list of items")
        if answer.get("model") != self.model["id"]:
            raise ServiceError(
                f"reward={self.url}: it serves another model ({answer.get('model')}) than at the start "
                f"({self.model['id']}): serve that one again, the same command resumes"
            )
        return answer["items"]

    def misfit(self, request: str, problem: str) -> ServiceError:
        """The error of an answer that has another form than docs/serving.md gives."""
        return ServiceError(
            f"reward={self.url}: {request} answers {problem}: serve with this version's serve_reward.py, or mend the "
            "service; the same command resumes"
        )

    def within_limits(self, rows: Sequence[bytes], rest: int) -> list[bytes]:
        """Rows, each as JSON, in pieces that a request of `rest` further bytes may hold; joined by commas."""
        pieces, part, size = [], [], rest
        for row in rows:
            full = len(part) == self.model["request_items"]
            if part and (full or size + len(row) + 1 > self.model["request_bytes"]):
                pieces.append(b",".join(part))
                part, size = [], rest
            part.append(row)
            size += len(row) + 1
        return [*pieces, b",".join(part)] if part else pieces

    def ask(self, method: str, path: str, body: bytes | None = None, seconds: float | None = None) -> Any:
        """One request of rank 0, until it is answered or the patience is over; the answer's JSON.

        Args:
            seconds: that an answer may take; None: as scores.

        Raises:
            Refused: another status than 200 that is no reason to come again. Once the service has answered, a 404 or
                500 without its own words is one: something else stands in its place while it is restarted.
            ServiceUnavailable, ValueError: as `start`.
        """
        end, wait = None, FIRST_WAIT
        while True:
            pause = wait
            try:
                answer = self._session.request(
                    method, self.url + path, data=body, headers={"Content-Type": "application/json"},
                    timeout=(CONNECT_SECONDS, seconds or self._answer_seconds),
                )  # fmt: skip
                if answer.status_code == 200:
                    found = answer.json()
                    self._answered = True
                    return found
                reason = f"{answer.status_code} {detail(answer) or answer.reason}"
                in_its_place = self._answered and answer.status_code in NOT_ITS_OWN and detail(answer) is None
                if answer.status_code not in AWAY and not in_its_place:
                    text = f"reward={self.url}: {method} {path} is refused: {reason}{remedy(answer)}"
                    raise Refused(text, answer.status_code)
                pause = max(wait, retry_after(answer))
            except requests.exceptions.InvalidURL as error:
                raise ValueError(f"reward={self.url}: {error}; expected http://HOST:PORT") from None
            except requests.RequestException as error:  # a body that is cut short is one too
                reason = type(error).__name__
            end = end or time.monotonic() + self.patience
            if time.monotonic() + pause > end or not self._slept(pause):
                raise ServiceUnavailable(
                    f"reward={self.url}: {method} {path} not answered in reward_patience={self.patience:g} s (last: "
                    f"{reason}): start the service again (examples/serve_reward.py); the same command resumes"
                )
            wait = min(2 * wait, LONGEST_WAIT)

    def _slept(self, seconds: float) -> bool:
        """False once this process is told to stop."""
        end = time.monotonic() + seconds
        while not self.stop.told and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return not self.stop.told

    def on_every_rank(self, ask: Callable[[], Any]) -> Any:
        """What rank 0 finds, or the error that it meets, on every rank."""
        box = [None, None]
        if is_rank_zero():
            try:
                box = [ask(), None]
            except ValueError as error:
                box = [None, error]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        found, error = box
        self.gave_up = isinstance(error, ServiceError)
        if error is not None:
            raise error
        return found


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin `work` in a thread; what is returned waits for its result, or raises its error."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a process that ends does not wait for it
    return future.result


def detail(answer: requests.Response) -> str | None:
    """What an error's body says; None where it is not the service's."""
    try:
        return str(answer.json()["detail"])[:300]
    except (requests.JSONDecodeError, KeyError, TypeError):
        return None


def mistake_in_model(model: Any) -> str | None:
    """What GET /model's answer lacks; None where a training can use it."""
    if not isinstance(model, dict):
        return f"no object but {type(model).__name__}"
    for key in ("id", "preferences", "request_items", "request_bytes", "request_seconds"):
        if key not in model:
            return f"without {key!r}"
    for key in ("request_items", "request_bytes", "request_seconds"):
        if not is_number(model[key]) or model[key] <= 0:
            return f"{key}={model[key]!r}"
    try:
        PreferenceSchema.from_dict(model["preferences"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"preferences that are none ({error})"
    return None


def mistake_in_scores(answers: Sequence[Any], items: Sequence[dict], schema: PreferenceSchema) -> str | None:
    """What is wrong with the scored items, the first one named by its number; None where nothing is.

    A reward and its parts are looked at where the item asked for levels.
    """
    if len(answers) != len(items):
        return f"{len(answers)} items to {len(items)}"
    for number, (answer, item) in enumerate(zip(answers, items, strict=True)):
        if not isinstance(answer, dict) or not isinstance(answer.get("cut"), bool):
            return f"item {number} without 'cut'"
        if item.get("preferences") is not None and not is_number(answer.get("reward")):
            return f"item {number} with reward {answer.get('reward')!r}"
        heads, parts = answer.get("probabilities"), answer.get("parts")
        for dimension in schema.dimensions:
            found = heads.get(dimension.name) if isinstance(heads, dict) else None
            if not isinstance(found, list) or len(found) != dimension.levels or not all(map(is_number, found)):
                return f"item {number} without {dimension.levels} probabilities of {dimension.name}"
            part = parts.get(dimension.name) if isinstance(parts, dict) else None
            if item.get("preferences") is not None and not is_number(part):
                return f"item {number} without its part of {dimension.name}"
    return None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def remedy(answer: requests.Response) -> str:
    """What to do about a refusal that is not the request's fault."""
    return f": set {SERVICE_TOKEN} to the service's" if answer.status_code == 401 else ""


def retry_after(answer: requests.Response) -> float:
    """Seconds that the service asks to wait; 0 where it does not say."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


class RemoteRewardModel:
    """As `LocalRewardModel` for a `WeightedScorer`: probabilities of a reward model, here of a service."""

    def __init__(self, service: RewardService):
        self.service, self.schema = service, service.schema

    def start(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Callable[[], tuple[Tensor, Tensor]]:
        """Send answers; what is returned waits for fp32 [R, C] and bool [R], rows that lost text; see `Scorer`."""
        items = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
        answered = self.service.start(items, "total")
        return lambda: columns(answered(), self.schema)


class RemoteScorer:
    """As `LocalScorer`: MOSLIM's rewards, mapped by the service, which holds the statistics of Eq. 11."""

    def __init__(self, service: RewardService, normalize: str):
        self.service, self.schema, self.normalize = service, service.schema, normalize

    def start(
        self, prompts: Sequence[Prompt], responses: Sequence[str], preferences: Sequence[dict[str, int]]
    ) -> Callable[[], Scores]:
        """See `Scorer`."""
        rows = zip(prompts, responses, preferences, strict=True)
        items = [{"prompt": p, "response": r, "preferences": asked} for p, r, asked in rows]
        answered = self.service.start(items, self.normalize)
        return lambda: self._scores(answered())

    def _scores(self, answers: Sequence[dict]) -> Scores:
        names = self.schema.names
        p, shortened = columns(answers, self.schema)
        rewards = torch.tensor([answer["reward"] for answer in answers])
        parts = torch.tensor([[answer["parts"][name] for name in names] for answer in answers])
        levels = [dimension.levels for dimension in self.schema.dimensions]
        return Scores(rewards, parts, most_likely_levels(p, levels), p, int(shortened.sum()))


def columns(answers: Sequence[dict], schema: PreferenceSchema) -> tuple[Tensor, Tensor]:
    """Probabilities fp32 [R, C] and cut bool [R] of scored items."""
    rows = [[value for name in schema.names for value in answer["probabilities"][name]] for answer in answers]
    return torch.tensor(rows), torch.tensor([answer["cut"] for answer in answers])
