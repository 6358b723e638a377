"""Pictures of the control report: valid PNGs, a panel per dimension or pair, nothing on them overlaps."""

import json

import numpy as np
import pytest
from grids import grid
from matplotlib.figure import Figure

from nemo_moslim.evaluation import control_plots
from nemo_moslim.evaluation.control_plots import plot_confusion, plot_control, plot_pairs
from nemo_moslim.evaluation.controllability import control_report
from nemo_moslim.preferences import Dimension, PreferenceSchema

THREE = PreferenceSchema(
    dimensions=(Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)
ONE, TWO = PreferenceSchema(THREE.dimensions[:1]), PreferenceSchema(THREE.dimensions[1:])
FIVE = PreferenceSchema(
    (*THREE.dimensions, Dimension("conciseness", 10, (1, 5)), Dimension("instruction_following", 4, (1, 5)))
)
FOUR = PreferenceSchema(FIVE.dimensions[:4])
LONG = PreferenceSchema(
    (Dimension("instruction_following", 4, (1, 5)), *TWO.dimensions[:1], Dimension("a-long-dimension_name", 3, (1, 5)))
)
PLOTS = [plot_control, plot_confusion, plot_pairs]


def report_of(schema, count=600, unasked=()):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        levels = {d.name: int(rng.integers(1, d.levels + 1)) for d in schema.dimensions}
        asked = [name for name in schema.names if name not in unasked and index % 10 and rng.random() < 0.7]
        wanted = {name: levels[name] for name in asked}
        if rng.random() < 0.4:
            levels = {d.name: int(rng.integers(1, d.levels + 1)) for d in schema.dimensions}
        rows.append({"prompt": "p", "preferences": wanted, "levels": levels})
    return json.loads(json.dumps(control_report(rows, schema, samples=50), allow_nan=False))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer pixels, for speed: sizes are in points and inches."""
    monkeypatch.setattr(control_plots, "DOTS_PER_INCH", 80)


@pytest.fixture
def drawn(monkeypatch):
    """Figures saved during the test, for a look at what is on them."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def overlapping(figure):
    """Pairs of titles, labels and legend texts whose boxes overlap, and texts that leave the figure."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.title]
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        texts += legend.get_texts() if legend else []
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    bad = [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]
    width, height = figure.canvas.get_width_height()
    outside = [a for a, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return bad, outside


SCHEMAS = {"one": ONE, "two": TWO, "three": THREE, "four": FOUR, "five": FIVE, "long": LONG}


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("name", grid(SCHEMAS, "one", "five", "long"))
def test_plots_are_png_files_without_overlap(plot, name, tmp_path, drawn):
    schema = SCHEMAS[name]
    path = plot(report_of(schema), schema, tmp_path / "plots" / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 2_000
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
    assert overlapping(drawn[0]) == ([], [])


@pytest.mark.parametrize("plot", [plot_control, plot_confusion])
def test_a_panel_per_dimension_with_its_numbers(plot, tmp_path, drawn):
    report = report_of(THREE)
    plot(report, THREE, tmp_path / "c.png")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == list(THREE.names)
    for panel, name in zip(panels, THREE.names, strict=True):
        expected = f"Spearman {report[name]['spearman']:.2f}, hit rate {report[name]['hit_rate']:.2f}"
        assert expected in [text.get_text() for text in panel.texts]


def test_control_draws_curve_interval_dots_and_untagged_mean(tmp_path, drawn):
    report = report_of(THREE)
    plot_control(report, THREE, tmp_path / "c.png")
    panel = drawn[0].axes[1]
    lines = {line.get_label(): line for line in panel.lines}
    curve = report["honesty"]["curve"]
    assert lines["mean obtained level"].get_xydata().tolist() == [[p["level"], p["mean"]] for p in curve]
    untagged = report["overall"]["untagged"]["dimensions"]["honesty"]["mean"]
    assert lines["mean without a tag"].get_ydata() == [untagged, untagged]
    band, dots = panel.collections
    edges = {(x, y) for x, y in band.get_paths()[0].vertices.tolist()}
    assert {(p["level"], p[key]) for p in curve for key in ("low", "high")} <= edges
    counts = np.array(report["honesty"]["confusion"])
    assert len(dots.get_offsets()) == (counts > 0).sum()
    assert np.allclose(dots.get_sizes() / dots.get_sizes().max(), counts[counts > 0] / counts.max())


def test_confusion_writes_the_shares_of_the_requested_level(tmp_path, drawn):
    report = report_of(TWO)
    plot_confusion(report, TWO, tmp_path / "c.png")
    panel = drawn[0].axes[1]
    counts = np.array(report["harmless"]["confusion"])
    shares = counts / counts.sum(1, keepdims=True)
    assert np.allclose(np.asarray(panel.images[0].get_array()), shares)
    assert [text.get_text() for text in panel.texts[1:]] == [f"{share:.2f}" for share in shares.ravel()]


def test_pairs_are_radars_with_a_polygon_per_goal(tmp_path, drawn):
    report = report_of(THREE)
    plot_pairs(report, THREE, tmp_path / "p.png")
    panels = drawn[0].axes
    assert [panel.name for panel in panels] == ["polar"] * 3
    assert [p.get_title() for p in panels] == [
        "helpfulness × honesty",
        "helpfulness × harmless",
        "honesty × harmless",
    ]
    goal = report["pairs"][2]["goals"][1]
    (line,) = [line for line in panels[2].lines if line.get_label().startswith("honesty 1, harmless 2")]
    assert line.get_label().endswith(f"(n = {goal['n']:,})")
    assert line.get_ydata()[:3].tolist() == [goal["obtained"][name] for name in THREE.names]
    assert len(panels[2].get_legend().get_texts()) == 4


def test_pairs_of_two_dimensions_are_bars(tmp_path, drawn):
    report = report_of(TWO)
    plot_pairs(report, TWO, tmp_path / "p.png")
    (panel,) = drawn[0].axes
    assert panel.name == "rectilinear" and panel.get_title() == "honesty × harmless"
    heights = [[bar.get_height() for bar in group] for group in panel.containers]
    assert heights == [list(goal["obtained"].values()) for goal in report["pairs"][0]["goals"]]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("unasked", [("honesty",), THREE.names])
def test_a_dimension_nobody_asked_for_is_a_note(plot, unasked, tmp_path, drawn):
    plot(report_of(THREE, unasked=unasked), THREE, tmp_path / "c.png")
    notes = [text.get_text() for panel in drawn[0].axes for text in panel.texts]
    concerned = 2 if plot is plot_pairs and len(unasked) == 1 else len(unasked)
    assert sum(note.startswith("no answer was asked for") for note in notes) == concerned
    assert overlapping(drawn[0]) == ([], [])


def test_one_dimension_has_no_pairs(tmp_path, drawn):
    plot_pairs(report_of(ONE), ONE, tmp_path / "p.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["a pair needs two dimensions"]


def test_plots_name_what_is_missing(tmp_path):
    report = report_of(TWO, count=20)
    with pytest.raises(ValueError, match="expected dimension 'helpfulness', got"):
        plot_control(report, THREE, tmp_path / "c.png")
    del report["honesty"]["confusion"], report["pairs"]
    for plot in (plot_control, plot_confusion):
        with pytest.raises(ValueError, match="expected 'honesty' with 'confusion'"):
            plot(report, TWO, tmp_path / "c.png")
    with pytest.raises(ValueError, match="expected 'pairs'"):
        plot_pairs(report, TWO, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
