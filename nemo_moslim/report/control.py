"""The report's section on control: do answers have the levels that were asked for?"""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_moslim.report.blocks import Figure, Figures, Heading, Section, Table, Text, number, percent
from nemo_moslim.report.control_charts import (
    bar_chart,
    confusion_chart,
    control_chart,
    goal_text,
    radar_chart,
)
from nemo_moslim.report.find import Control, Found
from nemo_moslim.report.svg import tone

JUDGES = {"world": "the world's exact graders", "reward_model": "the reward model"}


def present(report: Mapping[str, Any], dimensions: Sequence[str]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, tone, entry) of the dimensions that a report has rows of."""
    entries = [(name, tone("d", place), report.get(name)) for place, name in enumerate(dimensions)]
    return [(name, tone, entry) for name, tone, entry in entries if isinstance(entry, Mapping) and entry.get("n")]


def control_section(found: Found, dimensions: Sequence[str]) -> Section:
    """Requested against obtained levels: curves (Figure 5), table, radar charts (Figure 6), confusion."""
    section = Section("control", "Control")
    for control in found.controls:
        if len(found.controls) > 1:
            section.blocks.append(Heading(control.name))
        section.blocks += control_blocks(control, dimensions)
    return section


def control_blocks(control: Control, dimensions: Sequence[str]) -> list[Any]:
    """One report's blocks."""
    report, heads = control.report, present(control.report, dimensions)
    overall = report["overall"]
    untagged = overall["untagged"]["dimensions"] if overall["untagged"]["n"] else {}
    judge = JUDGES.get(overall.get("judge"), overall.get("judge") or "the comparison's judge")
    intro = f"{overall['n']:,} answers to unseen prompts, judged by {judge}."
    if overall.get("left_out"):
        intro += f" Left out, without a score on every dimension: {overall['left_out']:,}."
    if overall.get("policy"):
        intro += f" Policy: {overall['policy']}; prompts: {overall.get('data')}."
    curves = [
        Figure(name, control_chart(name, colour, entry, untagged.get(name, {}).get("mean")),
               f"Spearman {number(entry['spearman'])}, hit rate {percent(entry['hit_rate'])}", colour)
        for name, colour, entry in heads
    ]  # fmt: skip
    legend = [("key-line plain", "mean obtained level"), ("key-box soft plain", "its 95 % interval"),
              ("key-dot plain", "answers, area by number"), ("key-line ideal", "as asked")]  # fmt: skip
    if untagged:
        legend.append(("key-line untagged", "mean without a tag"))
    blocks: list[Any] = [Text(intro, "note"), Figures(curves, legend)]
    rows = [
        [name, number(entry["n"]), *(with_interval(entry, key) for key in ("spearman", "hit_rate")),
         number(entry["mean_absolute_error"], 2), number(entry["monotonicity"], 2),
         ", ".join(f"{other} {number(value, 2)}" for other, value in entry["leakage"].items()) or "–"]
        for name, _, entry in heads
    ]  # fmt: skip
    header = ["dimension", "n", "Spearman [95 %]", "hit rate [95 %]", "mean error, levels", "steps that rise",
              "leakage"]  # fmt: skip
    note = (
        f"All asked levels exact: {percent(overall['all_hit'])} of the answers. Leakage: Spearman of the level asked "
        "of this dimension and the level obtained of another; 0 is ideal."
    )
    blocks.append(Table(header, rows, note))
    blocks += unseen_blocks(overall) + pair_blocks(report)
    confusion = [
        Figure(name, confusion_chart(name, colour, entry["confusion"], "requested", "obtained"), "", colour)
        for name, colour, entry in heads
    ]
    return [*blocks, Heading("Confusion"), Figures(confusion, note="Shares of the requested level, per cent.")]


def with_interval(entry: Mapping[str, Any], key: str) -> str:
    """0.702 [0.644, 0.755]."""
    low, high = entry["intervals"][key]
    return number(entry[key]) + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def unseen_blocks(overall: Mapping[str, Any]) -> list[Any]:
    """Combinations of levels that training prompts did not ask for."""
    unseen = overall.get("unseen")
    if not unseen:
        return []
    parts = [
        f"{name} {number(entry['spearman'], 2)} ({percent(entry['hit_rate'])})"
        for name, entry in unseen["dimensions"].items()
        if entry["n"]
    ]
    text = (
        f"Combinations of levels that no training prompt asked for: {unseen['n']:,} answers, Spearman (hit rate) "
        f"{', '.join(parts)}; all asked levels exact in {percent(unseen['all_hit'])}."
    )
    return [Text(text, "note")]


def pair_blocks(report: Mapping[str, Any]) -> list[Any]:
    """The paper's Figure 6: two dimensions at their extremes."""
    figures = []
    for pair in report.get("pairs", []):
        goals = [goal for goal in pair["goals"] if goal["n"]]
        if goals:
            names = [name for name, value in goals[0]["obtained"].items() if value is not None]
            picture = (radar_chart if len(names) >= 3 else bar_chart)(names, goals)
            legend = [
                (f"key-line {tone('m', place)} s{place}", f"{goal_text(goal)} (n = {goal['n']:,})")
                for place, goal in enumerate(goals)
            ]
            figures.append(Figure(" × ".join(pair["dimensions"]), picture, legend=legend))
    note = "Mean obtained level where two dimensions are asked at their ends: centre lowest, rim highest."
    return [Heading("Two goals at once"), Figures(figures, note=note)] if figures else []
