"""The report's sections on trainings: curves, cost, configuration and versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_moslim.report.bar_charts import cost_chart
from nemo_moslim.report.blocks import Figure, Figures, Fold, Heading, Section, Table, Text, duration, number
from nemo_moslim.report.find import Found, Run
from nemo_moslim.report.svg import Point, tone
from nemo_moslim.report.training_charts import Curve, curve_chart

SHARES = (0.0, 1.0)
NOTES = {
    "policy": "By requested level: the paler a line, the lower the level. Areas: the range of the steps drawn as one."
}
KINDS = {
    "language model": "Language model (SFT)",
    "reward model": "Reward model",
    "policy": "Policy",
    "pairs": "Policy from pairs",
}
POLICY_CURVES = (  # key of metrics.jsonl, title
    ("reward", "Mapped reward (Eq. 11)"),
    ("kl", "KL to the start, nats an answer"),
    ("entropy", "Entropy, nats a token"),
    ("length", "Answer length, tokens"),
    ("value_loss", "Value loss"),
    ("grad_norm", "Gradient norm"),
)


def points(run: Run, key: str, part: str = "") -> list[Point]:
    """(step, value) of a key of metrics.jsonl, or of a part (`validation`) of its rows; only numbers are kept."""
    rows = [(row["step"], row.get(part, {}) if part else row) for row in run.metrics if "step" in row]
    return [(step, row[key]) for step, row in rows if isinstance(row.get(key), int | float)]


def training_section(found: Found, dimensions: Sequence[str]) -> Section:
    """Curves of every run."""
    section = Section("training", "Training")
    for run in found.runs:
        figures = policy_figures(run, dimensions) if run.kind == "policy" else supervised_figures(run, dimensions)
        if figures:
            section.blocks.append(Heading(f"{KINDS[run.kind]}: {run.name}"))
            section.blocks.append(Text(described(run), "note"))
            section.blocks.append(Figures(figures, training_legend(run, dimensions), NOTES.get(run.kind, "")))
    return section


def training_legend(run: Run, dimensions: Sequence[str]) -> list[tuple[str, str]]:
    """What the lines of a run's figures are."""
    legend = [("key-line m0", "training"), ("key-line m1 dashed", "validation")]
    if run.kind == "language model" or run.kind == "pairs":
        return legend
    return legend + [(f"key-line {tone('d', place)}", name) for place, name in enumerate(dimensions)]


def supervised_figures(run: Run, dimensions: Sequence[str]) -> list[Figure]:
    """Loss, and per-head accuracy of a reward model."""
    loss = [Curve("training", "m0", points(run, "loss")),
            Curve("validation", "m1", points(run, "loss", "validation"), "dashed")]  # fmt: skip
    accuracy = [
        Curve(name, tone("d", place), points(run, f"accuracy/{name}", "validation") or points(run, f"accuracy/{name}"))
        for place, name in enumerate(dimensions)
    ]
    where = "validation" if any(points(run, f"accuracy/{name}", "validation") for name in dimensions) else "training"
    figures = [
        ("Loss", curve_chart("loss", loss)),
        (f"Accuracy per head, {where}", curve_chart("accuracy per head", accuracy, SHARES)),
        ("Gradient norm", curve_chart("gradient norm", [Curve("training", "m0", points(run, "grad_norm"))])),
    ]
    return [Figure(title, picture) for title, picture in figures if picture]


def policy_figures(run: Run, dimensions: Sequence[str]) -> list[Figure]:
    """Reward, hit rates by the reward model, and what shows whether training is sound."""
    hits = [Curve(name, tone("d", place), points(run, f"hit_rate/{name}")) for place, name in enumerate(dimensions)]
    figures = []
    for key, title in POLICY_CURVES:
        curves = [Curve("training", "m0", points(run, key)),
                  Curve("validation", "m1", points(run, key, "validation"), "dashed")]  # fmt: skip
        figures.append((title, curve_chart(title, curves)))
    rate = "Hit rate by the reward model"
    figures.insert(1, (rate, curve_chart(rate, hits, SHARES)))
    for place, name in enumerate(dimensions):
        levels = sorted({key for row in run.metrics for key in row if key.startswith(f"hit_rate/{name}=")})
        by_level = [
            Curve(
                f"level {key.rpartition('=')[2]}",
                f"{tone('d', place)} l{round(4 * (number + 1) / len(levels))}",
                points(run, key),
            )
            for number, key in enumerate(levels)
        ]
        title = f"Hit rate of {name} by requested level"
        figures.append((title, curve_chart(title, by_level, SHARES)))
    tones = {f"Hit rate of {name} by requested level": tone("d", place) for place, name in enumerate(dimensions)}
    return [Figure(title, picture, tone=tones.get(title, "")) for title, picture in figures if picture]


def described(run: Run) -> str:
    """What a run trained, from its configuration and summary: a line."""
    config, summary = run.config, run.summary
    steps = max([summary.get("steps", 0), *(row["step"] for row in run.metrics[-1:])])
    parts = [f"{steps:,} steps"]
    if run.kind == "policy":
        algorithm = config["algorithm"]
        start, rewards = config.get("policy"), config.get("reward")
        reward = ", ".join(rewards) if isinstance(rewards, list) else rewards
        name, size = str(algorithm.get("name")).upper().replace("_", " "), config["batch"]["prompts"]
        parts = [f"{name}, {parts[0]} of {size} prompts × {algorithm.get('samples', 1)} answers",
                 f"from {start}", f"rewarded by {reward}"]  # fmt: skip
    else:
        batch, rows = config.get("batch", {}), summary.get("rows", {})
        parts[0] += f" of {batch.get('global_size')} rows"
        if rows.get("train"):
            parts.append(f"{rows['train']:,} training rows")
        if run.kind == "reward model":
            levels = [f"{name} {d['levels']}" for name, d in config["preferences"].items()]
            parts.append(f"levels: {', '.join(levels)}; {config.get('loss')} loss")
        model = config.get("model", {})
        if model.get("init"):
            parts.append(f"from {model['init']}")
        if model.get("num_layers"):
            parts.append(f"{model.get('family')}, {model['num_layers']} layers of {model.get('hidden_size')}")
    if not summary.get("finished"):
        parts.append("not finished")
    return "; ".join(parts) + "."


def phases(run: Run) -> dict[str, float]:
    """Device-seconds by phase: a policy's parts of a step and the rest of it, of other runs training and validation."""
    seconds, ranks = run.summary.get("seconds", {}), run.summary.get("ranks", 1)
    parts = {name: value * ranks for name, value in seconds.items() if name != "step" and value}
    if "step" in seconds:
        parts["other"] = max(seconds["step"] * ranks - sum(parts.values()), 0.0)
    return parts


def cost_section(found: Found) -> Section:
    """Device-seconds per phase, speed and memory; seconds of a recipe's stages."""
    section = Section("cost", "Cost")
    ended = [run for run in found.runs if run.summary.get("device_seconds")]
    if ended:
        totals = [(run.name, phases(run)) for run in ended]
        parts = list(dict.fromkeys(name for _, amounts in totals for name in amounts))
        legend = [(f"key-box {tone('m', place)}", name) for place, name in enumerate(parts)]
        figure = Figure("Device-seconds by phase", cost_chart(totals, parts, "device-seconds"))
        section.blocks.append(Figures([figure], legend=legend, wide=True))
        rows = [cost_row(run) for run in found.runs if run.summary]
        header = ["run", "steps", "ranks", "device-seconds", "tokens/s", "peak memory a rank, GB"]
        note = (
            "Steps, validation and checkpoints on all ranks together; start-up and loading are left out. Where a run "
            "was resumed, supervised trainings count the last launch alone."
        )
        section.blocks.append(Table(header, rows, note))
    for stages in found.stages:
        rows = [[name, duration(seconds)] for name, seconds in stages.content.items()]
        rows.append(["all", duration(sum(stages.content.values()))])
        note = "A stage that was stopped and went on counts its last call alone."
        section.blocks.append(Table(["stage", "wall time"], rows, note, f"Stages of {stages.name}"))
    return section


def cost_row(run: Run) -> list[str]:
    """A run's line."""
    summary = run.summary
    memory, speed = summary.get("peak_memory_gigabytes_per_rank"), summary.get("tokens_per_second")
    seconds = summary.get("device_seconds")
    return [run.name, number(summary.get("steps")), number(summary.get("ranks")),
            f"{seconds:,.0f}" if seconds else "–", f"{speed:,.0f}" if speed else "–",
            number(memory, 2)]  # fmt: skip


def configuration_section(found: Found) -> Section:
    """Every run's config.yaml and the versions behind it."""
    section = Section("configuration", "Configuration and versions")
    versions = {run.name: run.summary["versions"] for run in found.runs if run.summary.get("versions")}
    if versions:
        packages = list(dict.fromkeys(package for found in versions.values() for package in found))
        same = all(found == next(iter(versions.values())) for found in versions.values())
        names = ["version"] if same else list(versions)
        chosen: list[Mapping[str, Any]] = list(versions.values())[: 1 if same else None]
        rows = [[package, *(str(found.get(package, "–")) for found in chosen)] for package in packages]
        note = "The same in every run." if same and len(versions) > 1 else ""
        section.blocks.append(Table(["package", *names], rows, note))
    section.blocks += [Fold(f"{run.name}/config.yaml", run.config_text) for run in found.runs]
    for comparison in found.comparisons:
        if comparison.content["config"]:
            section.blocks.append(Fold(f"{comparison.name}/config.yaml", _yaml(comparison.content["config"])))
    return section


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
