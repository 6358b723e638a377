"""Rank 0's knowledge of where the critic stands: no update is lost, and none is applied twice.

A training names the updates that its critic has behind it. A request that fits is done by all ranks; one that repeats
the last update (its answer was lost) gets that answer again; any other is refused, and the client loads a checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from nemo_moslim.serving.ranks import Ranks


class CriticRow(NamedTuple):
    """An answer to its prompt, and per answer token what the critic learns from; values alone leave that empty."""

    tokens: np.ndarray  # int32: prompt and answer
    prompt_length: int
    old_values: np.ndarray  # fp32
    returns: np.ndarray  # fp32


class CriticFailed(ValueError):
    """An update or checkpoint that could not be; the critic stands nowhere any more."""


class CriticWork(Protocol):
    """The critic on all ranks, each of which is given the same work in the same order."""

    vocabulary: str
    vocab_size: int
    max_length: int

    def values(self, rows: list[CriticRow]) -> list[list[float]]:
        """Before each answer token is drawn, on rank 0."""

    def update(
        self, rows: list[CriticRow], learning_rate: float, value_clip: float | None, step: int, epoch: int, update: int
    ) -> dict[str, float]:
        """One optimizer step; sums over its answer tokens. CriticFailed: they are not finite."""

    def start(self, seed: int) -> None:
        """As it is before its first update."""

    def save(self, run: str, step: int, number: int, previous: int) -> None:
        """Write a checkpoint of a run; of its others, the one of step `previous` stays."""

    def load(self, run: str, step: int) -> None:
        """Read a checkpoint. CriticFailed: it does not fit."""

    def saved_number(self, run: str, step: int) -> int | None:
        """Updates behind the checkpoint of a step; None: there is none. On rank 0 alone."""


class Refusal(Exception):
    """A request that is not done; `status` is HTTP's."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class Standing:
    """The run that the critic belongs to, the updates behind it, and what the last of them answered."""

    run: str | None = None
    number: int = 0
    saved_step: int = 0  # of the last checkpoint that was written or read
    sums: dict[str, float] | None = None


class CriticKeeper:
    """Does the requests of `critic_messages.critic_requests`, one at a time, on the model's thread."""

    def __init__(self, critic: CriticWork, ranks: Ranks, most_rows: int, count: Callable[[str, int], None]):
        """
        Args:
            most_rows: of one update.
            count: is told what has been done, to how many rows.
        """
        self.critic, self.standing = critic, Standing()
        self._ranks, self._most_rows, self._count = ranks, most_rows, count
        self._parts: dict[int, list[CriticRow]] = {}
        self._parts_of: tuple | None = None

    def values(self, request) -> dict:
        """POST /values."""
        self._check(request)
        rows = [critic_row(row) for row in request.rows]
        found = self._on_every_rank("values", rows)
        if not np.isfinite(np.concatenate(found)).all():
            raise Refusal(500, "the critic's values are not finite")
        self._count("values", len(rows))
        return {"values": found}

    def update(self, request) -> dict:
        """POST /update_critic."""
        standing = self.standing
        if (request.run, request.number + 1) == (standing.run, standing.number) and standing.sums:
            return {"sums": standing.sums, "number": standing.number}
        self._check(request)
        rows = self._whole(request)
        if rows is None:
            return {"sums": None, "number": standing.number}
        place = (request.step, request.epoch, request.update)
        sums = self._on_every_rank("update", rows, request.learning_rate, request.value_clip, *place)
        self._count("update", len(rows))
        self.standing = Standing(request.run, request.number + 1, standing.saved_step, sums)
        return {"sums": sums, "number": self.standing.number}

    def save(self, request) -> dict:
        """POST /save_critic; repeated, it is answered and what came before stays."""
        self._check(request)
        standing = self.standing
        # what is on the disk is not enough: it may be from an earlier training of the same name
        repeated = request.step == standing.saved_step
        if repeated and self.critic.saved_number(request.run, request.step) == request.number:
            return self.where()
        self._on_every_rank("save", request.run, request.step, request.number, standing.saved_step)
        self.standing = Standing(standing.run, standing.number, request.step, standing.sums)
        return self.where()

    def load(self, request) -> dict:
        """POST /load_critic."""
        run, step, number = request.run, request.step, request.number
        saved = self.critic.saved_number(run, step) if step else 0
        if saved != number:
            found = "there is none" if saved is None else f"that one has {saved}"
            raise Refusal(
                404,
                f"no checkpoint of the critic of {run} after step {step} and {number} updates ({found}): serve with "
                "critic_dir as in that training's last start; it keeps the last two",
            )
        self.standing, self._parts_of = Standing(), None
        self._on_every_rank(*(("load", run, step) if step else ("start", request.seed)))
        self.standing = Standing(run, number, step)
        return self.where()

    def where(self) -> dict:
        """GET /critic."""
        return {"run": self.standing.run, "number": self.standing.number}

    def _check(self, request) -> None:
        standing = self.standing
        if (request.run, request.number) == (standing.run, standing.number):
            return
        if standing.run is None:
            raise Refusal(409, "no training's critic is loaded: POST /load_critic first")
        if request.run != standing.run:
            raise Refusal(409, f"the critic is held by another training ({standing.run})")
        raise Refusal(409, f"the critic has {standing.number} updates behind it, not {request.number}")

    def _whole(self, request) -> list[CriticRow] | None:
        """All rows of an update, once its last part has come."""
        update = (request.run, request.number, request.parts)
        if self._parts_of != update:
            self._parts_of, self._parts = update, {}
        if request.part > request.parts:
            raise Refusal(422, f"part: {request.part} of {request.parts}")
        self._parts[request.part] = [critic_row(row) for row in request.rows]
        total = sum(map(len, self._parts.values()))
        if total > self._most_rows:
            self._parts_of, self._parts = None, {}
            raise Refusal(422, f"rows: an update has at most {self._most_rows} (limits.queue_rows)")
        if len(self._parts) < request.parts:
            return None
        rows = [row for part in sorted(self._parts) for row in self._parts[part]]
        self._parts_of, self._parts = None, {}
        return rows

    def _on_every_rank(self, name: str, *work):
        self._ranks.share((name, *work))
        try:
            return getattr(self.critic, name)(*work)
        except CriticFailed as error:
            self.standing = Standing()
            raise Refusal(500, str(error)) from None


def critic_row(row) -> CriticRow:
    """A row of a request."""
    learnt = [np.asarray(getattr(row, name, ()), dtype=np.float32) for name in ("old_values", "returns")]
    return CriticRow(np.asarray(row.tokens, dtype=np.int32), row.prompt_length, *learnt)
