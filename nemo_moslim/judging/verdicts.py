"""What every judge takes and gives."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nemo_moslim.data.rows import Prompt
from nemo_moslim.judging_config import RubricConfig
from nemo_moslim.preferences import Dimension

STATUSES = ("scored", "refused", "unparsable", "failed", "missing")


@dataclass(frozen=True)
class Answer:
    """An answer to be judged; the prompt is a text or messages up to the user's last turn, without preference tags."""

    prompt: Prompt
    response: str
    reference: str | None = None  # a right answer, where the benchmark knows one


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one dimension of an answer.

    `score` is on the scale of the dimension's rubric, and None unless `status` is scored. refused: the judge would not
    say; unparsable: it said no score; failed: it could not be asked; missing: it has nothing about this answer.
    """

    score: float | None
    status: str = "scored"
    reason: str = ""


Verdicts = dict[str, Verdict]  # by dimension


class Judge(Protocol):
    """Scores answers. `on_every_rank`: a model spread over the ranks, which all of them call with the same answers."""

    on_every_rank: bool

    def judge(self, answers: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        """A verdict per answer and dimension, in the answers' order."""

    def report(self) -> dict[str, Any]:
        """Who judged, with which settings, and what it took so far: plain values for a JSON file."""


def level_of(verdict: Verdict | None, dimension: Dimension, rubric: RubricConfig) -> int:
    """A verdict as a level of the dimension, the rubric's scale laid on the dimension's; 0 without a score."""
    if verdict is None or verdict.score is None:
        return 0
    low, high = dimension.score_range
    return dimension.level_of(low + rubric.share(verdict.score) * (high - low))


def check_scored(verdicts: Sequence[Verdict]) -> None:
    """ValueError where a run's verdicts, one or more, hold no score at all: there is nothing to report."""
    counts = {status: n for status, n in count_statuses(verdicts).items() if n}
    if counts and "scored" not in counts:
        told = ", ".join(f"{n} {status}" for status, n in counts.items())
        raise ValueError(f"the judge gave no score at all ({told}); the last verdict: {verdicts[-1].reason or 'none'}")


def count_statuses(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts of each status, zeros included."""
    found = Counter(verdict.status for verdict in verdicts)
    return {status: found[status] for status in STATUSES}
