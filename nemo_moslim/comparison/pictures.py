"""Pictures of a comparison, drawn from its JSON alone: fronts between every two dimensions, and costs."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_moslim.comparison.tables import COST_KINDS
from nemo_moslim.evaluation.plots import GREY, _save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (  # Okabe and Ito's, with brown for yellow, then two
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6F47", "#6A3D9A", "#999999",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "h", "p")
KIND_COLOURS = ("#BBBBBB", "#56B4E9", "#D55E00", "#E69F00")


def plot_fronts(numbers: Mapping[str, Any], path: str | Path) -> Path:
    """Mean levels at the common weight vectors, a panel per pair of dimensions, with 95 % intervals as crosses.

    A line joins the points of a method that no other point of it beats in these two dimensions; a dashed one is drawn
    through the soups between the policies of both dimensions.
    """
    names = list(numbers["schema"])
    pairs = list(combinations(names, 2)) or [(names[0], names[0])]
    figure = _figure(4.4 * len(pairs) + 0.4, 4.9)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for panel, (first, second) in zip(panels, pairs, strict=True):
        for number, (method, found) in enumerate(numbers["methods"].items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            points = [(point["levels"][first], point["levels"][second]) for point in found["points"]]
            for x, y in points:
                _cross(panel, x, y, colour)
            means = [(x["mean"], y["mean"]) for x, y in points]
            label = "SFT model" if method == "start" else method
            panel.plot(
                *zip(*means, strict=True), marker, color=colour, markersize=8, markeredgecolor="white", label=label
            )
            front = sorted(p for p in means if not any(_beats(q, p) for q in means))
            panel.plot(*zip(*front, strict=True), "-", color=colour, linewidth=1, alpha=0.6)
            for line in found["lines"]:
                if line["between"] == [first, second]:
                    soups = [(levels[first]["mean"], levels[second]["mean"]) for levels in line["levels"]]
                    panel.plot(*zip(*soups, strict=True), "--.", color=colour, linewidth=1, markersize=4)
        for axis, name in (("x", first), ("y", second)):
            levels = numbers["schema"][name]["levels"]
            getattr(panel, f"set_{axis}lim")(1 - 0.04 * (levels - 1), levels + 0.04 * (levels - 1))
            getattr(panel, f"set_{axis}label")(f"mean level of {name}")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#E6E6E6", linewidth=0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return _save(figure, path)


def plot_costs(numbers: Mapping[str, Any], path: str | Path) -> Path:
    """Device-seconds of every method, stacked by kind of stage."""
    methods = list(numbers["methods"])
    figure = _figure(8.0, 0.5 * len(methods) + 1.8)
    panel = figure.subplots()
    left = [0.0] * len(methods)
    for kind, colour in zip(COST_KINDS, KIND_COLOURS, strict=True):
        widths = [numbers["methods"][method]["cost"].get(kind, 0.0) for method in methods]
        panel.barh(methods, widths, left=left, color=colour, label=kind, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        panel.text(total, place, f" {total:,.0f}", va="center", fontsize=8, color=GREY)
    panel.invert_yaxis()
    panel.set_xlabel("device-seconds for one seed")
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=len(COST_KINDS), fontsize=9, frameon=False)
    return _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _cross(panel: Any, x: Mapping[str, Any], y: Mapping[str, Any], colour: str) -> None:
    if x["low"] is not None:
        panel.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, linewidth=0.8, alpha=0.7)
        panel.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, linewidth=0.8, alpha=0.7)


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] >= b[0] and a[1] >= b[1]
