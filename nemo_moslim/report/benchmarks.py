"""The report's section on benchmarks: what task=benchmarks measured of a policy's answers to others' questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_moslim.report.blocks import Heading, Section, Table, Text
from nemo_moslim.report.find import Found, Result
from nemo_moslim.report.judges import judge_name, judge_text, lost

ATTACK = "attack came through"


def benchmarks_section(found: Found) -> Section:
    """Every benchmark of every measured policy: a line for all answers, for each group and turn."""
    section = Section("benchmarks", "Benchmarks")
    if len(found.benchmarks) > 1:
        section.blocks.append(side_by_side(found.benchmarks))
    for result in found.benchmarks:
        section.blocks += result_blocks(result, len(found.benchmarks) > 1)
    return section


def side_by_side(results: Sequence[Result]) -> Table:
    """All answers of every benchmark, a column per result."""
    found = [{(n, c): split for n, b in r.content["benchmarks"].items() for c, split in columns_of(b).items()}
             for r in results]  # fmt: skip
    lines = list(dict.fromkeys(line for columns in found for line in columns))
    rows = [
        [f"{name.replace('_', ' ')}, {column}"]
        + [mean(columns[name, column]["overall"]) if (name, column) in columns else "" for columns in found]
        for name, column in lines
    ]
    note = " ".join(f"{result.name}: {who_answered(result.content)}." for result in results)
    return Table(["benchmark [95 %], n", *(result.name for result in results)], rows, note, "Side by side")


def who_answered(content: Mapping[str, Any]) -> str:
    """Policy, what is asked of every prompt, and the judge."""
    asked = ", ".join(f"{name} {level}" for name, level in (content["asked"] or {}).items()) or "nothing"
    return f"policy {content['policy']}, asked of every prompt: {asked}, judge: {judge_name(content['judge'])}"


def result_blocks(result: Result, named: bool) -> list[Any]:
    """One benchmarks.json: who answered, who judged, on which scales, a table per benchmark, and what was left out."""
    content = result.content
    scales = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in content["scales"].items())
    drawn = "all questions" if content["limit"] is None else f"{content['limit']:,} questions of each, drawn at random"
    texts = [f"{who_answered(content)[0].upper()}{who_answered(content)[1:]}; scales: {scales}; {drawn}, seed "
             f"{content['seed']}.", f"{judge_text(content['judge'])}."]  # fmt: skip
    blocks: list[Any] = [Heading(result.name)] if named else []
    blocks += [Text(text, "note") for text in texts]
    blocks += [benchmark_table(name, found) for name, found in content["benchmarks"].items()]
    return [*blocks, counts_table(content["benchmarks"])]


def columns_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark's judged dimensions, and the attacks that came through."""
    return found["scores"] | ({ATTACK: found["attack_success"]} if "attack_success" in found else {})


def benchmark_table(name: str, found: Mapping[str, Any]) -> Table:
    """Means with 95 % intervals; a column per judged dimension, and the share of attacks that came through."""
    columns = columns_of(found)
    rows = [["all", *(mean(split["overall"]) for split in columns.values())]]
    groups = next(iter(columns.values()))["groups"] if columns else {}
    for kind, entries in groups.items():
        for group in entries:
            rows.append([f"{kind} {group}", *(mean(split["groups"][kind][group]) for split in columns.values())])
    note = f"{found['questions']:,} questions, {found['answers']:,} answers. " + " ".join(found["notes"])
    return Table(["answers", *(f"{column} [95 %], n" for column in columns)], rows, note, name.replace("_", " "))


def counts_table(benchmarks: Mapping[str, Any]) -> Table:
    """Prompts that were cut or left out, answers at the limit, verdicts without a score."""
    names = ("prompts_cut", "prompts_dropped", "answers_at_max_new_tokens", "rows_repeated")
    rows = []
    for name, found in benchmarks.items():
        without = [f"{dimension} {told}" for dimension, s in found["scores"].items() if (told := lost(s["verdicts"]))]
        cells = [f"{found[key]:,}" for key in ("answers", *names)]
        rows.append([name.replace("_", " "), *cells, "; ".join(without) or "none"])
    header = ["benchmark", "answers", *(name.replace("_", " ") for name in names), "verdicts without a score"]
    note = "Verdicts without a score and dropped prompts are not in the means."
    return Table(header, rows, note, "What was cut or left out")


def mean(entry: Mapping[str, Any]) -> str:
    """3.21 [3.02, 3.40], 80."""
    if entry["mean"] is None:
        return "–"
    spread = "" if entry["low"] is None else f" [{entry['low']:.2f}, {entry['high']:.2f}]"
    return f"{entry['mean']:.2f}{spread}, {entry['n']:,}"
