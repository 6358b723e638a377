"""A reward model's probabilities as scores, its HTTP service, the world's graders and a table of scores."""

import json
from functools import partial

import pytest
from judge_server import JudgeServer, cut_off, fails
from judge_settings import RUBRICS, endpoint
from made_rows import write_rows

from nemo_moslim.data.world import sample_rating_rows
from nemo_moslim.judging.exact_judges import ScriptedJudge, WorldJudge
from nemo_moslim.judging.reward_judges import ServiceRewardJudge, score_of
from nemo_moslim.judging.verdicts import Answer, Verdict, check_scored
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = {"helpfulness": 5, "honesty": 5, "harmless": 2}


@pytest.mark.parametrize(
    ("p", "dimension", "reading", "score"),
    [
        ([0.1, 0.2, 0.4, 0.2, 0.1], "helpfulness", "expected", 3.0),
        ([0.0, 0.0, 0.0, 0.5, 0.5], "helpfulness", "expected", 4.5),
        ([0.0, 0.0, 0.0, 0.1, 0.1], "helpfulness", "expected", 4.5),  # a joint softmax gives the head a part only
        ([0.4, 0.0, 0.0, 0.3, 0.3], "helpfulness", "most_likely", 1.0),
        ([0.25, 0.75], "helpfulness", "expected", 4.0),  # two levels on the scale from 1 to 5
        ([0.25, 0.75], "harmless", "expected", 0.75),
        ([0.25, 0.75], "harmless", "most_likely", 1.0),
    ],
)
def test_probabilities_as_a_score(p, dimension, reading, score):
    assert score_of(p, RUBRICS[dimension], reading) == pytest.approx(score)


@pytest.mark.parametrize("p", [[1.0], [0.0, 0.0], []])
def test_probabilities_that_say_nothing(p):
    with pytest.raises(ValueError, match="two levels or more"):
        score_of(p, RUBRICS["harmless"], "expected")


def by_length(handler, body, model="m-1"):
    """A reward model that finds long answers harmless."""
    items = []
    for item in body["items"]:
        share = min(1.0, len(item["response"]) / 100)
        heads = {"harmless": [1 - share, share], "helpfulness": [1, 0, 0, 0, 0]}
        items.append({"probabilities": heads, "reward": None, "cut": len(item["response"]) > 70})
    handler.send(json.dumps({"items": items, "model": model}))


@pytest.fixture
def service():
    running = JudgeServer(by_length)
    yield running
    running.close()


def made(service, batch_size=4, **changes):
    return ServiceRewardJudge(service.url, RUBRICS, "expected", endpoint(service.url, **changes), batch_size)


def test_answers_are_scored_in_batches(service):
    answers = [Answer(f"p{i}", "x" * (10 * i)) for i in range(10)]
    judge = made(service, concurrency=3)
    found = judge.judge(answers, ["harmless", "helpfulness"])
    assert [v["harmless"].score for v in found] == pytest.approx([i / 10 for i in range(10)])
    assert {v["helpfulness"].score for v in found} == {1.0}
    assert sorted(len(body["items"]) for body in service.requests) == [2, 4, 4]
    assert {"prompt": "p0", "response": ""} in [body["items"][0] for body in service.requests]  # in any order
    assert service.keys[0] is None
    report = judge.report()
    assert (report["requests"], report["cut"], report["model"]) == (3, 2, "m-1")


def test_a_service_that_changes_its_model_is_refused(service):
    judge, answer = made(service), [Answer("p", "x" * 50)]
    assert judge.report()["model"] is None
    for _ in range(2):
        judge.judge(answer, ["harmless"])
    service.usual = partial(by_length, model="m-2")
    message = rf"reward={service.url}: it serves another model \(m-2\) than at first \(m-1\): serve one of them"
    with pytest.raises(ValueError, match=message):
        judge.judge(answer, ["harmless"])
    assert judge.report()["model"] == "m-1" and len(service.requests) == 3
    assert made(service).judge(answer, ["harmless"])[0]["harmless"].score == 0.5  # a run that begins with it


def test_a_service_that_is_busy_or_broken(service):
    service.script = [fails(429, Retry_After="0.05"), cut_off, lambda h, b: h.send('{"items": []}')]
    judge = made(service)
    assert judge.judge([Answer("p", "x" * 50)], ["harmless"])[0]["harmless"].score == 0.5
    assert judge.report()["sent_again"] == {"HTTP 429": 1, "broken reply": 1, "unreadable reply": 1}


def test_a_service_that_fails_or_lacks_a_head(service, monkeypatch):
    with pytest.raises(ValueError, match="no head honesty"):
        made(service).judge([Answer("p", "r")], ["honesty"])
    service.usual = fails(500)
    answers = [Answer("p", "r")] * 10
    found = made(service, attempts=1, max_failed=10).judge(answers, ["harmless"])
    assert {v["harmless"].status for v in found} == {"failed"}
    judge = made(service, attempts=1, max_failed=15)
    judge.judge(answers, ["harmless"])
    with pytest.raises(ValueError, match=r"1[68] answers were not scored: HTTP 500, 1 attempts"):  # of both calls
        judge.judge(answers, ["harmless"])
    with pytest.raises(ValueError, match=r"no score at all \(10 failed\); the last verdict: HTTP 500, 1 attempts"):
        check_scored([v["harmless"] for v in found])
    check_scored([*(v["harmless"] for v in found), Verdict(1.0)])
    check_scored([])
    monkeypatch.setenv("MOSLIM_SERVICE_TOKEN", "tok-1\n")
    service.usual = fails(403, "token tok-1 may not")
    with pytest.raises(ValueError, match="MOSLIM_SERVICE_TOKEN.*token \\*\\*\\* may not"):
        made(service).judge(answers, ["harmless"])
    assert service.keys[-1] == "Bearer tok-1"
    monkeypatch.setenv("MOSLIM_SERVICE_TOKEN", "")
    with pytest.raises(ValueError, match="MOSLIM_SERVICE_TOKEN is set and empty"):
        made(service)


def test_the_world_judges_its_own():
    schema = PreferenceSchema.from_dict(
        {name: {"levels": k, "score_range": [1, k]} for name, k in SCHEMA.items()}
    )  # fmt: skip
    rows = list(sample_rating_rows(50, "test", 1, schema))
    found = WorldJudge(RUBRICS).judge([Answer(row["prompt"], row["response"]) for row in rows], list(SCHEMA))
    for row, verdicts in zip(rows, found, strict=True):
        assert verdicts["helpfulness"].score == row["labels"]["helpfulness"]
        assert verdicts["harmless"].score == row["labels"]["harmless"] - 1
    with pytest.raises(ValueError, match="is no prompt of the world"):
        WorldJudge(RUBRICS).judge([Answer("What is law?", "A rule.")], ["harmless"])
    with pytest.raises(ValueError, match="not 'brevity'"):
        WorldJudge(RUBRICS).judge([], ["brevity"])


def test_scores_that_people_wrote_down(tmp_path):
    file = tmp_path / "people.jsonl"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"prompt": "p", "response": "r", "helpfulness": 4, "harmless": None},
            {"prompt": chat, "response": "r", "helpfulness": 2.5}]  # fmt: skip
    write_rows(file, rows)
    answers = [Answer(chat, "r"), Answer("p", "r"), Answer("p", "another")]
    found = ScriptedJudge(str(file), RUBRICS).judge(answers, ["helpfulness", "harmless"])
    assert [v["helpfulness"].score for v in found] == [2.5, 4.0, None]
    assert [v["harmless"].status for v in found] == ["missing"] * 3
    for bad, message in (
        ({"prompt": "p", "response": "r", "helpfulness": 6}, "helpfulness=6 is not on its scale"),
        ({"prompt": "p", "response": "r", "helpfulness": "good"}, "helpfulness is not a number"),
        ({"prompt": "p"}, "expected prompt, response and scores"),
    ):
        write_rows(file, [*rows, bad])
        with pytest.raises(ValueError, match=f"people.jsonl:3: {message}"):
            ScriptedJudge(str(file), RUBRICS)
