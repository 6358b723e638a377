"""PPO's critic in the reward model's service (examples/serve_reward.py critic=true), behind the loop's interface.

The service keeps the critic's weights and optimizer, and writes a checkpoint of them whenever the policy does. Updates
since its last one are kept here too, as they were sent: a service that comes back reads its checkpoint and is sent them
again, and where it is away when the policy is saved, they go into the policy's checkpoint. So neither side ever
goes back a step, whichever of them ends when.

    RUN/checkpoints/step=000100/critic_service.jsonl   the run's name, step and number of updates of the service's
                                                       checkpoint; then a line per update since

Shapes: B rows of a micro-batch, T answer positions.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.checks import require
from nemo_moslim.data.chat import vocabulary_digest
from nemo_moslim.parallel.layout import data_parallel_place, gather_over_data_ranks, world_size
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.rollout.remote_score import (
    ANSWER_SECONDS,
    Refused,
    RewardService,
    ServiceError,
    ServiceUnavailable,
    is_number,
)

FILE = "critic_service.jsonl"
OUT_OF_STEP = 409  # the service has another number of updates behind it, as after its restart
RESTORES = 10  # for one request: a service that fails at it each time is not waited for without end
HEAD_BYTES = 1000  # most of a request besides its rows


@dataclass(frozen=True)
class Update:
    """One optimizer step as it is sent; `parts` are the rows of its requests, the same object in every epoch."""

    head: dict
    parts: list[bytes]


class RemoteCritic:
    """See `Critic`. Requests and updates live on rank 0; the others learn what it finds."""

    models: dict = {}
    in_service = True

    def __init__(self, service: RewardService, config: PolicyTrainingConfig, tokenizer, max_length: int):
        """
        Args:
            max_length: tokens of prompt and answer together.

        Raises:
            ValueError: the service holds no critic, or one that numbers tokens otherwise or reads fewer of them.
        """
        held = service.model.get("critic")
        address = config.reward[0]
        require(held is not None, "reward", address, "a service with a critic: serve with critic=true critic_dir=DIR")
        if held["vocabulary"] != vocabulary_digest(tokenizer):
            raise ValueError(
                f"reward={address}: its critic numbers tokens otherwise than policy={config.policy}: both need "
                "the same tokenizer"
            )
        require(
            max_length <= held["max_length"],
            "max_length",
            max_length,
            f"at most {held['max_length']}, as the service's critic reads: lower it, or serve with "
            f"critic_training.max_length={max_length}",
        )
        self.service, self.algorithm, self.seed = service, config.algorithm, config.trainer.seed
        folder = Path(config.run_dir).resolve()
        name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in folder.name)[-40:]
        self.run = f"run-{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        self._seconds = held["request_seconds"] + ANSWER_SECONDS
        self._saved = {"step": 0, "number": 0}  # the service's checkpoint: steps and updates behind it
        self._since: list[Update] = []  # on rank 0

    def resume(self, checkpoint: Path | None) -> None:
        """See `Critic`.

        Raises:
            ValueError: the run's critic was not a service's, or the service has no checkpoint of it.
        """
        if checkpoint:
            self._read(checkpoint)
        self.service.on_every_rank(lambda: self._in_step(self._restore))

    def values(self, batches: list[PolicyBatch]) -> list[Tensor]:
        """See `Critic`."""
        places = [(number, row) for number, batch in enumerate(batches) for row in counted_rows(batch)]
        mine = [row_json(batches[number], row, learnt=False) for number, row in places]
        gathered = gather([mine])
        rows = [row for of_rank in gathered for row in of_rank[0]]
        found = self.service.on_every_rank(lambda: self._in_step(lambda: self._values(rows)))
        rank = data_parallel_place()[0] if world_size() > 1 else 0
        first = sum(len(of_rank[0]) for of_rank in gathered[:rank])
        columns = [torch.zeros(batch.response_mask.shape) for batch in batches]
        for (number, row), values in zip(places, found[first : first + len(mine)], strict=True):
            columns[number][row, : len(values)] = torch.tensor(values)
        return columns

    def learn(
        self, updates: list[list[PolicyBatch]], orders: Sequence[Sequence[int]], step: int
    ) -> list[list[dict[str, float]]]:
        """See `Critic`."""
        mine = [[row_json(b, row, learnt=True) for b in update for row in counted_rows(b)] for update in updates]
        gathered = gather(mine)

        def ask() -> list[list[dict[str, float]]]:
            parts = [
                self.service.within_limits([row for of_rank in gathered for row in of_rank[index]], HEAD_BYTES) or [b""]
                for index in range(len(updates))
            ]
            done = len(self._since)
            try:
                return [
                    [self._learn(step, epoch, number, parts[index]) for number, index in enumerate(order)]
                    for epoch, order in enumerate(orders)
                ]
            except BaseException:  # the policy will not have learnt from this step either
                del self._since[done:]
                raise

        return self.service.on_every_rank(ask)

    def save(self, checkpoint: Path, step: int) -> None:
        """See `Critic`; a service that is away does not hinder it."""

        def write() -> None:
            if not self.service.gave_up:
                try:
                    self._in_step(lambda: self._save(step))
                except ServiceUnavailable:
                    pass
            lines = [json.dumps({"run": self.run, **self._saved}).encode()]
            lines += [with_rows(u.head, "parts", b",".join(b"[%b]" % part for part in u.parts)) for u in self._since]
            (checkpoint / FILE).write_bytes(b"\n".join(lines) + b"\n")

        self.service.on_every_rank(write)

    def _read(self, checkpoint: Path) -> None:
        file = checkpoint / FILE
        if not file.is_file():
            raise ValueError(f"{checkpoint}: its critic was no service's; resume with algorithm.critic as at the start")
        with file.open() as lines:
            saved = json.loads(next(lines))
            self._since = []
            for line in lines:
                head = json.loads(line)
                parts = [json.dumps(rows)[1:-1].encode() for rows in head.pop("parts")]
                self._since.append(Update(head, parts))
        self.run = saved.pop("run")
        self._saved = saved

    # From here on rank 0 alone.

    @property
    def _number(self) -> int:
        """Updates that the critic has behind it."""
        return self._saved["number"] + len(self._since)

    def _in_step(self, send: Callable[[], Any]) -> Any:
        """The answer to `send`, from a critic that stands where this one does."""
        for _ in range(RESTORES):
            try:
                return send()
            except Refused as error:
                if error.status != OUT_OF_STEP:
                    raise
            holder = self._field("run", str | None, "/critic")
            if holder not in (None, self.run):
                raise ServiceError(
                    f"reward={self.service.url}: its critic is now held by another training ({holder}): a service "
                    "serves one at a time; the same command resumes"
                )
            try:
                self._restore()
            except Refused as error:
                if error.status != OUT_OF_STEP:
                    raise
        raise ServiceError(
            f"reward={self.service.url}: the critic was lost {RESTORES} times at the same request; the service's log "
            "should say why"
        )

    def _restore(self) -> None:
        self._ask("/load_critic", {"run": self.run, **self._saved, "seed": self.seed})
        for place, update in enumerate(self._since):
            self._send(update, self._saved["number"] + place)

    def _values(self, rows: list[bytes]) -> list[list[float]]:
        head = {"run": self.run, "number": self._number}
        parts = self.service.within_limits(rows, HEAD_BYTES)
        found = [values for part in parts for values in self._field("values", list, "/values", head, part)]
        lengths = [len(row["tokens"]) - row["prompt_length"] for row in map(json.loads, rows)]
        if [len(values) if isinstance(values, list) else None for values in found] != lengths:
            raise self.service.misfit("POST /values", "another number of values than of answer tokens")
        if not all(is_number(value) for values in found for value in values):
            raise self.service.misfit("POST /values", "values that are not finite numbers")
        return found

    def _learn(self, step: int, epoch: int, number: int, parts: list[bytes]) -> dict[str, float]:
        settings = {"learning_rate": self.algorithm.critic_lr, "value_clip": self.algorithm.value_clip}
        update = Update({"step": step + 1, "epoch": epoch + 1, "update": number + 1, **settings}, parts)
        sums = self._in_step(lambda: self._send(update, self._number))
        self._since.append(update)
        return sums

    def _send(self, update: Update, number: int) -> dict[str, float]:
        head = {"run": self.run, "number": number, **update.head, "parts": len(update.parts)}
        for place, rows in enumerate(update.parts):
            sums = self._field("sums", dict | None, "/update_critic", {**head, "part": place + 1}, rows)
        if not sums or not all(map(is_number, sums.values())):
            raise self.service.misfit("POST /update_critic", "sums that are not finite numbers")
        return sums

    def _save(self, step: int) -> None:
        saved = {"step": step, "number": self._number}
        self._ask("/save_critic", {"run": self.run, **saved})
        self._saved, self._since = saved, []

    def _field(self, name: str, kind: Any, path: str, head: dict | None = None, rows: bytes | None = None) -> Any:
        """A field of the answer, which has to be of this type."""
        answer = self._ask(path, head, rows)
        found = answer.get(name, self) if isinstance(answer, dict) else self
        if not isinstance(found, kind):
            raise self.service.misfit(path, f"without {name!r}")
        return found

    def _ask(self, path: str, head: dict | None = None, rows: bytes | None = None) -> Any:
        if head is None:
            return self.service.ask("GET", path)
        body = json.dumps(head).encode() if rows is None else with_rows(head, "rows", rows)
        return self.service.ask("POST", path, body, self._seconds)


def gather(mine: list[list[bytes]]) -> list[list[list[bytes]]]:
    """Of all data-parallel ranks, in order of rank."""
    return gather_over_data_ranks(mine) if world_size() > 1 else [mine]


def counted_rows(batch: PolicyBatch) -> list[int]:
    """Rows that are learnt from; the others' values are never read."""
    return batch.response_mask.any(-1).nonzero()[:, 0].tolist()


def row_json(batch: PolicyBatch, row: int, learnt: bool) -> bytes:
    """An answer for the service; floats come through JSON to the bit."""
    prompt, answer = int(batch.prompt_lengths[row]), int(batch.response_mask[row].sum())
    content = {"tokens": batch.tokens[row, : prompt + answer].tolist(), "prompt_length": prompt}
    if learnt:
        content["old_values"] = batch.old_values[row, :answer].tolist()
        content["returns"] = batch.returns[row, :answer].tolist()
    return json.dumps(content).encode()


def with_rows(head: dict, name: str, rows: bytes) -> bytes:
    """A JSON object with a further field, a list whose content is JSON already."""
    return json.dumps(head)[:-1].encode() + b', "%b": [%b]}' % (name.encode(), rows)
