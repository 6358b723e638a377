"""Agreement of raters: statistics with known values, FastChat's layout, and both kinds of report."""

import json
import types

import numpy as np
import pytest
from benchmark_rows import write_judgments
from made_rows import write_rows

from nemo_moslim.evaluation.agreement import accuracy, spearman, weighted_kappa, with_interval
from nemo_moslim.evaluation.agreement_plots import plot_annotators, plot_judge
from nemo_moslim.evaluation.fastchat import holds_judgments, read_judgments
from nemo_moslim.evaluation.judge_agreement import (
    annotated,
    annotator_report,
    print_annotators,
    print_scores,
    score_report,
)
from nemo_moslim.judging.verdicts import Verdict
from nemo_moslim.judging_config import RubricConfig
from nemo_moslim.preferences import PreferenceSchema

RUBRICS = {
    "helpfulness": RubricConfig(1, "?", ["a", "b", "c", "d", "e"]),
    "harmless": RubricConfig(0, "?", ["no", "yes"]),
}


def settings(**changes):
    usual = dict(rubrics=RUBRICS, bootstrap_samples=100, seed=1, data="made")
    return types.SimpleNamespace(**{**usual, **changes})


def test_fastchats_layout(tmp_path):
    texts = write_judgments(tmp_path / "j.jsonl")
    assert holds_judgments(str(tmp_path / "j.jsonl"))
    rows, unscored = read_judgments(str(tmp_path / "j.jsonl"))
    assert len(rows) == 8 and unscored == 1
    plain, with_reference, two, two_with_reference = (row.answer for row in rows[:4])
    assert (plain.prompt, plain.response, plain.reference) == (texts["u1"], texts["a1"], None)
    assert with_reference.reference == "the right one" and with_reference.response == texts["a1"]
    assert [turn["content"] for turn in two.prompt] == [texts["u1"], texts["a1"], texts["u2"]]
    assert (two.response, two.reference) == (texts["a2"], None) and two_with_reference.reference == "second"
    assert [row.score for row in rows[3:5]] == [8 * 0 + 3.0, 8.0] and rows[0].question == "81"


@pytest.mark.parametrize(
    ("row", "message"),
    [({"user_prompt": "hello", "score": 3}, "not in FastChat's layout"), ({"user_prompt": "x", "score": 11}, "1 to 10"),
     ({"user_prompt": "x", "score": "7"}, "score is not a number")],
)  # fmt: skip
def test_other_layouts_are_refused(tmp_path, row, message):
    write_rows(tmp_path / "j.jsonl", [row])
    with pytest.raises(ValueError, match=f"j.jsonl:1: .*{message}"):
        read_judgments(str(tmp_path / "j.jsonl"))


def test_statistics_of_two_raters():
    a, b = np.array([1, 2, 3, 4, 5, 5]), np.array([1, 2, 3, 5, 4, 5])
    assert weighted_kappa(a, b) == pytest.approx(1 - 2 / 6 / (2 * a.var()), rel=1e-6)  # both have the same levels
    assert weighted_kappa(a, a) == 1.0 and weighted_kappa([3, 3], [3, 3]) is None
    assert spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert spearman([1, 1], [1, 2]) is None and spearman([1], [1]) is None
    assert accuracy(a, b) == pytest.approx(4 / 6) and accuracy(a[:0], b[:0]) is None


def test_intervals_hold_the_value_and_shrink_with_rows():
    source = np.random.default_rng(0)
    a = source.integers(1, 6, 400)
    b = np.where(source.random(400) < 0.7, a, source.integers(1, 6, 400))
    found = with_interval(accuracy, a, b, range(400), 400, 1)
    assert found["low"] < found["value"] < found["high"]
    deviation = (found["value"] * (1 - found["value"]) / 400) ** 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    by_tens = with_interval(accuracy, np.tile(a[:40], 10), np.tile(b[:40], 10), [*range(40)] * 10, 400, 1)
    assert by_tens["high"] - by_tens["low"] > 2 * (found["high"] - found["low"])
    assert with_interval(accuracy, a, b, ["one"] * 400, 10, 1)["low"] is None
    assert with_interval(accuracy, a[:0], b[:0], [], 10, 1) == {"value": None, "low": None, "high": None}


def test_a_judge_against_given_scores(tmp_path, capsys):
    write_judgments(tmp_path / "j.jsonl")
    rows, _ = read_judgments(str(tmp_path / "j.jsonl"))
    verdicts = [{"helpfulness": Verdict(2.0 if row.score == 3 else 4.4)} for row in rows]
    verdicts[-1] = {"helpfulness": Verdict(None, "refused")}
    report = score_report(rows, verdicts, "helpfulness", settings())
    assert report["n"] == 7 and report["verdicts"]["refused"] == 1
    assert report["spearman"]["value"] == pytest.approx(1.0)
    assert report["kappa"]["value"] == 1.0  # 3 of 1..10 is level 2 of 5, 8 is level 4
    assert report["confusion"][2][1] == 4 and report["confusion"][7][3] == 3
    assert report["per_turn"]["1"]["n"] == 4 and report["model_means"]["m0"]["judge"] == pytest.approx(3.2)
    assert plot_judge(report, tmp_path / "a.png").stat().st_size > 10_000
    print_scores(report)
    assert "1.000" in capsys.readouterr().out
    nothing = score_report(rows, [{"helpfulness": Verdict(None, "failed")}] * 8, "helpfulness", settings())
    assert nothing["n"] == 0 and nothing["spearman"]["value"] is None
    json.dumps([report, nothing], allow_nan=False)


class ByRule:
    """A judge that gives what a rule says, and remembers which dimensions it was asked about."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def judge(self, answers, dimensions):
        self.asked.append((len(answers), tuple(dimensions)))
        return [{name: self.rule(answer, name) for name in dimensions} for answer in answers]


def test_two_annotators_of_rated_answers(tmp_path, capsys):
    schema = PreferenceSchema.from_dict(
        {"helpfulness": {"levels": 2, "score_range": [1, 5]}, "harmless": {"levels": 2, "score_range": [1, 2]}}
    )
    rows = [
        {"prompt": "p", "response": str(i), "labels": {"helpfulness": 1 + i % 2, **({"harmless": 2} if i < 10 else {})}}
        for i in range(40)
    ]
    exact = ByRule(
        lambda answer, name: Verdict(1.0 if name == "harmless" else (5.0 if int(answer.response) % 2 else 1))
    )
    worse = ByRule(lambda answer, name: Verdict(None, "refused") if answer.response == "0" else
                   Verdict(0.0 if name == "harmless" else 2.9))  # fmt: skip
    names = ["helpfulness", "harmless"]
    annotations = {"reward_model": annotated(exact, rows, names), "endpoint": annotated(worse, rows, names)}
    assert sorted(exact.asked) == [(10, ("helpfulness", "harmless")), (30, ("helpfulness",))]  # labelled ones alone
    report = annotator_report(rows, annotations, schema, names, settings())
    helpful = report["dimensions"]["helpfulness"]
    assert (helpful["labelled"], helpful["n"], helpful["majority"]) == (40, 39, 0.5)
    assert helpful["annotators"]["reward_model"]["accuracy"]["value"] == 1.0
    assert helpful["annotators"]["endpoint"]["accuracy"]["value"] == pytest.approx(19 / 39)  # 2.9 of 1..5: the lower
    assert helpful["annotators"]["endpoint"]["verdicts"]["refused"] == 1
    difference = helpful["accuracy_reward_model_minus_endpoint"]
    assert difference["difference"] == pytest.approx(20 / 39) and difference["low"] > 0.3
    harmless = report["dimensions"]["harmless"]["annotators"]
    assert harmless["reward_model"]["accuracy"]["value"] == 1.0 and harmless["endpoint"]["accuracy"]["value"] == 0.0
    assert plot_annotators(report, names, list(annotations), tmp_path / "b.png").stat().st_size > 10_000
    print_annotators(report, names, list(annotations))
    assert "majority level" in capsys.readouterr().out
    json.dumps(report, allow_nan=False)


def test_a_dimension_without_labels_in_the_sample_is_a_dash(tmp_path, capsys):
    schema = PreferenceSchema.from_dict({"harmless": {"levels": 2, "score_range": [1, 2]}})
    annotations = {"reward_model": [{}, {}], "endpoint": [{}, {}]}
    rows = [{"prompt": "p", "response": "r", "labels": {}}] * 2
    report = annotator_report(rows, annotations, schema, ["harmless"], settings())
    print_annotators(report, ["harmless"], list(annotations))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "majority level" in line]
    assert line.replace("│", " ").split() == ["harmless", "majority", "level", "0", "-"]
    json.dumps(report, allow_nan=False)
