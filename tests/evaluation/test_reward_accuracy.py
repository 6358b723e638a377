"""Table 1's accuracies and the per-head metrics: hand-computed, against scikit-learn and loops, undefined cases."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.evaluation.reward_accuracy import (
    TABLE1_KEYS,
    confusion_matrix,
    expected_calibration_error,
    hard_labels,
    macro_f1,
    most_frequent_levels,
    reliability_bins,
    reward_metrics,
    spearman,
)
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(dimensions=(Dimension("helpful", 3, (1, 3)), Dimension("safe", 2, (0, 1))))
DATATYPE4 = PreferenceSchema(
    dimensions=(Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)

# Five rows; helpful is labelled in the first four, safe in the last two (row 3 carries both).
PER_HEAD = np.array(
    [
        [0.7, 0.2, 0.1, 0.6, 0.4],
        [0.2, 0.5, 0.3, 0.9, 0.1],
        [0.1, 0.1, 0.8, 0.3, 0.7],
        [0.6, 0.3, 0.1, 0.2, 0.8],
        [0.4, 0.3, 0.3, 0.55, 0.45],
    ]
)
LABELS = np.array([[1, 0], [2, 0], [2, 0], [1, 2], [0, 2]])


def random_case(seed, rows=40, schema=DATATYPE4):
    rng = np.random.default_rng(seed)
    heads = [rng.dirichlet(np.ones(schema.dimension(name).levels), rows) for name in schema.names]
    labels = np.stack([rng.integers(0, schema.dimension(name).levels + 1, rows) for name in schema.names], axis=1)
    return np.concatenate(heads, axis=1), labels, rng


def strip_numbers(value):
    """Every number in a nested result."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in strip_numbers(v)]
    if isinstance(value, list):
        return [x for v in value for x in strip_numbers(v)]
    return [value]


def test_by_hand():
    metrics = reward_metrics(PER_HEAD, LABELS, SCHEMA, "per_head", majority_classes={"helpful": 2, "safe": 1})
    helpful = metrics["helpful"]
    assert helpful["n"] == 4 and helpful["accuracy"] == 0.75 and helpful["majority"] == 0.5
    assert helpful["majority_train"] == 0.5
    assert helpful["confusion"] == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    # F1 by level: 1; 2*1/(2+1); level 3 is predicted once and never right: 0.
    assert helpful["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    # Expected levels 1.4, 2.1, 2.7, 1.5 (ranks 1, 3, 4, 2); labels 1, 2, 2, 1 (ranks 1.5, 3.5, 3.5, 1.5).
    assert helpful["spearman"] == pytest.approx(4 / math.sqrt(5 * 4))
    # Top probabilities 0.7, 0.5, 0.8, 0.6 fall in four bins: gaps 0.3, 0.5, 0.8, 0.4.
    assert helpful["ece"] == pytest.approx((0.3 + 0.5 + 0.8 + 0.4) / 4)
    assert helpful["per_level"]["2"] == {"n": 2, "predicted": 1, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert helpful["per_level"]["3"] == {"n": 0, "predicted": 1, "precision": 0.0, "recall": None, "f1": 0.0}

    safe = metrics["safe"]
    assert safe["n"] == 2 and safe["accuracy"] == 0.5 and safe["majority"] == 1.0 and safe["majority_train"] == 0.0
    assert safe["spearman"] is None  # one level only
    assert metrics["intensity_accuracy"] == pytest.approx(4 / 6)
    # Most frequent: helpful 1 (a tie with 2, both twice), safe 2: right in rows 0 and 3 (both heads) and 4.
    assert metrics["intensity_majority"] == pytest.approx(4 / 6)
    # Rows 0, 1, 2 and 4 have one label. Highest of all: helpful, safe, helpful, safe; wanted helpful x3, safe.
    assert metrics["preference_accuracy"] == 0.75 and metrics["preference_majority"] == 0.75
    assert metrics["per_source"] == {}


def test_joint_normalises_inside_the_head_and_compares_heads_as_they_are():
    joint = np.array([[0.05, 0.15, 0.0, 0.5, 0.3], [0.1, 0.6, 0.1, 0.12, 0.08]])
    labels = np.array([[2, 0], [2, 0]])
    metrics = reward_metrics(joint, labels, SCHEMA, "joint")
    assert metrics["helpful"]["accuracy"] == 1.0 and metrics["intensity_accuracy"] == 1.0
    assert metrics["preference_accuracy"] == 0.5
    # Conditional probabilities of the top level: both 0.15/0.2 and 0.6/0.8 are 0.75.
    assert metrics["helpful"]["ece"] == pytest.approx(0.25)


def test_one_level_heads_with_joint():
    schema = PreferenceSchema(dimensions=(Dimension("helpful", 1, (1, 5)), Dimension("safe", 2, (0, 1))))
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
    metrics = reward_metrics(p, np.array([[1, 0], [0, 2], [1, 0]]), schema, "joint")
    assert metrics["helpful"]["accuracy"] == 1.0 and metrics["helpful"]["ece"] == 0.0
    assert metrics["helpful"]["spearman"] is None
    assert metrics["preference_accuracy"] == pytest.approx(2 / 3) and metrics["intensity_accuracy"] == 1.0
    assert metrics["preference_majority"] == pytest.approx(2 / 3) and metrics["intensity_majority"] == 1.0


def test_majority_beside_the_accuracies_of_table1():
    """Levels that occur most, head by head, and the dimension that labels most of the six rows with one label."""
    labels = np.array([[1, 0], [1, 0], [3, 0], [0, 2], [0, 2], [0, 1], [3, 2]])
    metrics = reward_metrics(np.full((7, 5), 0.2), labels, SCHEMA, "joint")
    # with the last row helpful is 1, 1, 3, 3 (a tie, so 1: 2 of 4) and safe 2, 2, 1, 2 (3 of 4)
    assert metrics["intensity_majority"] == pytest.approx(5 / 8) and metrics["preference_majority"] == 0.5
    assert most_frequent_levels(labels, SCHEMA) == {"helpful": 1, "safe": 2}
    assert most_frequent_levels(labels[:3], SCHEMA) == {"helpful": 1}


def test_undefined_numbers_are_null_and_dump_strictly():
    nothing = reward_metrics(PER_HEAD, np.zeros((5, 2), dtype=int), SCHEMA, "per_head", majority_classes={"safe": 1})
    for name in SCHEMA.names:
        for key in ("accuracy", "majority", "majority_train", "macro_f1", "spearman", "ece"):
            assert nothing[name][key] is None
        assert nothing[name]["n"] == 0
    assert all(nothing[key] is None for key in TABLE1_KEYS)
    no_rows = reward_metrics(np.zeros((0, 5)), np.zeros((0, 2), dtype=int), SCHEMA, "joint", sources=[])
    assert no_rows["helpful"]["n"] == 0 and no_rows["per_source"] == {}
    both = reward_metrics(PER_HEAD[:1], np.array([[1, 1]]), SCHEMA, "per_head", sources=["a"])
    assert both["preference_accuracy"] is None and both["per_source"]["a"]["preference_accuracy"] is None
    for result in (nothing, no_rows, both):
        assert json.loads(json.dumps(result, allow_nan=False)) == result


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), loss=st.sampled_from(["per_head", "joint"]))
def test_numbers_equal_loops_and_libraries(seed, loss):
    from scipy.stats import spearmanr
    from sklearn.metrics import f1_score

    probabilities, labels, rng = random_case(seed)
    if loss == "joint":
        probabilities = rng.dirichlet(np.ones(12), len(labels))
    metrics = reward_metrics(probabilities, labels, DATATYPE4, loss)
    exact = pairs = chosen = single = 0
    for row in range(len(labels)):
        named = [head for head in range(3) if labels[row, head]]
        for head in named:
            block = probabilities[row, 5 * head : 5 * head + (5, 5, 2)[head]]
            pairs += 1
            exact += int(np.argmax(block)) + 1 == labels[row, head]
        if len(named) == 1:
            single += 1
            chosen += min(int(np.argmax(probabilities[row])) // 5, 2) == named[0]
    assert metrics["intensity_accuracy"] == pytest.approx(exact / pairs)
    assert metrics["preference_accuracy"] == (pytest.approx(chosen / single) if single else None)
    for head, name in enumerate(DATATYPE4.names):
        rows = labels[:, head] > 0
        block, truth = probabilities[rows][:, DATATYPE4.slices[name]], labels[rows, head]
        block = block / block.sum(1, keepdims=True)
        predicted = block.argmax(1) + 1
        assert metrics[name]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        assert metrics[name]["accuracy"] == pytest.approx(np.mean(predicted == truth))
        assert metrics[name]["majority"] == pytest.approx(max(np.mean(truth == level) for level in truth))
        expected = [sum((j + 1) * p for j, p in enumerate(line)) for line in block]
        assert metrics[name]["spearman"] == pytest.approx(spearmanr(expected, truth).statistic, abs=1e-9)


def test_per_source_holds_the_numbers_of_its_rows_alone():
    probabilities, labels, rng = random_case(4, rows=60)
    sources = rng.choice(["ultra", "safety", "other"], 60).tolist()
    majority = {"helpfulness": 4, "honesty": 1, "harmless": 2}
    metrics = reward_metrics(probabilities, labels, DATATYPE4, "per_head", sources, majority)
    assert list(metrics["per_source"]) == ["other", "safety", "ultra"]
    for source, numbers in metrics["per_source"].items():
        rows = np.array(sources) == source
        alone = reward_metrics(probabilities[rows], labels[rows], DATATYPE4, "per_head", majority_classes=majority)
        for name in DATATYPE4.names:
            assert set(numbers[name]) == {"accuracy", "majority", "majority_train", "macro_f1", "spearman", "ece", "n"}
            assert numbers[name] == {key: alone[name][key] for key in numbers[name]}
        assert numbers["preference_accuracy"] == alone["preference_accuracy"]
        assert numbers["intensity_accuracy"] == alone["intensity_accuracy"]
    total = sum(numbers["honesty"]["n"] for numbers in metrics["per_source"].values())
    assert total == metrics["honesty"]["n"]


def test_reliability_bins_by_hand():
    bins = reliability_bins(np.array([0.0, 0.5, 0.51, 1.0]), np.array([False, True, True, False]), bins=2)
    assert bins["count"] == [2, 2]
    assert bins["confidence"] == [pytest.approx(0.25), pytest.approx(0.755)]
    assert bins["accuracy"] == [0.5, 0.5]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.25 + 2 * 0.255) / 4)
    empty = reliability_bins(np.zeros(0), np.zeros(0, dtype=bool), bins=3)
    assert empty == {"count": [0, 0, 0], "confidence": [None] * 3, "accuracy": [None] * 3}
    assert expected_calibration_error(empty) is None


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_equals_a_loop(bins):
    rng = np.random.default_rng(bins)
    confidence, correct = rng.random(200), rng.random(200) < 0.4
    expected = 0.0
    for b in range(bins):
        inside = [i for i in range(200) if b / bins < confidence[i] <= (b + 1) / bins]
        if inside:
            expected += len(inside) / 200 * abs(np.mean(correct[inside]) - np.mean(confidence[inside]))
    assert expected_calibration_error(reliability_bins(confidence, correct, bins)) == pytest.approx(expected)


def test_confusion_and_macro_f1_of_a_stack():
    confusion = confusion_matrix(np.array([1, 1, 2]), np.array([1, 2, 2]), 2)
    assert confusion.tolist() == [[1, 1], [0, 1]]
    both = macro_f1(np.stack([confusion, np.zeros((2, 2), dtype=int)]))
    assert both[0] == pytest.approx(2 / 3) and np.isnan(both[1])


def test_spearman_is_none_where_undefined():
    assert spearman(np.array([0.1]), np.array([1])) is None
    assert spearman(np.array([0.1, 0.1]), np.array([1, 2])) is None
    assert spearman(np.array([0.1, 0.2]), np.array([2, 2])) is None
    assert spearman(np.array([0.1, 0.2]), np.array([1, 2])) == pytest.approx(1.0)


def test_hard_labels_take_the_top_of_a_distribution():
    rows = [{"helpful": [0.1, 0.6, 0.3], "safe": 2}, {}, {"safe": [0.5, 0.5]}, {"helpful": None, "safe": np.int64(1)}]
    assert hard_labels(rows, SCHEMA).tolist() == [[2, 2], [0, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"kind": 1}, "row 1: unknown dimension 'kind'"),
        ({"safe": 3}, "row 1, safe: expected a level from 1 to 2, got 3"),
        ({"safe": 1.5}, "expected a level"),
        ({"safe": "1"}, "expected a level"),
        ({"safe": True}, "expected a level"),
        ({"helpful": [0.5, 0.5]}, "3 finite shares"),
        ({"safe": [float("nan"), 1.0]}, "2 finite shares"),
    ],
)
def test_hard_labels_refuse(label, message):
    with pytest.raises(ValueError, match=message):
        hard_labels([{}, label], SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": PER_HEAD[:, :4]}, r"probabilities: expected shape \[B, 5\]"),
        ({"probabilities": PER_HEAD / 2}, "loss=per_head expected a sum of 1 over helpful, got 0.5 in row 0"),
        ({"loss": "joint"}, "loss=joint expected a sum of 1 over all classes, got 2 in row 0"),
        ({"probabilities": np.where(PER_HEAD == 0.9, np.nan, PER_HEAD)}, "finite numbers of at least 0.* in row 1"),
        ({"labels": np.array([[4, 0]] * 5)}, "helpful levels 0 .unlabelled. to 3, got 4 in row 0"),
        ({"labels": LABELS.astype(float)}, "labels: expected integers"),
        ({"labels": LABELS[:3]}, "labels: expected integers of shape"),
        ({"sources": ["a"]}, "sources: expected 5 entries"),
        ({"majority_classes": {"helpful": 4}}, "majority_classes: helpful: 4"),
        ({"majority_classes": {"kind": 1}}, "majority_classes: kind"),
        ({"loss": "hinge"}, "loss: expected per_head, joint or aligned"),
    ],
)
def test_refuses(change, message):
    arguments = {"probabilities": PER_HEAD, "labels": LABELS, "schema": SCHEMA, "loss": "per_head"}
    with pytest.raises(ValueError, match=message):
        reward_metrics(**{**arguments, **change})


def test_a_dimension_may_not_take_the_name_of_a_key():
    schema = PreferenceSchema(dimensions=(Dimension("per_source", 2, (0, 1)),))
    with pytest.raises(ValueError, match="'per_source' is a key of the metrics"):
        reward_metrics(np.array([[0.5, 0.5]]), np.array([[1]]), schema, "joint")


def test_every_number_is_plain_python():
    probabilities, labels, _ = random_case(9)
    metrics = reward_metrics(probabilities.astype(np.float32), labels, DATATYPE4, "per_head", ["s"] * len(labels))
    assert {type(number) for number in strip_numbers(metrics)} <= {int, float, type(None)}
