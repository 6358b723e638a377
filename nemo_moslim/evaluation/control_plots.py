"""Pictures of a policy's control report: requested against obtained levels, confusion, and pairs of goals.

Everything is drawn from the dict that `controllability.control_report` returns, so a plot can be made again from the
JSON alone. Colours are the colour-blind-safe ones of Okabe and Ito, and one-hue maps.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_moslim.evaluation.plots import BLUE, GREY, ORANGE, _save
from nemo_moslim.preferences import PreferenceSchema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 200
COLUMNS = 3  # panels beside each other
INK, GRID = "#222222", "#DDDDDD"
GOALS = (  # colour, line, marker
    (BLUE, "-", "o"),
    (ORANGE, (0, (4, 1.6)), "s"),
    ("#009E73", (0, (6, 1.4, 1.4, 1.4)), "^"),
    ("#CC79A7", (0, (1.4, 1.2)), "D"),
)
DOT_AREA = 330.0  # square points of the most frequent cell


class Cell(NamedTuple):
    """A square panel and the margins around it, in inches: a fixed layout, so that nothing can overlap."""

    side: float
    left: float
    right: float
    top: float
    bottom: float


LEVELS = Cell(side=2.62, left=0.58, right=0.17, top=0.68, bottom=0.6)
BARS = Cell(side=2.7, left=0.65, right=0.2, top=0.5, bottom=1.3)


def plot_control(report: Mapping[str, Any], schema: PreferenceSchema, path: str | Path) -> Path:
    """Mean obtained level against the requested one, a panel per dimension (the paper's Figure 5), as a PNG.

    The band is the 95 % interval of the mean; the area of a dot is the number of answers with that requested and
    obtained level; the dotted line is the mean level of untagged answers, where there are any.

    Args:
        report: from `control_report`, or its JSON.
        schema: the dimensions, one panel each.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: `report` lacks a dimension or one of the keys that are drawn.
    """
    heads = [_head(report, name, ("n", "spearman", "hit_rate", "curve", "confusion")) for name in schema.names]
    untagged = report.get("overall", {}).get("untagged", {}).get("dimensions", {})
    figure, panels = _figure(len(heads), LEVELS, footer=_legend_inches(len(heads)))
    handles: dict[str, Any] = {}
    for index, (panel, name, head) in enumerate(zip(panels, schema.names, heads, strict=True)):
        _title(panel, name, head)
        if not head["n"]:
            _note(panel, "no answer was asked for it")
            continue
        _draw_curve(panel, head, untagged.get(name, {}).get("mean"))
        _level_axes(panel, len(head["curve"]))
        _axis_labels(panel, "requested level", "obtained level" if index % COLUMNS == 0 else "")
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        _legend(figure, handles, _legend_columns(len(heads)))
    return _save(figure, path)


def plot_confusion(report: Mapping[str, Any], schema: PreferenceSchema, path: str | Path) -> Path:
    """Confusion matrix per dimension as a PNG: rows are requested levels, numbers and colours shares of the row.

    Arguments and errors are those of `plot_control`.
    """
    heads = [_head(report, name, ("n", "spearman", "hit_rate", "confusion")) for name in schema.names]
    figure, panels = _figure(len(heads), LEVELS)
    for index, (panel, name, head) in enumerate(zip(panels, schema.names, heads, strict=True)):
        _title(panel, name, head)
        if not head["n"]:
            _note(panel, "no answer was asked for it")
            continue
        _draw_confusion(panel, head["confusion"])
        _axis_labels(panel, "obtained level", "requested level" if index % COLUMNS == 0 else "")
    return _save(figure, path)


def plot_pairs(report: Mapping[str, Any], schema: PreferenceSchema, path: str | Path) -> Path:
    """Mean levels at the extreme goals of every pair of dimensions (the paper's Figure 6), as a PNG.

    A radar per pair, an axis per dimension, 0 at the lowest and 1 at the highest level, a polygon per goal. With fewer
    than three dimensions of several levels, grouped bars; without a pair of dimensions, a note.

    Arguments and errors are those of `plot_control`; the key needed is `pairs`.
    """
    if "pairs" not in report:
        raise ValueError(f"control report: expected 'pairs', got {sorted(report)}")
    pairs = report["pairs"]
    names = [dimension.name for dimension in schema.dimensions if dimension.levels > 1]
    radar = len(names) >= 3
    cell = _radar_cell(names) if radar else BARS
    figure, panels = _figure(max(len(pairs), 1), cell, polar=radar)
    if not pairs:
        _note(panels[0], "a pair needs two dimensions")
    for panel, pair in zip(panels, pairs, strict=False):
        title = " × ".join(pair["dimensions"])
        size = _fitting(12.0, title, cell.left + cell.side + cell.right, bold=True)
        y = 1 + (cell.top - 0.36) / cell.side
        panel.set_title(title, fontsize=size, fontweight="bold", color=INK, pad=0, y=y)
        goals = [(style, goal) for style, goal in zip(GOALS, pair["goals"], strict=False) if goal["n"]]
        if not goals or not names:
            _note(panel, "no answer was asked for both\nat their lowest or highest level")
            continue
        (_draw_radar if radar else _draw_bars)(panel, goals, names)
        _goal_legend(panel, goals, cell, (0.92 - cell.bottom) / cell.side if radar else -0.12)
    return _save(figure, path)


def _radar_cell(names: Sequence[str]) -> Cell:
    """Room for the labels around and the legend below; the lowest corner is no full radius down."""
    lowest = min(math.cos(math.tau * index / len(names)) for index in range(len(names)))
    lines = 0.15 * max(_broken(name).count("\n") for name in names)  # of labels that are broken
    side, margin = 2.5, 0.42 if len(names) == 3 else 0.95
    return Cell(side, margin, margin, top=0.75 + lines, bottom=1.35 - side / 2 * (1 + lowest) + lines)


def _broken(name: str) -> str:
    """A long name with its parts on lines of their own."""
    return name.replace("_", "_\n").replace("-", "-\n") if len(name) > 12 else name


def _fitting(size: float, text: str, inches: float, bold: bool = False) -> float:
    """The font size, or the smaller one at which the text is about that wide."""
    return min(size, 72 * inches / (len(text) * (0.65 if bold else 0.54)))


def _figure(count: int, cell: Cell, footer: float = 0.0, polar: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure of `count` panels, at most `COLUMNS` in a row; no global matplotlib state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    step_x, step_y = cell.left + cell.side + cell.right, cell.top + cell.side + cell.bottom
    width, height = columns * step_x, rows * step_y + footer
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    panels = []
    for index in range(count):
        row, column = divmod(index, columns)
        left, bottom = column * step_x + cell.left, height - (row + 1) * step_y + cell.bottom
        place = (left / width, bottom / height, cell.side / width, cell.side / height)
        panels.append(figure.add_axes(place, projection="polar" if polar else None))
    return figure, panels


def _head(report: Mapping[str, Any], name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if name not in report:
        raise ValueError(f"control report: expected dimension {name!r}, got {sorted(report)}")
    missing = [key for key in keys if key not in report[name]]
    if missing:
        raise ValueError(f"control report: expected {name!r} with {missing[0]!r}, got {sorted(report[name])}")
    return report[name]


def _title(panel: "Axes", name: str, head: Mapping[str, Any]) -> None:
    """Name in bold, below it Spearman and hit rate."""
    numbers = "no rows"
    if head["n"]:
        spearman = "undefined" if head["spearman"] is None else f"{head['spearman']:.2f}"
        numbers = f"Spearman {spearman}, hit rate {head['hit_rate']:.2f}"
    size = _fitting(12.5, name, LEVELS.side + 0.2, bold=True)
    panel.set_title(name, fontsize=size, fontweight="bold", color=INK, pad=0, y=1.125)
    panel.text(0.5, 1.035, numbers, transform=panel.transAxes, ha="center", va="bottom", fontsize=10.5, color=GREY)


def _note(panel: "Axes", text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", fontsize=10, color=GREY)
    panel.set_axis_off()


def _axis_labels(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(x, fontsize=11, color=INK)
    panel.set_ylabel(y, fontsize=11, color=INK)


def _draw_curve(panel: "Axes", head: Mapping[str, Any], untagged: float | None) -> None:
    """Drawn in the order of the legend; `zorder` says what lies above."""
    levels = len(head["curve"])
    points = [point for point in head["curve"] if point["mean"] is not None]
    x, mean, low, high = ([point[key] for point in points] for key in ("level", "mean", "low", "high"))
    edge = {"markeredgecolor": "white", "markeredgewidth": 1.2}
    panel.plot(x, mean, "-o", color=BLUE, markersize=6.5, linewidth=2.2, zorder=5, label="mean obtained level", **edge)
    panel.fill_between(x, low, high, color=BLUE, alpha=0.3, linewidth=0, zorder=4, label="its 95 % interval")
    cells = [(x, y, n) for x, row in enumerate(head["confusion"], 1) for y, n in enumerate(row, 1) if n]
    x, y, counts = zip(*cells, strict=True)
    scale = DOT_AREA * min(1.0, 5 / levels) ** 2 / max(counts)
    areas = [scale * count for count in counts]
    panel.scatter(x, y, areas, color=BLUE, alpha=0.17, linewidths=0, zorder=3, label="answers (area: count)")
    ends = [0.5, levels + 0.5]
    panel.plot(ends, ends, color=GREY, linestyle=(0, (5, 4)), linewidth=1.1, zorder=2, label="ideal")
    if untagged is not None:
        panel.axhline(untagged, color=ORANGE, linestyle=":", linewidth=1.6, zorder=2, label="mean without a tag")


def _level_axes(panel: "Axes", levels: int) -> None:
    """Both axes show the levels, in a square."""
    ticks = range(1, levels + 1, max(1, math.ceil(levels / 10)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks(list(ticks))
    panel.set(xlim=(0.5, levels + 0.5), ylim=(0.5, levels + 0.5), aspect="equal")
    panel.set_axisbelow(True)
    panel.grid(color=GRID, linewidth=0.7)
    _quiet(panel)


def _quiet(panel: "Axes") -> None:
    panel.tick_params(labelsize=10, length=0, labelcolor=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#AAAAAA")


def _legend_columns(count: int) -> int:
    return {1: 1, 2: 3}.get(count, 5)


def _legend_inches(count: int) -> float:
    """Height of the legend below `count` panels."""
    return 0.1 + 0.21 * math.ceil(5 / _legend_columns(count))


def _legend(figure: "Figure", handles: Mapping[str, Any], columns: int) -> None:
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(columns, len(handles)),
        fontsize=10,
        frameon=False,
        columnspacing=1.8,
        handletextpad=0.6,
        scatteryoffsets=[0.5],
        labelcolor=INK,
    )
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([80])


def _goal_legend(panel: "Axes", goals: Sequence[tuple[Any, Mapping[str, Any]]], cell: Cell, top: float) -> None:
    """Below the panel; `top` in heights of the panel."""
    longest = max((_goal_label(goal) for _, goal in goals), key=len)
    panel.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        fontsize=_fitting(9.5, longest, cell.left + cell.side + cell.right - 0.75),
        frameon=False,
        handlelength=3.2,
        borderaxespad=0,
        borderpad=0,
        labelcolor=INK,
    )


def _draw_confusion(panel: "Axes", confusion: Sequence[Sequence[int]]) -> None:
    levels = len(confusion)
    shares = [[count / sum(row) if sum(row) else math.nan for count in row] for row in confusion]
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [str(level + 1) for level in range(levels)]
    panel.set_xticks(range(levels), names)
    panel.set_yticks(range(levels), names)
    panel.tick_params(labelsize=10, length=0, labelcolor=INK)
    panel.spines[:].set_visible(False)
    for edge in range(1, levels):  # white gaps between the cells
        panel.axhline(edge - 0.5, color="white", linewidth=1.5)
        panel.axvline(edge - 0.5, color="white", linewidth=1.5)
    size = max(5.0, min(13.0, 56.0 / levels))
    for requested, row in enumerate(shares):
        for obtained, share in enumerate(row):
            text, colour = _share_text(share)
            panel.text(obtained, requested, text, ha="center", va="center", color=colour, fontsize=size)


def _share_text(share: float) -> tuple[str, str]:
    """Two digits and a readable colour; zero is faint, a row without answers is a dash."""
    if math.isnan(share):
        return "–", GREY
    if share == 0:
        return "0", "#9A9A9A"
    return f"{share:.2f}", "white" if share > 0.55 else INK


def _goal_label(goal: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {level}" for name, level in goal["goal"].items()) + f"  (n = {goal['n']:,})"


def _draw_radar(panel: "Axes", goals: Sequence[tuple[Any, Mapping[str, Any]]], names: Sequence[str]) -> None:
    angles = [math.tau * index / len(names) for index in range(len(names))]
    around = [*angles, angles[0]]
    panel.set_theta_offset(math.pi / 2)
    panel.set_theta_direction(-1)
    _radar_web(panel, angles)
    for (colour, line, marker), goal in goals:
        values = [goal["obtained"][name] for name in [*names, names[0]]]
        style = {"marker": marker, "markersize": 6, "markeredgecolor": "white", "linewidth": 2, "clip_on": False}
        panel.plot(around, values, color=colour, linestyle=line, zorder=4, label=_goal_label(goal), **style)
        panel.fill(around, values, color=colour, alpha=0.07, zorder=2)
    longest = max((part for name in names for part in _broken(name).split("\n")), key=len)
    size = _fitting(10.5, longest, 1.0 if len(names) == 3 else 0.74)
    for angle, name in zip(angles, names, strict=True):
        x, y = math.sin(angle), math.cos(angle)
        aside = y > -0.4 and abs(x) > 0.01  # the label stands beside its corner, not above or below it
        panel.annotate(
            _broken(name),
            (angle, 1.0),
            (9 * x, 0) if aside else (0, 9 * (1 if y > 0 else -1)),
            textcoords="offset points",
            ha=("left" if x > 0 else "right") if aside else "center",
            va="center" if aside else ("bottom" if y > 0 else "top"),
            fontsize=size,
            color=INK,
        )


def _radar_web(panel: "Axes", angles: Sequence[float]) -> None:
    """Rings with straight sides in place of matplotlib's circles, and their values beside the upper left side."""
    panel.set(xticks=[], yticks=[], ylim=(0, 1))
    panel.grid(False)
    panel.spines["polar"].set_visible(False)
    around = [*angles, angles[0]]
    for ring in (0.25, 0.5, 0.75, 1.0):
        panel.plot(around, [ring] * len(around), color=GRID if ring < 1 else "#AAAAAA", linewidth=0.8, zorder=1)
    for angle in angles:
        panel.plot([angle, angle], [0, 1], color=GRID, linewidth=0.8, zorder=1)
    half = math.pi / len(angles)
    for ring in (0.5, 1.0):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        place = (-half, ring * math.cos(half))
        panel.text(*place, f"{ring:g}", ha="center", va="center", fontsize=8, color=GREY, bbox=box, zorder=1.5)


def _draw_bars(panel: "Axes", goals: Sequence[tuple[Any, Mapping[str, Any]]], names: Sequence[str]) -> None:
    width = 0.8 / len(goals)
    for index, ((colour, _, _), goal) in enumerate(goals):
        offset = (index - (len(goals) - 1) / 2) * width
        values = [goal["obtained"][name] for name in names]
        places = [place + offset for place in range(len(names))]
        panel.bar(places, values, width * 0.9, color=colour, label=_goal_label(goal))
        for place, value in zip(places, values, strict=True):
            panel.text(place, value + 0.015, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
    panel.set_xticks(range(len(names)), names)
    panel.set_ylim(0, 1.08)
    panel.set_ylabel("mean level, 0 lowest to 1 highest", fontsize=10, color=INK)
    _quiet(panel)
    panel.tick_params(axis="x", labelsize=_fitting(10.0, max(names, key=len), BARS.side / len(names)))
