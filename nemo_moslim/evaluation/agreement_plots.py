"""Pictures of task=judge_agreement, drawn from its JSON alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_moslim.evaluation.plots import BLUE, DOTS_PER_INCH, GREY, ORANGE, _save


def plot_judge(report: Mapping[str, Any], path: str | Path) -> Path:
    """Given score against the judge's, as counts of answers, and the mean of every model by both."""
    figure, (left, right) = _figure(2, 9.6)
    table = report["confusion"]
    low = report["scale"][0]
    left.imshow(table, cmap="Blues", origin="lower", aspect="auto")
    most = max(map(max, table)) or 1
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if count > 0.55 * most else "black"
                left.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    left.set_xticks(range(len(table[0])), [str(low + i) for i in range(len(table[0]))])
    left.set_yticks(range(len(table)), [str(i + 1) for i in range(len(table))])
    left.set_xlabel(f"the judge's score of {report['dimension']}")
    left.set_ylabel("given score")
    value = report["spearman"]["value"]
    left.set_title(f"n = {report['n']:,}" + ("" if value is None else f", Spearman {value:.3f}"), fontsize=10)
    means = report["model_means"]
    right.plot([m["given"] for m in means.values()], [m["judge"] for m in means.values()], "o", color=BLUE)
    for number, mean in enumerate(means.values(), 1):
        place = (mean["given"], mean["judge"])
        right.annotate(str(number), place, fontsize=7, xytext=(4, 3), textcoords="offset points")
    listed = "\n".join(f"{number}  {name}" for number, name in enumerate(means, 1))
    right.text(1.03, 1.0, listed, transform=right.transAxes, va="top", fontsize=7)
    order = report["spearman_of_model_means"]
    right.set_title("models" + ("" if order is None else f", Spearman {order:.3f}"), fontsize=10)
    right.set_xlabel("mean of the given scores")
    right.set_ylabel("mean of the judge's scores")
    right.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def plot_annotators(
    report: Mapping[str, Any], names: Sequence[str], annotators: Sequence[str], path: str | Path
) -> Path:
    """Accuracy of both annotators per dimension with 95 % intervals, and the majority level's (paper, Figure 9)."""
    figure, (panel,) = _figure(1, 2.0 + 1.7 * len(names))
    width = 0.8 / len(annotators)
    for place, (annotator, colour) in enumerate(zip(annotators, (BLUE, ORANGE), strict=True)):
        for column, name in enumerate(names):
            entry = report["dimensions"][name]["annotators"][annotator]["accuracy"]
            if entry["value"] is None:
                continue
            x = column + (place - (len(annotators) - 1) / 2) * width
            label = annotator.replace("_", " ") if column == 0 else None
            panel.bar(x, entry["value"], width * 0.92, color=colour, label=label)
            if entry["low"] is not None:
                around = [[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]]
                panel.errorbar(x, entry["value"], around, color="black", capsize=3, linewidth=1)
            panel.text(x, 0.015, f"{entry['value']:.2f}", ha="center", va="bottom", fontsize=8, color="white")
    for column, name in enumerate(names):
        majority = report["dimensions"][name]["majority"]
        if majority is not None:
            label = "majority level" if column == 0 else None
            panel.plot([column - 0.45, column + 0.45], [majority] * 2, color=GREY, linestyle="--", label=label)
    panel.set_xticks(range(len(names)), [f"{name}\n(n = {report['dimensions'][name]['n']:,})" for name in names])
    panel.set_ylim(0, 1)
    panel.set_ylabel("share of exact levels")
    panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    panel.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _figure(panels: int, width: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, 4.8), 4.2), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False).flatten())
