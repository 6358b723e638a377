"""A policy's answers to the questions, kept as jsonl while they are made, so that a run that was cut short goes on.

    OUTPUT/answers/NAME.jsonl   {"key", "turn", "prompt", "asked", "response", "tokens", "cut", "settings"} per answer;
                                a turn that was left out as too long: {…, "response": null, "dropped": long_prompts}

`settings` is a digest of what the answers depend on (policy, sampling, seed, precision): rows of other settings stay in
the file and are not used. An answer's random numbers follow from seed, question and turn alone, so that neither a
restart nor a limit on the questions changes it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_moslim.config import to_plain
from nemo_moslim.console import progress
from nemo_moslim.data.chat import Prompt, as_messages
from nemo_moslim.data.prompt_dataset import fit_left, tag_prompt
from nemo_moslim.evaluation.benchmarks.questions import Question
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import is_run, resolve_checkpoint

if TYPE_CHECKING:
    from nemo_moslim.rollout.answer import Answerer

Place = tuple[str, int]  # question, turn (from 1)


@dataclass(frozen=True)
class Asked:
    """One turn of a question, ready to be put to the policy."""

    place: Place
    prompt: Prompt  # without tags
    preferences: dict[str, int]
    cut: bool = False


def settings_digest(config: EvaluateConfig) -> str:
    """What an answer depends on beside its prompt, as 16 hex digits. A checkpoint is known by its path and date."""
    path = resolve_checkpoint(config.policy) if is_run(config.policy) else Path(config.policy)
    dated = path / "weights" if (path / "weights").is_dir() else path / "config.json"
    # no stop tokens count as none named, so that answers of before there were any stay valid
    sampling = {k: v for k, v in to_plain(config.generation).items() if k != "batch_size" and v != []}
    parts = [str(path.resolve()), dated.stat().st_mtime_ns if dated.exists() else 0, sampling, config.seed,
             config.precision, to_plain(config.preferences)]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class AnswerFile:
    """The answers of one benchmark; every rank reads them, rank 0 adds to them."""

    def __init__(self, path: Path, settings: str, writes: bool):
        """
        Raises:
            ValueError: a damaged line.
        """
        self.path, self.settings, self.writes = path, settings, writes
        self.rows: dict[Place, dict[str, Any]] = {}
        self.dropped: dict[Place, dict[str, Any]] = {}
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break  # the last line was cut short
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); mend the line or remove it") from error
            if row.get("settings") == settings:
                self._keep([row])

    def answer_to(self, asked: Asked) -> dict[str, Any] | None:
        """The row that answers exactly this, or None."""
        row = self.rows.get(asked.place)
        fits = row is not None and (row["prompt"], row["asked"]) == (asked.prompt, asked.preferences)
        return row if fits and row["cut"] == asked.cut else None

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows; on rank 0 they are on disk when this returns."""
        self._keep(rows)
        if not self.writes or not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            end = file.seek(0, 2)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def is_dropped(self, question: Question, turn: int, config: EvaluateConfig) -> bool:
        """Whether exactly this turn was found too long before, with the same long_prompts."""
        row = self.dropped.get((question.key, turn))
        if row is None or row["dropped"] != config.long_prompts:
            return False
        return row["prompt"] == prompt_of(question, turn, self) and row["asked"] == levels_asked(question, config)

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            (self.dropped if row.get("dropped") else self.rows)[row["key"], row["turn"]] = row


class Interview:
    """Puts the turns of questions to a policy: all first turns, then all second turns after their own first answers."""

    def __init__(self, answerer: "Answerer", schema: PreferenceSchema, config: EvaluateConfig, batch: int):
        """
        Args:
            batch: answers between two writes, over all ranks.
        """
        self.answerer, self.schema, self.config, self.batch = answerer, schema, config, batch

    def run(self, name: str, questions: Sequence[Question], file: AnswerFile) -> set[Place]:
        """Answer what the file lacks. Every rank passes the same questions.

        Returns:
            The turns that were left out as too long, and those that would have followed them.

        Raises:
            ValueError: a prompt that leaves no room for an answer, with long_prompts=raise.
        """
        dropped: set[Place] = set()
        for turn in range(1, max(len(question.turns) for question in questions) + 1):
            todo, marks = [], []
            for question in (q for q in questions if len(q.turns) >= turn):
                follows = (question.key, turn - 1) not in dropped
                asked = self._asked(name, question, turn, file) if follows else None
                if asked is None:
                    dropped.add((question.key, turn))
                    if follows and not file.is_dropped(question, turn, self.config):
                        marks.append(self._mark(question, turn, file))
                elif file.answer_to(asked) is None:
                    todo.append(asked)
            file.add(marks)
            with progress(len(todo), f"{name}, turn {turn}") as advance:
                for start in range(0, len(todo), self.batch):
                    part = todo[start : start + self.batch]
                    file.add(self._answers(name, part, file.settings))
                    advance(len(part))
        return dropped

    def _asked(self, name: str, question: Question, turn: int, file: AnswerFile) -> Asked | None:
        """A turn after the earlier answers, within the policy's length; None where it is too long and left out."""
        prompt = prompt_of(question, turn, file)
        preferences = levels_asked(question, self.config)
        encoder, room = self.answerer.encoder, self.answerer.room
        tagged = partial(tag_prompt, preferences=preferences, schema=self.schema)
        length = len(encoder.encode_prompts([tagged(prompt)])[0])
        if length <= room:
            return Asked((question.key, turn), prompt, preferences)
        if self.config.long_prompts == "raise":
            raise ValueError(
                f"benchmarks.{name}: turn {turn} of question {question.key[:60]!r} has {length} tokens, over the "
                f"{room} that the policy's length leaves beside generation.max_new_tokens: choose "
                "long_prompts=cut_left|drop"
            )
        if self.config.long_prompts == "drop" or fit_left(prompt, room, encoder, tagged) is None:
            return None
        return Asked((question.key, turn), prompt, preferences, cut=True)

    def _mark(self, question: Question, turn: int, file: AnswerFile) -> dict[str, Any]:
        """What is kept of a turn that is left out, so that it need not be measured again."""
        return {"key": question.key, "turn": turn, "prompt": prompt_of(question, turn, file),
                "asked": levels_asked(question, self.config), "response": None, "dropped": self.config.long_prompts,
                "settings": file.settings}  # fmt: skip

    def _answers(self, name: str, part: Sequence[Asked], settings: str) -> list[dict[str, Any]]:
        rows = [{"prompt": asked.prompt, "preferences": asked.preferences} for asked in part]
        numbers = [_number(name, asked.place) for asked in part]
        texts, lengths, _ = self.answerer.answer(rows, self.schema, self.config.seed, "cut_left", name, numbers)
        return [
            {"key": asked.place[0], "turn": asked.place[1], "prompt": asked.prompt, "asked": asked.preferences,
             "response": text, "tokens": length, "cut": asked.cut, "settings": settings}
            for asked, text, length in zip(part, texts, lengths, strict=True)
        ]  # fmt: skip


def prompt_of(question: Question, turn: int, file: AnswerFile) -> Prompt:
    """A turn of a question after the policy's own answers to the earlier ones, which are in the file."""
    history: list[dict[str, str]] = []
    for earlier in range(1, turn):
        before = file.rows[question.key, earlier]["response"]
        history += [*as_messages(question.turns[earlier - 1]), {"role": "assistant", "content": before}]
    last = question.turns[turn - 1]
    return [*history, *as_messages(last)] if history else last


def is_answered(questions: Sequence[Question], file: AnswerFile, config: EvaluateConfig) -> bool:
    """Whether the file has every answer, so that the policy need not be loaded; a shortened prompt counts with
    long_prompts=cut_left alone. A turn that was left out before, and those after it, need none."""
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            if file.is_dropped(question, turn, config):
                break
            row = file.rows.get((question.key, turn))
            if row is None or (row["cut"] and config.long_prompts != "cut_left"):
                return False
            if row["prompt"] != prompt_of(question, turn, file) or row["asked"] != levels_asked(question, config):
                return False
    return True


def dropped_places(questions: Sequence[Question], file: AnswerFile, config: EvaluateConfig) -> set[Place]:
    """The turns that were left out as too long, and those that would have followed them; all others are answered."""
    dropped: set[Place] = set()
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            if file.is_dropped(question, turn, config):
                dropped |= {(question.key, later) for later in range(turn, len(question.turns) + 1)}
                break
    return dropped


def levels_asked(question: Question, config: EvaluateConfig) -> dict[str, int]:
    """The levels that a question's prompts carry: `asked`, and the row's own over it unless they are left aside."""
    own = question.asked if config.benchmarks.row_tags else {}
    return {**(config.asked or {}), **own}


def _number(name: str, place: Place) -> int:
    """A question's turn as a number for the seed, 62 bits."""
    text = f"{name}\0{place[0]}\0{place[1]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
