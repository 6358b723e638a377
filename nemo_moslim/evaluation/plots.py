"""Pictures and Table 1 of a reward model's metrics.

Everything is drawn from the dict that `reward_accuracy.reward_metrics` returns, so a plot can be made again from the
JSON alone. Colours are the colour-blind-safe ones of Okabe and Ito, and one-hue maps.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_moslim.evaluation.reward_accuracy import TABLE1_KEYS
from nemo_moslim.preferences import PreferenceSchema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5F5F5F"
PANEL_INCHES = 4.2
DOTS_PER_INCH = 150


def save_confusion_plot(
    metrics: Mapping[str, Any], schema: PreferenceSchema, path: str | Path, title: str = ""
) -> Path:
    """One confusion matrix per dimension as a PNG: rows are true levels, colour is the share of the row, text counts.

    Args:
        metrics: from `reward_metrics`, or its JSON.
        schema: the dimensions, one panel each.
        path: the PNG to write; its folder is made.
        title: one line above the panels.

    Raises:
        ValueError: `metrics` lacks a dimension or its `confusion`.
    """
    from matplotlib.colors import Normalize

    heads = [_head(metrics, name, "confusion") for name in schema.names]
    figure, panels = _panels(len(heads), PANEL_INCHES + 1.3, title)
    for panel, name, head in zip(panels, schema.names, heads, strict=True):
        _title(panel, name, head)
        if head["n"]:
            _draw_confusion(panel, head["confusion"])
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "Blues"), ax=list(panels), shrink=0.72, pad=0.02)
    bar.set_label("share of the true level")
    return _save(figure, path)


def save_reliability_plot(
    metrics: Mapping[str, Any], schema: PreferenceSchema, path: str | Path, title: str = ""
) -> Path:
    """One reliability diagram per dimension as a PNG: accuracy by confidence, with the rows of each bin below.

    Arguments and errors are those of `save_confusion_plot` (the key needed is `reliability`).
    """
    heads = [_head(metrics, name, "reliability") for name in schema.names]
    figure, panels = _panels(len(heads), PANEL_INCHES + 1.5, title, with_counts=True)
    first = next((index for index, head in enumerate(heads) if head["n"]), None)
    for index, (name, head) in enumerate(zip(schema.names, heads, strict=True)):
        upper, lower = panels[index], panels[len(heads) + index]
        _title(upper, name, head, ece=True)
        if head["n"]:
            _draw_reliability(upper, lower, head["reliability"])
            if index == first:
                upper.set_ylabel("accuracy")
                lower.set_ylabel("rows")
        else:
            lower.set_axis_off()
    if first is not None:
        handles, names = panels[first].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _save(figure, path)


def table1_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """MOSLIM's Table 1: a line per model, Preference and Intensity per DataType, beside each what the majority gets.

    Args:
        rows: mappings with `model`, `datatype`, and the accuracies of `TABLE1_KEYS` (None = undefined).
            Models and DataTypes keep the order in which they first occur; a pair that is missing is left blank.

    Raises:
        ValueError: the same model and datatype occur twice.
    """
    header, lines = _table1(rows)
    text = [[line[0], *(_accuracy_text(value) for value in line[1:])] for line in lines]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (header, rule, *text))


def table1_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """`table1_markdown` as comma-separated values with all digits; undefined and missing cells are empty."""
    header, lines = _table1(rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if cell in ("", None) else cell for cell in line] for line in lines])
    return buffer.getvalue()


def _table1(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Header and lines; a cell is a number, None (undefined) or "" (no such pair)."""
    cells: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        key = (str(row["model"]), str(row["datatype"]))
        if key in cells:
            raise ValueError(f"table 1: model {key[0]!r} with {key[1]!r} is given twice; give each pair once")
        cells[key] = [row[name] for name in TABLE1_KEYS]
    models = list(dict.fromkeys(model for model, _ in cells))
    datatypes = list(dict.fromkeys(datatype for _, datatype in cells))
    names = [key.removesuffix("_accuracy").replace("_", " ").capitalize() for key in TABLE1_KEYS]
    header = ["Model"] + [f"{datatype} {name}" for datatype in datatypes for name in names]
    lines = [[model, *(v for d in datatypes for v in cells.get((model, d), [""] * len(names)))] for model in models]
    return header, lines


def _accuracy_text(value: Any) -> str:
    if value == "":
        return ""
    return "undefined" if value is None else f"{value:.4f}"


def _head(metrics: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    if name not in metrics or key not in metrics[name]:
        raise ValueError(f"metrics: expected {name!r} with {key!r}, got {sorted(metrics.get(name, metrics))}")
    return metrics[name]


def _panels(count: int, height: float, title: str, with_counts: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure with one panel per dimension (and a low one under each); no global matplotlib state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(PANEL_INCHES * count, 4.8) + 0.6, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    ratios = {"height_ratios": [3, 1]} if with_counts else None
    grid = figure.subplots(2 if with_counts else 1, count, squeeze=False, gridspec_kw=ratios)
    return figure, list(grid.flatten())


def _title(panel: "Axes", name: str, head: Mapping[str, Any], ece: bool = False) -> None:
    """Name, number of rows and accuracy beside the majority class's; a note in place of the plot without rows."""
    if head["n"]:
        numbers = f"accuracy {head['accuracy']:.3f}, majority {head['majority']:.3f}"
        numbers += f", ECE {head['ece']:.3f}" if ece else ""
        panel.set_title(f"{name} (n = {head['n']:,})\n{numbers}", fontsize=10)
    else:
        panel.set_title(f"{name} (n = 0)", fontsize=10)
        panel.text(0.5, 0.5, "no labelled rows", transform=panel.transAxes, ha="center", va="center", color=GREY)
        panel.set_xticks([])
        panel.set_yticks([])


def _draw_confusion(panel: "Axes", confusion: Sequence[Sequence[int]]) -> None:
    levels = len(confusion)
    shares = [[count / sum(row) if sum(row) else 0.0 for count in row] for row in confusion]
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [str(level + 1) for level in range(levels)]
    panel.set_xticks(range(levels), names)
    panel.set_yticks(range(levels), names)
    panel.set_xlabel("predicted level")
    panel.set_ylabel("true level")
    size = max(5.0, min(11.0, 48.0 / levels))
    for true_level, row in enumerate(confusion):
        for predicted, count in enumerate(row):
            colour = "white" if shares[true_level][predicted] > 0.55 else "black"
            panel.text(predicted, true_level, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)


def _draw_reliability(upper: "Axes", lower: "Axes", reliability: Mapping[str, Sequence[Any]]) -> None:
    bins = len(reliability["count"])
    width = 1.0 / bins
    filled = [index for index in range(bins) if reliability["count"][index]]
    centres = [(index + 0.5) * width for index in filled]
    accuracy = [reliability["accuracy"][index] for index in filled]
    confidence = [reliability["confidence"][index] for index in filled]
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
    upper.bar(centres, accuracy, width * 0.94, color=BLUE, alpha=0.85, label="accuracy in bin")
    upper.plot(confidence, accuracy, "o", color=ORANGE, markersize=4, markeredgecolor="white", label="mean confidence")
    upper.set_ylim(0, 1.02)
    counts = [reliability["count"][index] for index in filled]
    lower.bar(centres, counts, width * 0.94, color=GREY)
    for centre, count in zip(centres, counts, strict=True):
        lower.text(
            centre, count + 0.04 * max(counts), f"{count:,}", ha="center", va="bottom", fontsize=6.5, rotation=90
        )
    lower.set_ylim(0, max(counts) * 1.55)
    lower.set_xlabel("probability of the chosen level")
    for panel in (upper, lower):
        panel.set_xlim(0, 1)
        panel.spines[["top", "right"]].set_visible(False)


def _save(figure: "Figure", path: str | Path) -> Path:
    """Write the PNG under a temporary name and move it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    part.replace(path)
    return path
