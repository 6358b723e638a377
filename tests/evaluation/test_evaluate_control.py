"""task=controllability: what is refused before a model is opened, and what is kept where the report fails."""

import json
from types import SimpleNamespace

import pytest

from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = {"overall": {"levels": 2, "score_range": [0, 1]}}


@pytest.mark.parametrize("task", ["controllability", "benchmarks", "judge_agreement", "text_baseline"])
def test_an_interval_needs_samples(task):
    with pytest.raises(ValueError, match="bootstrap_samples=0: expected a number above 0"):
        parse(compose_config("evaluate", [f"task={task}", "bootstrap_samples=0"]), EvaluateConfig)


def test_a_key_of_the_report_is_refused_as_a_name_before_the_start(monkeypatch):
    from nemo_moslim.evaluation import evaluate_control

    monkeypatch.setattr(evaluate_control, "start", lambda *_: pytest.fail("started"))
    config = SimpleNamespace(policy="p", data="d", output="o", reward=None, preferences=SCHEMA)
    with pytest.raises(ValueError, match="'overall' is a key of the control report"):
        evaluate_control.evaluate_control(config)


def test_answers_are_kept_where_the_report_fails(tmp_path):
    from nemo_moslim.evaluation.evaluate_control import write_control

    rows = [{"prompt": "p", "preferences": {}, "response": "r", "levels": {"overall": 1}, "length": 1}]
    config = SimpleNamespace(output=str(tmp_path / "o"), bootstrap_samples=10, seed=1)
    with pytest.raises(ValueError, match="'overall'"):
        write_control(rows, [], PreferenceSchema.from_dict(SCHEMA), {"judge": "world"}, config)
    assert json.loads((tmp_path / "o" / "answers.jsonl").read_text()) == rows[0]
