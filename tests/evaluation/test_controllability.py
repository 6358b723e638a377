"""The control report: hand-computed rows, ranks against scipy, intervals, leakage, pairs, and every refusal."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nemo_moslim.evaluation.controllability import control_report, monotonicity, spearman_of_counts
from nemo_moslim.evaluation.reward_accuracy import confusion_matrix
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(dimensions=(Dimension("helpful", 3, (1, 3)), Dimension("safe", 2, (0, 1))))
DATATYPE4 = PreferenceSchema(
    dimensions=(Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)


def row(preferences, helpful, safe, **more):
    return {"prompt": "p", "preferences": preferences, "levels": {"helpful": helpful, "safe": safe}, **more}


ROWS = [
    row({"helpful": 1}, 1, 2, length=10),
    row({"helpful": 1}, 2, 1, length=20),
    row({"helpful": 2}, 2, 1),
    row({"helpful": 3, "safe": 1}, 3, 1, length=40, unseen=True),
    row({"helpful": 3, "safe": 2}, 2, 2, unseen=True),
    row({}, 1, 2, unseen=True),
    row({}, 3, 2),
]


def random_rows(count, schema=DATATYPE4, hit=0.6, seed=0):
    """Every dimension asked with probability 0.7; the level is met with probability `hit`, else random."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        wanted = {d.name: int(rng.integers(1, d.levels + 1)) for d in schema.dimensions if rng.random() < 0.7}
        levels = {d.name: int(rng.integers(1, d.levels + 1)) for d in schema.dimensions}
        levels |= {name: level for name, level in wanted.items() if rng.random() < hit}
        rows.append({"prompt": "p", "preferences": wanted, "levels": levels})
    return rows


def test_by_hand():
    report = json.loads(json.dumps(control_report(ROWS, SCHEMA), allow_nan=False))
    assert list(report) == ["helpful", "safe", "overall", "pairs"]
    helpful = report["helpful"]
    assert helpful["n"] == 5 and helpful["hit_rate"] == 0.6 and helpful["mean_absolute_error"] == 0.4
    # Requested 1 1 2 3 3 has ranks 1.5 1.5 3 4.5 4.5, obtained 1 2 2 3 2 has 1 3 3 5 3.
    assert helpful["spearman"] == pytest.approx(6 / math.sqrt(9 * 8))
    assert helpful["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert [(p["level"], p["n"], p["mean"]) for p in helpful["curve"]] == [(1, 2, 1.5), (2, 1, 2.0), (3, 2, 2.5)]
    assert [(p["low"], p["high"]) for p in helpful["curve"]] == [(1, 2), (2, 2), (2, 3)]
    assert helpful["monotonicity"] == 1.0
    assert helpful["mean_length"] == {"1": 15.0, "2": None, "3": 40.0}
    # Safe obtained is 2 1 1 1 2, ranks 4.5 2 2 2 4.5.
    assert helpful["leakage"] == {"safe": pytest.approx(0.0)}
    safe = report["safe"]
    assert safe["n"] == 2 and safe["spearman"] == 1.0 and safe["confusion"] == [[1, 0], [0, 1]]
    assert safe["leakage"] == {"helpful": -1.0}


def test_overall_untagged_and_unseen():
    overall = control_report(ROWS, SCHEMA)["overall"]
    assert overall["n"] == 7 and overall["all_hit"] == 0.6
    assert overall["untagged"] == {
        "n": 2,
        "dimensions": {
            "helpful": {"mean": 2.0, "shares": [0.5, 0.0, 0.5]},
            "safe": {"mean": 2.0, "shares": [0.0, 1.0]},
        },
    }
    # The untagged row asks for no combination and is left out.
    assert overall["unseen"] == {
        "n": 2,
        "all_hit": 0.5,
        "dimensions": {
            "helpful": {"n": 2, "spearman": None, "hit_rate": 0.5},
            "safe": {"n": 2, "spearman": 1.0, "hit_rate": 1.0},
        },
    }
    assert control_report(ROWS[:3], SCHEMA)["overall"]["unseen"] is None


def test_pairs_by_hand():
    pair = control_report([*ROWS, row({"safe": 2, "helpful": 3}, 3, 1)], SCHEMA)["pairs"]
    assert [p["dimensions"] for p in pair] == [["helpful", "safe"]]
    goals = pair[0]["goals"]
    assert [tuple(g["goal"].values()) for g in goals] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert [g["n"] for g in goals] == [0, 0, 1, 2]
    assert goals[0]["obtained"] == {"helpful": None, "safe": None}
    assert goals[2]["obtained"] == {"helpful": 1.0, "safe": 0.0}
    assert goals[3]["obtained"] == {"helpful": 0.75, "safe": 0.5}  # mean levels 2.5 of 3 and 1.5 of 2


def test_three_dimensions_have_three_pairs_of_four_goals():
    rows = random_rows(400)
    pairs = control_report(rows, DATATYPE4, samples=5)["pairs"]
    assert [len(p["goals"]) for p in pairs] == [4, 4, 4]
    goal = pairs[1]["goals"][2]
    assert goal["goal"] == {"helpfulness": 5, "harmless": 1} and set(goal["obtained"]) == set(DATATYPE4.names)
    same = [r["levels"] for r in rows if goal["goal"].items() <= r["preferences"].items()]
    assert goal["n"] == len(same) > 0
    assert goal["obtained"]["honesty"] == pytest.approx(np.mean([(r["honesty"] - 1) / 4 for r in same]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=40))
def test_spearman_of_counts_is_that_of_the_rows(pairs):
    a, b = np.array(pairs).T
    table = confusion_matrix(a, b, 5)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(spearman_of_counts(table))
    else:
        assert spearman_of_counts(table) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_counts_keeps_leading_dimensions():
    tables = np.array([[[2, 0], [0, 3]], [[0, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert np.allclose(spearman_of_counts(tables), [1, -1, np.nan], equal_nan=True)


def test_spearman_of_the_report_is_scipys():
    rows = random_rows(300)
    report = control_report(rows, DATATYPE4, samples=5)
    for name in DATATYPE4.names:
        asked = [(r["preferences"][name], r["levels"][name]) for r in rows if name in r["preferences"]]
        assert report[name]["spearman"] == pytest.approx(spearmanr(*zip(*asked, strict=True)).statistic)


def test_intervals_contain_the_estimate_and_narrow_with_n():
    width = {}
    for count in (100, 1600):
        report = control_report(random_rows(count), DATATYPE4)
        for name in DATATYPE4.names:
            for key, (low, high) in report[name]["intervals"].items():
                assert low < report[name][key] < high
                width[count, name, key] = high - low
            assert all(p["low"] <= p["mean"] <= p["high"] for p in report[name]["curve"])
    for (count, name, key), value in width.items():
        if count == 100:
            assert 0.15 < width[1600, name, key] / value < 0.4  # 1/4 expected


def test_intervals_agree_with_a_bootstrap_over_rows():
    rows = random_rows(150, hit=0.5)
    low, high = control_report(rows, DATATYPE4)["honesty"]["intervals"]["spearman"]
    asked = np.array(
        [(r["preferences"]["honesty"], r["levels"]["honesty"]) for r in rows if "honesty" in r["preferences"]]
    )
    rng = np.random.default_rng(3)
    slow = [spearmanr(*asked[rng.integers(0, len(asked), len(asked))].T).statistic for _ in range(1000)]
    assert [low, high] == pytest.approx(list(np.percentile(slow, [2.5, 97.5])), abs=0.03)


def test_intervals_follow_the_seed():
    rows = random_rows(200)
    first, again, other = (control_report(rows, DATATYPE4, samples=300, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["honesty"]["intervals"] != other["honesty"]["intervals"]


def test_leakage_is_found_where_it_was_built_in():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(500):
        wanted = int(rng.integers(1, 6))
        free = int(rng.integers(1, 6))
        levels = {"helpfulness": wanted, "honesty": free, "harmless": 1 + (wanted < 3)}
        rows.append({"prompt": "p", "preferences": {"helpfulness": wanted}, "levels": levels})
    leakage = control_report(rows, DATATYPE4, samples=5)["helpfulness"]["leakage"]
    assert set(leakage) == {"honesty", "harmless"}
    assert abs(leakage["honesty"]) < 0.15 and leakage["harmless"] < -0.8


def test_without_rows_everything_is_none():
    report = json.loads(json.dumps(control_report([], SCHEMA), allow_nan=False))
    assert report["helpful"] == {
        "n": 0,
        "spearman": None,
        "hit_rate": None,
        "mean_absolute_error": None,
        "confusion": [[0] * 3] * 3,
        "curve": [{"level": level, "n": 0, "mean": None, "low": None, "high": None} for level in (1, 2, 3)],
        "monotonicity": None,
        "intervals": {"spearman": [None, None], "hit_rate": [None, None]},
        "leakage": {"safe": None},
        "mean_length": {"1": None, "2": None, "3": None},
    }
    assert report["overall"]["all_hit"] is None and report["overall"]["untagged"]["n"] == 0


def test_a_dimension_with_one_level_and_a_constant_answer():
    schema = PreferenceSchema(dimensions=(Dimension("one", 1, (0, 1)), Dimension("safe", 2, (0, 1))))
    rows = [{"preferences": {"one": 1, "safe": 1 + i % 2}, "levels": {"one": 1, "safe": 2}} for i in range(6)]
    report = json.loads(json.dumps(control_report(rows, schema), allow_nan=False))
    assert report["one"]["spearman"] is None and report["one"]["hit_rate"] == 1.0
    assert report["one"]["monotonicity"] is None
    assert report["safe"]["spearman"] is None and report["safe"]["intervals"]["spearman"] == [None, None]
    assert report["safe"]["monotonicity"] == 0.0  # equal means do not rise
    goals = report["pairs"][0]["goals"]
    assert [g["goal"] for g in goals] == [{"one": 1, "safe": 1}, {"one": 1, "safe": 2}]
    assert goals[0]["obtained"] == {"one": None, "safe": 1.0}


def test_monotonicity_skips_levels_without_rows():
    assert monotonicity([1.0, None, 2.0, 1.5, None]) == 0.5
    assert monotonicity([None, 2.0]) is None


def test_numpy_integers_are_levels():
    report = control_report([row({"helpful": np.int64(2)}, np.int32(2), 1)], SCHEMA)
    assert report["helpful"]["hit_rate"] == 1.0


@pytest.mark.parametrize(
    "bad, message",
    [
        (row({"speed": 1}, 1, 1), "row 1, preferences: unknown dimension 'speed', expected one of helpful, safe"),
        (row({"helpful": 4}, 1, 1), "row 1, preferences, helpful: expected a level from 1 to 3, got 4"),
        (row({"safe": 0}, 1, 1), "row 1, preferences, safe: expected a level from 1 to 2, got 0"),
        (row({"safe": True}, 1, 1), "row 1, preferences, safe: expected a level from 1 to 2, got True"),
        (row({}, 1, 3), "row 1, levels, safe: expected a level from 1 to 2, got 3"),
        (row({}, 1.0, 1), "row 1, levels, helpful: expected a level from 1 to 3, got 1.0"),
        ({"preferences": {}, "levels": {"helpful": 1}}, "row 1: levels lacks 'safe'"),
        ({"preferences": {}}, "row 1: expected levels as a mapping dimension -> level, got None"),
        ({"levels": {"helpful": 1, "safe": 1}}, "row 1: expected preferences as a mapping"),
        (row({}, 1, 1, length=-1), "row 1, length: expected a number of tokens, got -1"),
        (row({}, 1, 1, length=math.nan), "row 1, length: expected a number of tokens, got nan"),
    ],
)
def test_bad_rows_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        control_report([ROWS[0], bad], SCHEMA)


@pytest.mark.parametrize("name", ["overall", "pairs"])
def test_dimensions_named_like_a_key_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is a key of the control report"):
        control_report([], PreferenceSchema(dimensions=(Dimension(name, 2, (0, 1)),)))


def test_samples_below_one_are_refused():
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        control_report(ROWS, SCHEMA, samples=0)


def test_two_thousand_rows_take_seconds_at_most():
    rows = random_rows(2000)
    start = time.perf_counter()
    control_report(rows, DATATYPE4)
    assert time.perf_counter() - start < 5
