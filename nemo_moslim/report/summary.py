"""The report's first section: what was trained, whether it worked, the key figures, and what is missing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_moslim.report.bar_charts import Measure, interval_bar
from nemo_moslim.report.benchmarks import columns_of
from nemo_moslim.report.blocks import (
    Card,
    Cards,
    Commands,
    Heading,
    Section,
    Table,
    Text,
    duration,
    number,
    percent,
)
from nemo_moslim.report.control import present
from nemo_moslim.report.find import Control, Found, Result
from nemo_moslim.report.judges import agreement_sentences, lost
from nemo_moslim.report.svg import tone
from nemo_moslim.report.training import KINDS, described

FOLLOWS, PARTLY = 0.9, 0.5  # Spearman from which a dimension is said to be followed, or followed in part
MISSED = 0.5  # share of exact answers below which a level is named
FEWEST = 10  # rows under which a level is not named
LEAKS = 0.2  # Spearman beyond which leakage is named


def summary_section(found: Found, dimensions: Sequence[str]) -> Section:
    """What a reader in a hurry needs."""
    section = Section("summary", "Summary")
    if found.runs:
        rows = [[run.name, f"{KINDS[run.kind]}: {described(run)}"] for run in found.runs]
        section.blocks.append(Table(["run", ""], rows, caption="What was trained"))
    for control in found.controls:
        title = "Does the policy answer as asked?"
        section.blocks.append(Heading(title if len(found.controls) == 1 else f"{title} {control.name}"))
        section.blocks += control_verdict(control, dimensions)
    for result in found.rewards:
        title = "Does the reward model know the levels?"
        section.blocks.append(Heading(title if len(found.rewards) == 1 else f"{title} {result.name}"))
        section.blocks += reward_verdict(result, dimensions)
    for result in found.benchmarks:
        title = "What do the benchmarks say?"
        section.blocks.append(Heading(title if len(found.benchmarks) == 1 else f"{title} {result.name}"))
        section.blocks += benchmark_verdict(result)
    if sentences := agreement_sentences(found.agreements):
        section.blocks += [Heading("How far can the judge be trusted?"), *map(Text, sentences)]
    section.blocks += [block for result in found.comparisons for block in comparison_verdict(result)]
    if cards := cost_cards(found):
        section.blocks += [Heading("What did it take?"), Cards(cards)]
    return section


def control_verdict(control: Control, dimensions: Sequence[str]) -> list[Any]:
    """A card per dimension and sentences on what does not work."""
    heads, overall = present(control.report, dimensions), control.report["overall"]
    cards = []
    for name, colour, entry in heads:
        low, high = entry["intervals"]["spearman"]
        bar = interval_bar(name, colour, Measure(entry["spearman"], low, high))
        spread = "" if low is None else f", {low:.2f} to {high:.2f}"
        detail = f"Spearman{spread}; exact level {percent(entry['hit_rate'])}"
        cards.append(Card(name, number(entry["spearman"], 2), detail, colour, bar))
    asked = overall["n"] - overall["untagged"]["n"]
    cards.append(Card("all asked levels exact", percent(overall["all_hit"]), f"of {asked:,} answers"))
    return [Cards(cards), *(Text(text, style) for text, style in control_sentences(heads))]


def control_sentences(heads: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """What is followed, levels that are not given, leakage; (text, style)."""
    groups: dict[str, list[str]] = {"good": [], "fair": [], "poor": []}
    for name, _, entry in heads:
        spearman = entry["spearman"] if entry["spearman"] is not None else 0.0
        groups["good" if spearman >= FOLLOWS else "fair" if spearman >= PARTLY else "poor"].append(name)
    said = {"good": "Followed", "fair": "Followed in part", "poor": "Not followed"}
    bounds = {"good": f"Spearman from {FOLLOWS}", "fair": f"from {PARTLY}", "poor": f"below {PARTLY}"}
    sentences = [(f"{said[g]} ({bounds[g]}): {', '.join(names)}.", g) for g, names in groups.items() if names]
    for name, _, entry in heads:
        for level, row in enumerate(entry["confusion"], 1):
            total = sum(row)
            if total >= FEWEST and row[level - 1] / total < MISSED:
                share = percent(row[level - 1] / total)
                text = f"{name} {level} is met in {share} of the {total:,} answers that ask for it."
                sentences.append((text, "poor"))
        for other, value in entry["leakage"].items():
            if value is not None and abs(value) > LEAKS:
                sentences.append((f"Asking for {name} moves {other} too (Spearman {value:.2f}).", "fair"))
    return sentences


def reward_verdict(result: Result, dimensions: Sequence[str]) -> list[Any]:
    """A card per head against the majority class."""
    heads = present(result.content, dimensions)
    cards = [
        Card(name, number(entry["accuracy"]), f"accuracy; majority class {number(entry['majority'])}", colour,
             interval_bar(name, colour, Measure(entry["accuracy"], None, None), entry["majority"]))
        for name, colour, entry in heads
    ]  # fmt: skip
    cards.append(Card("intensity accuracy", number(result.content["intensity_accuracy"]), "all heads together"))
    blind = [name for name, _, entry in heads if entry["accuracy"] - entry["majority"] <= margin(entry)]
    if blind:
        text = Text(f"Not clearly better than always naming the most frequent level: {', '.join(blind)}.", "poor")
    else:
        text = Text("Every head is clearly better than always naming the most frequent level.", "good")
    return [Cards(cards), text]


def margin(entry: Mapping[str, Any]) -> float:
    """Two standard errors of a head's accuracy: what a clear difference exceeds."""
    return 2 * math.sqrt(entry["accuracy"] * (1 - entry["accuracy"]) / entry["n"])


def benchmark_verdict(result: Result) -> list[Any]:
    """A card per benchmark and judged dimension, and what the means are not of."""
    cards, sentences = [], []
    for name, found in result.content["benchmarks"].items():
        title = name.replace("_", " ")
        for column, split in columns_of(found).items():
            overall, scale = split["overall"], result.content["scales"].get(column, [0, 1])
            spread = "" if overall["low"] is None else f", {overall['low']:.2f} to {overall['high']:.2f}"
            detail = f"{column}, of {scale[0]:g} to {scale[1]:g}{spread}; n {overall['n']:,}"
            cards.append(Card(title, number(overall["mean"], 2), detail))
            left_out = lost(split["verdicts"]) if "verdicts" in split else ""
            if left_out:
                sentences.append(f"{title}: verdicts on {column} without a score, not in the mean: {left_out}.")
        if found["prompts_cut"] or found["prompts_dropped"]:
            cut, dropped = found["prompts_cut"], found["prompts_dropped"]
            sentences.append(f"{title}: {cut:,} prompts cut, {dropped:,} left out as too long.")
    return [Cards(cards), *(Text(sentence, "fair") for sentence in sentences)]


def comparison_verdict(result: Result) -> list[Any]:
    """Hypervolume of every method, largest first."""
    methods = result.content["numbers"]["methods"]
    known = {name: m["hypervolume"] for name, m in methods.items() if m["hypervolume"]["mean"] is not None}
    cards = []
    for name in sorted(known, key=lambda name: -known[name]["mean"]):
        value, colour = known[name], tone("m", list(methods).index(name))
        bar = interval_bar(name, colour, Measure(value["mean"], value["low"], value["high"]))
        detail = f"hypervolume; {methods[name]['cost']['all']:,.0f} device-seconds"
        cards.append(Card(name, number(value["mean"]), detail, colour, bar))
    return [Heading(f"How do methods compare? {result.name}"), Cards(cards)] if cards else []


def cost_cards(found: Found) -> list[Card]:
    """Device time of runs, wall time of recipes."""
    spent = [run.summary["device_seconds"] for run in found.runs if run.summary.get("device_seconds")]
    cards = []
    if spent:
        which = f"{len(spent)}" if len(spent) == len(found.runs) else f"{len(spent)} of {len(found.runs)}"
        cards.append(Card("device time", duration(sum(spent)), f"steps of {which} trainings, all ranks"))
    cards += [
        Card("wall time", duration(sum(stages.content.values())), f"{len(stages.content)} stages of {stages.name}")
        for stages in found.stages
    ]
    return cards


def missing_section(found: Found) -> Section:
    """What the report could show and which command makes it."""
    policy = next((run.config["run_dir"] for run in found.of_kind("policy")), "RUN")
    reward = next((run.config["run_dir"] for run in found.of_kind("reward model")), "RUN")
    evaluate = "python examples/evaluate.py"
    items = [
        (not found.controls, "Control, radar charts and answers",
         f"{evaluate} task=controllability policy={policy} reward={reward} data=FILE output=DIR"),
        (found.controls and not all(control.every_level for control in found.controls),
         "The same prompt at every level", f"{evaluate} task=controllability policy={policy} … every_level=2"),
        (not found.benchmarks, "Benchmarks with a judge",
         f"{evaluate} task=benchmarks policy={policy} benchmarks.mt_bench=FILE judge=endpoint endpoint.model=NAME "
         "output=DIR"),
        (not found.agreements, "How far a judge can be trusted",
         f"{evaluate} task=judge_agreement data=FILE judge=endpoint endpoint.model=NAME output=DIR"),
        (not found.rewards, "Reward-model tables, confusion and reliability",
         f"{evaluate} task=reward run={reward} data=FILE output=FILE.json"),
        (not found.of_kind("reward model"), "Curves of a reward model",
         "torchrun --nproc-per-node N examples/train_rm.py … run_dir=RUN"),
        (not found.of_kind("policy"), "Curves of a policy",
         "torchrun --nproc-per-node N examples/train_policy.py … run_dir=RUN"),
        (not found.comparisons, "Rivals and fronts", "python examples/compare.py methods=[moslim,…] output=DIR"),
    ]  # fmt: skip
    missing = [(what, command) for absent, what, command in items if absent]
    return Section("missing", "Not in this report", [Commands(missing)] if missing else [])
