"""The judge behind HTTP against a real local server, which fails in every way that servers do."""

import logging
import sqlite3

import pytest
from judge_server import JudgeServer, cut_off, dropped, fails, says, silent, trickling
from judge_settings import RUBRICS, endpoint

from nemo_moslim.judging.endpoint_judge import EndpointJudge
from nemo_moslim.judging.reply_cache import ReplyCache
from nemo_moslim.judging.verdicts import Answer

KEY = "sk-test-NEVER-SHOWN-7391"
FOUR = '{"reason": "good", "score": 4}'


@pytest.fixture
def server():
    running = JudgeServer(says(FOUR))
    yield running
    running.close()


@pytest.fixture
def judge_of(server, tmp_path):
    """A judge on the server; all of a test share the cache."""
    caches = []

    def made(**changes) -> EndpointJudge:
        caches.append(ReplyCache(tmp_path / "cache.sqlite"))
        return EndpointJudge(endpoint(server.url + "/v1", **changes), RUBRICS, caches[-1])

    yield made
    for cache in caches:
        cache.close()


def answers(count: int) -> list[Answer]:
    return [Answer(f"question {i}", f"answer {i}") for i in range(count)]


def scores(judge, count, *dimensions):
    names = dimensions or ("helpfulness",)
    return [[found[name].score for name in names] for found in judge.judge(answers(count), names)]


def test_a_second_run_costs_nothing(server, judge_of):
    judge = judge_of(input_price=2.0, output_price=10.0)
    assert scores(judge, 3, "helpfulness", "honesty") == [[4.0, 4.0]] * 3
    report = judge.report()
    assert report["requests"] == 6 and report["tokens"] == {"input": 600, "output": 60}
    assert report["cost"] == pytest.approx(600 * 2e-6 + 60 * 10e-6)
    assert server.requests[0]["model"] == "judge-1" and server.requests[0]["temperature"] == 0
    assert server.requests[0]["response_format"]["type"] == "json_schema"
    again = judge_of(input_price=2.0, output_price=10.0)
    assert scores(again, 4, "helpfulness", "honesty") == [[4.0, 4.0]] * 4
    assert len(server.requests) == 8  # the fourth answer's alone
    report = again.report()
    assert (report["requests"], report["from_cache"]) == (2, 6)
    assert report["cost"] == pytest.approx(200 * 2e-6 + 20 * 10e-6)
    assert report["cost_with_cache"] == pytest.approx(800 * 2e-6 + 80 * 10e-6)
    assert scores(judge_of(model="judge-2"), 1) == [[4.0]] and len(server.requests) == 9  # another judge, asked anew


def test_the_same_answer_twice_is_asked_once(server, judge_of):
    same = [Answer("p", "r")] * 5
    assert [v["helpfulness"].score for v in judge_of(concurrency=4).judge(same, ["helpfulness"])] == [4.0] * 5
    assert len(server.requests) == 1


def test_what_can_pass_is_tried_again(server, judge_of):
    server.script = [
        fails(429, Retry_After="0.05"), fails(500), fails(503, Retry_After="nonsense"), cut_off, dropped,
        lambda h, b: h.send("{not json"), lambda h, b: h.send('{"choices": [{"message": null}]}'),
        lambda h, b: h.send("<html>busy"),
    ]  # fmt: skip
    judge = judge_of(attempts=9)
    assert scores(judge, 1) == [[4.0]]
    assert len(server.requests) == 9 and server.requests[0] == server.requests[-1]
    assert judge.report()["sent_again"] == {
        "HTTP 429": 1, "HTTP 500": 1, "HTTP 503": 1, "broken reply": 2, "unreadable reply": 3,
    }  # fmt: skip
    assert judge.report()["requests"] == 9 and judge.report()["tokens"]["input"] == 100


def test_retry_after_holds_up_every_request(server, judge_of):
    server.script = [fails(429, Retry_After="0.6")]
    judge = judge_of(concurrency=1)
    assert scores(judge, 3) == [[4.0]] * 3
    assert server.times[1] - server.times[0] >= 0.55 and len(server.times) == 4


def test_retry_after_is_bounded(server, judge_of):
    server.script = [fails(429, Retry_After="86400"), fails(429, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT")]
    assert scores(judge_of(longest_wait=0.2), 1) == [[4.0]]
    assert server.times[2] - server.times[0] < 60


@pytest.mark.parametrize("slow", [silent, trickling])
def test_a_server_that_is_too_slow(server, judge_of, slow):
    """Also one that sends a byte now and then, so that no single read times out."""
    server.script = [slow(6.0)]
    judge = judge_of(timeout=3.0)
    assert scores(judge, 1) == [[4.0]]
    assert judge.report()["sent_again"]["timeout"] >= 1


def test_nobody_listens(server, judge_of):
    judge, started = judge_of(attempts=2), judge_of(attempts=2, model="judge-2")
    started.judge(answers(1), ["helpfulness"])
    server.close()
    with pytest.raises(ValueError, match=r"chat/completions: no connection \(.+\): check the address"):
        judge.judge(answers(1), ["helpfulness"])
    (found,) = started.judge([Answer("p", "another")], ["helpfulness"])  # it was there: it may come back
    assert found["helpfulness"].status == "failed" and "no connection, 2 attempts: " in found["helpfulness"].reason


def test_a_wrong_key_stops_at_once_and_is_not_shown(server, judge_of, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def unauthorized(handler, body):
        handler.send(f"Incorrect API key provided: {handler.headers['Authorization']}", 401)

    server.usual = unauthorized
    with pytest.raises(
        ValueError, match="HTTP 401.*endpoint.key_env.*Incorrect API key provided: Bearer \\*\\*\\*"
    ) as e:
        judge_of(key_env="JUDGE_KEY", concurrency=2).judge(answers(50), ["helpfulness"])
    assert server.keys[0] == f"Bearer {KEY}" and KEY not in str(e.value)
    assert len(server.requests) <= 3


def test_the_key_is_nowhere(server, judge_of, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.script = [fails(429), fails(400, f"bad key {KEY}"), fails(422, KEY), fails(500, KEY), cut_off]
    with caplog.at_level(logging.DEBUG):
        judge = judge_of(key_env="JUDGE_KEY")
        verdicts = judge.judge(answers(3), ["helpfulness"])
    assert {key for key in server.keys} == {f"Bearer {KEY}"}
    told = [str(verdicts), str(judge.report()), repr(judge.settings), caplog.text, *capfd.readouterr()]
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert all(KEY not in text for text in told) and len(caplog.text) > 100
    assert verdicts[0]["helpfulness"].status == "failed" and "***" in verdicts[0]["helpfulness"].reason
    server.usual = fails(429, f"no quota left for {KEY}")
    (found,) = judge_of(key_env="JUDGE_KEY", attempts=2).judge([Answer("p", "another")], ["helpfulness"])
    assert found["helpfulness"].reason == "HTTP 429, 2 attempts: no quota left for ***"


def test_a_missing_key_is_told(judge_of, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="endpoint.key_env='JUDGE_KEY'"):
        judge_of(key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "two words")
    with pytest.raises(ValueError, match="endpoint.key_env=JUDGE_KEY: its content cannot be sent") as error:
        judge_of(key_env="JUDGE_KEY")
    assert "two words" not in str(error.value)


def test_what_failed_is_counted_and_asked_again_next_time(server, judge_of):
    server.script = [says(FOUR), fails(500), fails(500), says(FOUR)]
    judge = judge_of(attempts=2)
    assert scores(judge, 3) == [[4.0], [None], [4.0]]
    assert scores(judge_of(), 3) == [[4.0]] * 3
    assert len(server.requests) == 5


def test_too_many_failures_stop_the_run(server, judge_of):
    server.script = [says(FOUR)]
    server.usual = fails(500)
    with pytest.raises(ValueError, match=r"3 requests failed.*HTTP 500, 2 attempts.*endpoint.max_failed=2"):
        judge_of(attempts=2, max_failed=2).judge(answers(30), ["helpfulness"])
    assert len(server.requests) == 1 + 3 * 2
    server.usual = says(FOUR)
    assert scores(judge_of(), 2) == [[4.0]] * 2 and len(server.requests) == 8  # the first came from the cache


def test_failures_are_counted_over_the_whole_run(server, judge_of):
    server.usual = fails(500)
    judge = judge_of(attempts=1, max_failed=2)
    for number in range(2):
        assert judge.judge([Answer("p", str(number))], ["helpfulness"])[0]["helpfulness"].status == "failed"
    with pytest.raises(ValueError, match="3 requests failed"):
        judge.judge([Answer("p", "2")], ["helpfulness"])


def test_a_reply_of_no_use_is_billed_too(server, judge_of):
    server.script = [says(None, tokens=(50, 5))]  # neither content nor refusal
    judge = judge_of(input_price=2.0, output_price=10.0)
    assert scores(judge, 1) == [[4.0]]
    assert judge.report()["tokens"] == {"input": 150, "output": 15}
    assert judge.report()["cost"] == pytest.approx(150 * 2e-6 + 15 * 10e-6)


def test_refused_and_unparsable_are_counted_and_kept(server, judge_of):
    replies = [
        says(None, refusal="I won't judge that"), says("I'm sorry, I can't."), says("", finish_reason="content_filter"),
        says('{"reason": "so far', finish_reason="length"), says('{"score": 9}'),
        fails(400, '{"error": {"code": "content_filter", "message": "filtered"}}'), says(FOUR, tokens=None),
    ]  # fmt: skip
    expected = ["refused", "refused", "refused", "unparsable", "unparsable", "refused", "scored"]
    server.script = replies
    judge = judge_of()
    assert [v["helpfulness"].status for v in judge.judge(answers(7), ["helpfulness"])] == expected
    assert judge.report()["replies_without_token_counts"] == 2
    again = [v["helpfulness"].status for v in judge_of().judge(answers(7), ["helpfulness"])]
    assert again == expected and len(server.requests) == 7


def test_a_server_without_structured_answers(server, judge_of):
    def plain_only(handler, body):
        if "response_format" in body:
            handler.send('{"error": {"message": "response_format is not supported"}}', 400)
        else:
            says("Score: 3")(handler, body)

    server.usual = plain_only
    judge = judge_of()
    assert scores(judge, 3) == [[3.0]] * 3
    assert ["response_format" in body for body in server.requests] == [True, False, False, False]
    assert judge.report()["structured"] is False
    assert scores(judge_of(), 3) == [[3.0]] * 3 and len(server.requests) == 4


def test_an_answer_that_is_rejected_fails_alone(server, judge_of):
    def too_long(handler, body):
        if "answer 1" in body["messages"][1]["content"]:
            handler.send('{"error": "too long"}', 413)
        else:
            says(FOUR)(handler, body)

    server.usual = too_long
    judge = judge_of()
    assert scores(judge, 3) == [[4.0], [None], [4.0]] and len(server.requests) == 3


def test_no_more_at_a_time_than_allowed(server, judge_of):
    def slowly(handler, body):
        silent(0.2)(handler, body)

    server.usual = slowly
    scores(judge_of(concurrency=3), 9)
    assert 2 <= server.most_running <= 3


def test_requests_per_minute(server, judge_of):
    scores(judge_of(concurrency=4, requests_per_minute=600), 8)
    assert server.times[-1] - server.times[0] >= 0.1 * 7 * 0.9


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at as one " * 20)
    with pytest.raises(ValueError, match="not a cache of replies"):
        ReplyCache(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=f"endpoint.cache={tmp_path}: not a cache of replies"):
        ReplyCache(tmp_path)


def test_a_cache_that_breaks_is_told_in_one_error(tmp_path):
    cache = ReplyCache(tmp_path / "cache.sqlite")
    with sqlite3.connect(tmp_path / "cache.sqlite") as other:
        other.execute("DROP TABLE replies")
    for use in (lambda: cache.get("k"), lambda: cache.put("k", {})):
        with pytest.raises(ValueError, match="endpoint.cache=.*cache.sqlite: .*no such table"):
            use()
    cache.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "https://user:secret@host/v1"}, "no user, password or query"),
        ({"url": "ftp://host"}, "endpoint.url"),
        ({"url": "http://host:eighty/v1"}, "endpoint.url"),
        ({"input_price": 1.0}, "both prices"),
        ({"parameters": {"messages": []}}, "endpoint.parameters"),
        ({"attempts": 0}, "endpoint.attempts"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        endpoint(**{"url": "http://host", **changes})
    assert "secret" not in str(error.value)
