"""Plots and Table 1: files are valid PNGs, nothing on them overlaps, tables are exact."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from nemo_moslim.evaluation.plots import save_confusion_plot, save_reliability_plot, table1_csv, table1_markdown
from nemo_moslim.evaluation.reward_accuracy import TABLE1_KEYS, reward_metrics
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(
    dimensions=(Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)
ROWS = [
    {"model": model, "datatype": datatype, **dict(zip(TABLE1_KEYS, values, strict=True))}
    for model, datatype, values in (
        ("RM-1M", "1", (0.92041, 0.5, 0.9169, 0.875)),
        ("RM-1M", "4", (0.871, 0.5, 0.291, 0.25)),
        ("RM-5M", "4", (None, None, 0.3635, 0.25)),
    )
]


def metrics_of(rows=2000, unlabelled=()):
    rng = np.random.default_rng(0)
    heads, labels = [], []
    for head, k in enumerate((5, 5, 2)):
        truth = rng.integers(1, k + 1, rows)
        logits = rng.normal(size=(rows, k)) * 1.5 + 1.2 * np.eye(k)[truth - 1]
        heads.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        labels.append(np.zeros(rows, dtype=int) if head in unlabelled else truth)
    metrics = reward_metrics(np.concatenate(heads, 1), np.stack(labels, 1), SCHEMA, "per_head")
    return json.loads(json.dumps(metrics, allow_nan=False))


@pytest.fixture
def drawn(monkeypatch):
    """Figures saved during the test, for a look at what is on them."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def overlapping(figure):
    """Pairs of titles and texts whose boxes overlap, and texts that leave the figure."""
    texts = [t for axes in figure.axes for t in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts = [t for t in (*texts, *figure.texts) if t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    bad = [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]
    width, height = figure.canvas.get_width_height()
    outside = [a for a, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return bad, outside


@pytest.mark.parametrize("save", [save_confusion_plot, save_reliability_plot])
@pytest.mark.parametrize("unlabelled", [(), (0,), (0, 1, 2)])
def test_plots_are_png_files_without_overlap(save, unlabelled, tmp_path, drawn):
    path = save(metrics_of(unlabelled=unlabelled), SCHEMA, tmp_path / "plots" / "picture.png", title="2,000 rows")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
    assert overlapping(drawn[0]) == ([], [])
    titles = [axes.get_title() for axes in drawn[0].axes]
    for head, name in enumerate(SCHEMA.names):
        assert titles[head].startswith(f"{name} (n = {0 if head in unlabelled else '2,000'})")


def test_confusion_counts_are_written_and_colours_are_row_shares(tmp_path, drawn):
    metrics = metrics_of()
    save_confusion_plot(metrics, SCHEMA, tmp_path / "c.png")
    panel = drawn[0].axes[0]
    written = np.array([int(t.get_text().replace(",", "")) for t in panel.texts]).reshape(5, 5)
    assert written.tolist() == metrics["helpfulness"]["confusion"]
    shares = np.asarray(panel.images[0].get_array())
    assert np.allclose(shares.sum(1), 1.0)
    assert f"accuracy {metrics['helpfulness']['accuracy']:.3f}, majority" in panel.get_title()


def test_plots_name_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="expected 'helpfulness' with 'confusion'"):
        save_confusion_plot({"helpfulness": {"n": 3}}, SCHEMA, tmp_path / "c.png")
    with pytest.raises(ValueError, match="expected 'helpfulness' with 'reliability'"):
        save_reliability_plot({}, SCHEMA, tmp_path / "c.png")


def test_table1_markdown():
    assert table1_markdown(ROWS) == (
        "| Model | 1 Preference | 1 Preference majority | 1 Intensity | 1 Intensity majority "
        "| 4 Preference | 4 Preference majority | 4 Intensity | 4 Intensity majority |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| RM-1M | 0.9204 | 0.5000 | 0.9169 | 0.8750 | 0.8710 | 0.5000 | 0.2910 | 0.2500 |\n"
        "| RM-5M |  |  |  |  | undefined | undefined | 0.3635 | 0.2500 |\n"
    )


def test_table1_csv():
    assert table1_csv(ROWS) == (
        "Model,1 Preference,1 Preference majority,1 Intensity,1 Intensity majority,"
        "4 Preference,4 Preference majority,4 Intensity,4 Intensity majority\n"
        "RM-1M,0.92041,0.5,0.9169,0.875,0.871,0.5,0.291,0.25\n"
        "RM-5M,,,,,,,0.3635,0.25\n"
    )


def test_table1_refuses_a_pair_given_twice():
    with pytest.raises(ValueError, match="'RM-1M' with '1' is given twice"):
        table1_markdown([ROWS[0], ROWS[0]])
