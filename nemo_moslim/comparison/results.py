"""From the judged answers of every method to the numbers of the report.

Shapes: R seeds, P operating points, Q prompts, N dimensions, S bootstrap samples.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_moslim.comparison.bench import Point
from nemo_moslim.comparison.control import ControlSamples, control_samples
from nemo_moslim.comparison.fronts import (
    Draws,
    draws,
    follows_weights,
    hypervolume,
    hypervolumes,
    interval,
    line_report,
    on_front,
    resampled_means,
)
from nemo_moslim.comparison.methods import LINE_SHARES
from nemo_moslim.comparison.study import Stage, Study
from nemo_moslim.data.ratings import read_checked
from nemo_moslim.evaluation.controllability import control_report
from nemo_moslim.preferences import PreferenceSchema

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method's points of one seed and the file with their judged answers."""

    points: list[Point]
    answers: Path


@dataclass(frozen=True)
class Answers:
    """Judged answers of a method."""

    levels: NDArray[np.float64]  # [R, P, Q, N] scaled, of the points with weights, in the order of the first seed's
    points: list[Point]  # P
    prompts: list[str]  # Q, that the points with weights answer
    own: list[
        list[dict]
    ]  # per seed, rows of answers to prompts with levels of their own: prompt, preferences, levels, length


def read_answers(entries: Sequence[Entry], schema: PreferenceSchema) -> Answers:
    """The answers of all seeds of a method."""
    tops = np.array([dimension.levels - 1 for dimension in schema.dimensions])
    own, tables, prompts = [], [], []
    weighted = [number for number, point in enumerate(entries[0].points) if point.weights is not None]
    for entry in entries:
        rows: dict[int, list[list[int]]] = {number: [] for number in weighted}
        texts: dict[int, list[str]] = {number: [] for number in weighted}
        own.append([])
        for row in read_checked(entry.answers, dict):
            if row["point"] in rows:
                rows[row["point"]].append([row["levels"][name] for name in schema.names])
                texts[row["point"]].append(json.dumps(row["prompt"]))
            else:
                own[-1].append({key: row[key] for key in ("prompt", "preferences", "levels", "length")})
        tables.append([rows[number] for number in weighted])
        prompts = texts[weighted[0]]
    levels = (np.array(tables, dtype=np.float64) - 1) / tops
    return Answers(levels, [entries[0].points[number] for number in weighted], prompts, own)


def resampled_control(answers: Answers, schema: PreferenceSchema, samples: int) -> ControlSamples | None:
    """Control in every resample of seeds and prompts; None for a method that is asked for nothing."""
    if not any(answers.own):
        return None

    def columns(rows: list[dict], key: str) -> list[list[int]]:
        return [[row[key].get(name, 0) for name in schema.names] for row in rows]

    requested = np.array(columns(answers.own[0], "preferences"))
    obtained = np.array([columns(rows, "levels") for rows in answers.own])
    drawn = draws(len(answers.own), [json.dumps(row["prompt"]) for row in answers.own[0]], samples, seed=1)
    return control_samples(requested, obtained, [dimension.levels for dimension in schema.dimensions], drawn)


def control_numbers(answers: Answers, control: ControlSamples, schema: PreferenceSchema) -> Numbers:
    """The control report over the answers of all seeds; its intervals are those of the resamples."""
    report = control_report([row for rows in answers.own for row in rows], schema, samples=1)
    for index, name in enumerate(schema.names):
        found = {"spearman": control.spearman[:, index], "hit_rate": control.hit_rate[:, index]}
        report[name]["intervals"] = {key: [interval(v)["low"], interval(v)["high"]] for key, v in found.items()}
        for point in report[name]["curve"]:
            point["low"] = point["high"] = None  # its answers were taken as independent
    report["overall"]["all_hit_interval"] = interval(control.all_hit)
    return report


def method_numbers(
    answers: Answers, schema: PreferenceSchema, drawn: Draws, control: ControlSamples | None
) -> tuple[Numbers, NDArray]:
    """A method's numbers, and the resampled means [1 + S, P, N] of its points on the grid for comparisons."""
    means = resampled_means(answers.levels, drawn)
    grid = [number for number, point in enumerate(answers.points) if point.on_grid]
    kept = on_front(means[0][grid])
    weights = np.array([[answers.points[n].weights.get(name, 0.0) for name in schema.names] for n in grid])
    followed = follows_weights(weights, means[:, grid])
    numbers = {
        "points": [
            {
                "weights": answers.points[n].weights,
                "on_front": bool(kept[place]),
                "levels": level_intervals(means[:, n], schema),
                "per_seed": [
                    dict(zip(schema.names, row, strict=True)) for row in raw(answers.levels[:, n].mean(1), schema)
                ],
            }
            for place, n in enumerate(grid)
        ],
        "hypervolume": interval(hypervolumes(means[:, grid])),
        "hypervolume_per_seed": [hypervolume(levels.mean(1)) for levels in answers.levels[:, grid]],
        "follows_weights": {name: interval(followed[:, i]) for i, name in enumerate(schema.names)},
        "lines": lines(answers, means, schema),
        "control": control_numbers(answers, control, schema) if control else None,
    }
    return numbers, means[:, grid]


def raw(scaled: NDArray, schema: PreferenceSchema) -> list[list[float]]:
    """Scaled levels [..., N] on the dimensions' own scales, from 1."""
    return (scaled * np.array([d.levels - 1 for d in schema.dimensions]) + 1).tolist()


def level_intervals(means: NDArray, schema: PreferenceSchema) -> dict[str, dict]:
    """Mean level per dimension on its own scale, with its interval, from [1 + S, N] scaled means."""
    values = np.array(raw(means, schema))
    return {name: interval(values[:, i]) for i, name in enumerate(schema.names)}


def lines(answers: Answers, means: NDArray, schema: PreferenceSchema) -> list[Numbers]:
    """The linear-mode check of soups between every two policies; empty for methods without such points."""
    places = [number for number, point in enumerate(answers.points) if not point.on_grid]
    if not places:
        return []
    reports, size = [], len(LINE_SHARES)
    for index, (first, second) in enumerate(combinations(schema.names, 2)):
        chosen = places[index * size : (index + 1) * size]
        columns = [schema.names.index(first), schema.names.index(second)]
        whole = line_report(LINE_SHARES, means[0][chosen][:, columns])
        seeds = [line_report(LINE_SHARES, levels[chosen].mean(1)[:, columns]) for levels in answers.levels]

        def named(values: Sequence[float], ends: tuple[str, str] = (first, second)) -> dict[str, float]:
            return {name: float(value) for name, value in zip(ends, values, strict=True)}

        reports.append({
            "between": [first, second], "shares": list(LINE_SHARES),
            "rising": named(whole.rising), "flat": named(whole.flat),
            "largest_fall_below_the_chord": named(whole.gaps.min(0)),
            "worst_seed": {
                "rising": named(np.min([seed.rising for seed in seeds], 0)),
                "largest_fall_below_the_chord": named(np.min([seed.gaps for seed in seeds], (0, 1))),
            },
            "levels": [level_intervals(means[:, number], schema) for number in chosen],
        })  # fmt: skip
    return reports


def even_point(grid: Sequence[dict[str, float]]) -> int:
    """The weight vector nearest to equal weights on most dimensions: where reward per dimension is tabulated."""
    return max(range(len(grid)), key=lambda n: (sum(w > 0 for w in grid[n].values()), -max(grid[n].values())))


def control_differences(control: ControlSamples, ours: ControlSamples, schema: PreferenceSchema) -> Numbers:
    """Control of a method less MOSLIM's, paired."""
    both = (("spearman", control.spearman - ours.spearman), ("hit_rate", control.hit_rate - ours.hit_rate))
    return {name: {key: interval(values[:, i]) for key, values in both} for i, name in enumerate(schema.names)}


def differences(means: NDArray, ours: NDArray, point: int, schema: PreferenceSchema) -> Numbers:
    """A method less MOSLIM, paired: hypervolume, and levels at one point of the grid."""
    levels = np.array(raw(means[:, point], schema)) - np.array(raw(ours[:, point], schema))
    return {
        "hypervolume": interval(hypervolumes(means) - hypervolumes(ours)),
        "levels": {name: interval(levels[:, i]) for i, name in enumerate(schema.names)},
    }


def costs(study: Study, entries: Sequence[Entry]) -> Numbers:
    """What a method needs for one seed, on average: device-seconds by kind, answers sampled, models trained."""
    totals: dict[str, float] = {}
    for entry in entries:
        stages = needed(study, entry)
        found = study.cost(stage for stage in stages if stage.kind not in ("data", "evaluation"))
        for kind, label in (("reward model", "reward models"), ("policy", "policies")):
            found[label] = sum(stage.kind == kind for stage in stages)
        for key, value in found.items():
            totals[key] = totals.get(key, 0.0) + value / len(entries)
    return totals


def effort(study: Study, entries: Sequence[Entry]) -> Numbers:
    """What a method's policies learn from for one seed, on average: steps planned and done, answers, pairs."""
    totals: Counter[str] = Counter()
    for entry in entries:
        pairs = {}
        for stage in needed(study, entry):
            if stage.kind == "policy":
                kind, summary = "online" if stage.script == "train_policy.py" else "offline", study.summary(stage)
                totals[f"{kind} steps planned"] += stage.composed["trainer"]["max_steps"]
                totals[f"{kind} steps done"] += summary.get("steps", 0)
                totals["answers"] += summary.get("answers", 0)
            if stage.script == "train_dpo.py":
                manifest = study.folder / stage.composed["data"] / "manifest.json"
                pairs[manifest] = json.loads(manifest.read_text())["rows"]["train"]
        totals["pairs"] += sum(pairs.values())
    return {name: total / len(entries) for name, total in totals.items()}


def needed(study: Study, entry: Entry) -> list[Stage]:
    """Every stage behind a method's points, the evaluation itself aside."""
    stages: dict[Path, Stage] = {}
    for point in entry.points:
        for target in (point.policy, point.offline, *point.mixture):
            if target is not None:
                stages.update({stage.folder: stage for stage in study.needed_by(Path(target))})
    return list(stages.values())


def all_numbers(
    study: Study, entries: dict[str, list[Entry]], schema: PreferenceSchema, grid: list[dict], samples: int
) -> Numbers:
    """Everything the report shows, as JSON."""
    found, means, controls = {}, {}, {}
    for name, seeds in entries.items():
        answers = read_answers(seeds, schema)
        drawn = draws(len(seeds), answers.prompts, samples, seed=1)
        controls[name] = resampled_control(answers, schema, samples)
        found[name], means[name] = method_numbers(answers, schema, drawn, controls[name])
        found[name]["cost"], found[name]["effort"] = costs(study, seeds), effort(study, seeds)
    point = even_point(grid)
    for name in found:
        if "moslim" in means and name != "moslim":
            found[name]["less_moslim"] = differences(means[name], means["moslim"], point, schema)
            if controls[name] and controls["moslim"]:
                less = control_differences(controls[name], controls["moslim"], schema)
                found[name]["less_moslim"]["control"] = less
    return {"schema": schema.to_dict(), "grid": grid, "even_point": point, "methods": found}
