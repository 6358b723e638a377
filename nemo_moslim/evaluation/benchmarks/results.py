"""From verdicts to the numbers of a benchmark: overall, per group and per turn, with 95 % intervals.

Scores have bootstrap intervals over questions; shares of attacks have Wilson's, which do not shrink to a point where no
attack, or every one, came through.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_moslim.config import to_plain
from nemo_moslim.console import table_console
from nemo_moslim.evaluation.benchmarks.questions import Benchmark, Question
from nemo_moslim.evaluation.bootstrap import bootstrap_mean
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.judging.verdicts import Verdicts, count_statuses
from nemo_moslim.versions import package_versions

Interval = Callable[[Sequence[float], Sequence[str]], dict[str, float | None]]  # of values and their questions


@dataclass(frozen=True)
class Judged:
    """An answer, and what the judge made of it."""

    question: Question
    row: dict[str, Any]  # of the answers' file
    verdicts: Verdicts

    @property
    def attacked(self) -> bool | None:
        """Whether the question's attack came through; None where the question is no attack."""
        return None if self.question.attack is None else self.question.attack(self.row["response"])


def benchmark_result(
    benchmark: Benchmark, judged: Sequence[Judged], dropped: int, max_new_tokens: int, samples: int, seed: int
) -> dict[str, Any]:
    """The result of one benchmark as plain values.

    Args:
        judged: an entry per answer.
        dropped: turns that were left out as too long for the policy.
        max_new_tokens: answers of this length are counted as cut by it.
        samples, seed: of the bootstrap; turns of one question are drawn together.
    """
    rows = [entry.row for entry in judged]
    dimensions = list(judged[0].verdicts) if judged else list(benchmark.dimensions)
    result: dict[str, Any] = {
        "questions": len({row["key"] for row in rows}), "answers": len(rows), "rows_repeated": benchmark.repeated,
        "prompts_cut": sum(row["cut"] for row in rows), "prompts_dropped": dropped,
        "answers_at_max_new_tokens": sum(row["tokens"] >= max_new_tokens for row in rows),
        "notes": list(benchmark.notes), "scores": {},
    }  # fmt: skip
    for name in dimensions:

        def score(entry: Judged, name: str = name) -> float | None:
            return entry.verdicts[name].score

        verdicts = count_statuses(entry.verdicts[name] for entry in judged)
        interval = functools.partial(bootstrap_mean, samples=samples, seed=seed)
        result["scores"][name] = {"verdicts": verdicts, **_split(judged, score, interval)}
    if any(entry.attacked is not None for entry in judged):
        result["attack_success"] = _split(judged, lambda entry: float(entry.attacked), wilson_share)
    return result


def benchmarks_report(results: Mapping[str, Any], judge: Mapping[str, Any], config: EvaluateConfig) -> dict[str, Any]:
    """What benchmarks.json holds.

    Args:
        results: `benchmark_result` by the benchmark's name.
        judge: `Judge.report`.
    """
    return {
        "policy": config.policy, "asked": config.asked, "row_tags": config.benchmarks.row_tags, "limit": config.limit,
        "seed": config.seed, "generation": to_plain(config.generation), "judge": dict(judge),
        "scales": {name: [rubric.lowest, rubric.highest] for name, rubric in config.rubrics.items()},
        "versions": package_versions(), "benchmarks": dict(results),
    }  # fmt: skip


def wilson_share(hits: Sequence[float], clusters: Sequence[str]) -> dict[str, float | None]:
    """The share of hits (0 or 1 each, one per cluster) with Wilson's 95 % interval; all None without any."""
    from scipy.stats import binomtest

    if not hits:
        return {"mean": None, "low": None, "high": None}
    interval = binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return {"mean": sum(hits) / len(hits), "low": float(interval.low), "high": float(interval.high)}


def _split(judged: Sequence[Judged], value: Callable[[Judged], float | None], interval: Interval) -> dict[str, Any]:
    """Means over all entries, over each value of each group, and over each turn where there are several."""
    kinds: dict[str, list[str]] = {}
    for entry in judged:
        for kind, group in _groups(entry):
            if group not in kinds.setdefault(kind, []):
                kinds[kind].append(group)
    several_turns = len(kinds.get("turn", ())) > 1
    groups = {
        kind: {
            group: _mean((e for e in judged if (kind, group) in _groups(e)), value, interval) for group in sorted(found)
        }
        for kind, found in kinds.items()
        if kind != "turn" or several_turns
    }
    return {"overall": _mean(judged, value, interval), "groups": groups}


def _groups(entry: Judged) -> list[tuple[str, str]]:
    return [*entry.question.groups.items(), ("turn", str(entry.row["turn"]))]


def _mean(
    judged: Iterable[Judged], value: Callable[[Judged], float | None], interval: Interval
) -> dict[str, float | int | None]:
    pairs = [(value(entry), entry.question.key) for entry in judged]
    kept = [(found, key) for found, key in pairs if found is not None]
    return {**interval([found for found, _ in kept], [key for _, key in kept]), "n": len(kept)}


def print_result(name: str, result: dict[str, Any]) -> None:
    """One table: a line per group, a column per dimension, and the attacks that came through."""
    from rich.table import Table
    from rich.text import Text

    console = table_console()
    columns = dict(result["scores"])
    if "attack_success" in result:
        columns["attack came through"] = result["attack_success"]
    table = Table("", *(f"{column} (95 %), n" for column in columns), title=name, title_justify="left")
    table.add_row("all", *(_cell(split["overall"]) for split in columns.values()))
    for kind, groups in next(iter(columns.values()))["groups"].items():
        for group in groups:
            cells = (_cell(split["groups"][kind][group]) for split in columns.values())
            table.add_row(Text(f"{kind} {group}"), *cells)
    console.print(table)
    for key in ("prompts_cut", "prompts_dropped", "answers_at_max_new_tokens", "rows_repeated"):
        if result[key]:
            console.print(f"  {key.replace('_', ' ')}: {result[key]}")
    for dimension, split in result["scores"].items():
        lost = {status: n for status, n in split["verdicts"].items() if n and status != "scored"}
        if lost:
            console.print(f"  {dimension} without a score: " + ", ".join(f"{n} {status}" for status, n in lost.items()))
    for note in result["notes"]:
        console.print(f"  note: {note}", markup=False)


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None:
        return "-"
    interval = "" if entry["low"] is None else f" ({entry['low']:.2f} to {entry['high']:.2f})"
    return f"{entry['mean']:.2f}{interval}, {entry['n']}"
