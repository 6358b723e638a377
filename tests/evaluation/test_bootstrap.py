"""The paired bootstrap against drawing row indices one resample at a time."""

import numpy as np
import pytest

from nemo_moslim.evaluation.bootstrap import paired_bootstrap, paired_bootstrap_macro_f1

NOTHING = {"difference": None, "low": None, "high": None}


def classifiers(seed=0, n=300):
    rng = np.random.default_rng(seed)
    truth = rng.choice([1, 2, 3], n, p=[0.6, 0.3, 0.1])
    right = np.where(rng.random(n) < 0.7, truth, rng.integers(1, 4, n))
    worse = np.where(rng.random(n) < 0.5, right, rng.integers(1, 4, n))
    return truth, right, worse, rng


def test_accuracy_by_hand():
    result = paired_bootstrap([True, True, False, True], [True, False, False, False], samples=500, seed=3)
    assert result["difference"] == 0.5
    assert result["low"] == 0.0 and result["high"] == 1.0  # a is never worse, so no resample is below 0
    same = paired_bootstrap([True, False], [True, False])
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_accuracy_interval_equals_drawing_rows():
    truth, a, b, rng = classifiers()
    result = paired_bootstrap(a == truth, b == truth, samples=4000, seed=1)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(0, len(truth), len(truth))
        drawn.append(np.mean(a[rows] == truth[rows]) - np.mean(b[rows] == truth[rows]))
    assert result["difference"] == pytest.approx(np.mean(a == truth) - np.mean(b == truth))
    assert [result["low"], result["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.006)
    assert result["low"] < result["difference"] < result["high"]


def test_macro_f1_interval_equals_drawing_rows():
    from sklearn.metrics import f1_score

    truth, a, b, rng = classifiers(1)
    result = paired_bootstrap_macro_f1(truth, a, b, levels=3, samples=3000, seed=1)
    expected = f1_score(truth, a, average="macro") - f1_score(truth, b, average="macro")
    assert result["difference"] == pytest.approx(expected)
    drawn = []
    for _ in range(250):
        r = rng.integers(0, len(truth), len(truth))
        drawn.append(f1_score(truth[r], a[r], average="macro") - f1_score(truth[r], b[r], average="macro"))
    assert result["high"] - result["low"] == pytest.approx(np.ptp(np.percentile(drawn, [2.5, 97.5])), rel=0.25)
    assert (result["low"] + result["high"]) / 2 == pytest.approx(np.mean(drawn), abs=0.015)


def test_order_of_the_classifiers_flips_the_sign():
    truth, a, b, _ = classifiers(2)
    forward = paired_bootstrap_macro_f1(truth, a, b, 3)
    back = paired_bootstrap_macro_f1(truth, b, a, 3)
    assert forward["difference"] == pytest.approx(-back["difference"])
    assert forward["low"] == pytest.approx(-back["high"], abs=0.01)


def test_seed_decides_the_draw_and_no_rows_give_nulls():
    truth, a, b, _ = classifiers(3)
    correct = a == truth, b == truth
    assert paired_bootstrap(*correct, seed=5) == paired_bootstrap(*correct, seed=5)
    assert paired_bootstrap(*correct, samples=50, seed=5) != paired_bootstrap(*correct, samples=50, seed=6)
    assert paired_bootstrap([], []) == NOTHING
    assert paired_bootstrap_macro_f1([], [], [], 5) == NOTHING


def test_refuses():
    with pytest.raises(ValueError, match="arrays of one length"):
        paired_bootstrap([True], [True, False])
    with pytest.raises(ValueError, match="at least 1 sample"):
        paired_bootstrap([True], [True], samples=0)
    with pytest.raises(ValueError, match="predicted_b: expected levels from 1 to 2, got 1 to 3"):
        paired_bootstrap_macro_f1([1, 2], [1, 2], [1, 3], 2)
