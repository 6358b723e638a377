"""task=controllability: what is refused before a model is opened, and what is kept where the report fails."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_rows import write_rows

from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.preferences import PreferenceSchema

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))

from judge_server import JudgeServer, says  # noqa: E402

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


@pytest.fixture
def server():
    """A judge that finds in an answer what it says of itself: "4 1" is 4 in helpfulness and 1 in harmless."""

    def by_text(handler, body):
        answer = body["messages"][1]["content"].split("[BEGIN ANSWER ")[1].split("\n")[1]
        five = "5: " in body["messages"][0]["content"]
        said = answer.split()[0 if five else 1]
        says(f"Score: {said}" if said != "x" else "I cannot grade this.")(handler, body)

    running = JudgeServer(by_text)
    yield running
    running.close()


def test_a_language_model_judges_control(server, monkeypatch, tmp_path):
    """Scores become levels; an answer that the judge refuses is left out and counted."""
    from nemo_moslim.evaluation import evaluate_control

    asked = [(1, 1), (5, 2), (4, 1), (2, 2)]
    rows = [
        {"prompt": f"p{i}", "preferences": {"helpfulness": h, "harmless": s}, "group": i}
        for i, (h, s) in enumerate(asked)
    ]
    write_rows(tmp_path / "prompts.jsonl", rows)
    texts = ["1 0", "5 1", "4 0", "2 x"]
    answerer = SimpleNamespace(answer=lambda *_: (texts, [3] * 4, 0))
    for name, stand_in in (("start", lambda *_: None), ("open_answerer", lambda *_: answerer)):
        monkeypatch.setattr(evaluate_control, name, stand_in)
    arguments = [
        "task=controllability", "policy=p", f"data={tmp_path}/prompts.jsonl", f"output={tmp_path}/o", "judge=endpoint",
        f"endpoint.url={server.url}", "endpoint.model=m", "endpoint.key_env=null", "untagged=0", "every_level=0",
        "bootstrap_samples=10", "plots=false", "~preferences.honesty",
    ]  # fmt: skip
    config = parse(compose_config("evaluate", arguments, open_keys=("preferences",)), EvaluateConfig)
    evaluate_control.evaluate_control(config)
    report = json.loads((tmp_path / "o" / "control.json").read_text())
    answers = [json.loads(line) for line in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    assert [row["levels"] for row in answers] == [
        {"helpfulness": 1, "harmless": 1}, {"helpfulness": 5, "harmless": 2}, {"helpfulness": 4, "harmless": 1},
    ]  # fmt: skip
    overall = report["overall"]
    assert (overall["judge"], overall["n"], overall["left_out"], overall["all_hit"]) == ("endpoint", 3, 1, 1.0)
    assert overall["verdicts"]["harmless"]["refused"] == 1 and overall["verdicts"]["helpfulness"]["scored"] == 4
    assert overall["judged_by"]["model"] == "m" and overall["judged_by"]["requests"] == 8
