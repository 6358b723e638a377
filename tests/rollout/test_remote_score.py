"""The client of a reward service against a server that fails in every way; without NeMo."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from nemo_moslim.rollout.remote_score import (
    Refused,
    RemoteRewardModel,
    RemoteScorer,
    RewardService,
    ServiceError,
    ServiceUnavailable,
)
from nemo_moslim.stop_request import StopRequest

MODEL = {
    "id": "m1",
    "preferences": {
        "helpfulness": {"levels": 3, "score_range": [1, 5]},
        "harmless": {"levels": 2, "score_range": [0, 1]},
    },
    "request_items": 2,
    "request_bytes": 200,
    "request_seconds": 1.0,
}


class Handler(BaseHTTPRequestHandler):
    """Answers from the server's script: (status, headers, body), "drop", "half" or None, an honest answer."""

    def do_GET(self):
        self.answer(json.dumps(self.server.model))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append({"size": len(body), "token": self.headers.get("Authorization"), **json.loads(body)})
        items = [
            {
                "probabilities": {"helpfulness": [0.1, 0.2, 0.7], "harmless": [1.0, 0.0]},
                "reward": float(item["response"]),
                "parts": {"helpfulness": float(item["response"]), "harmless": 0.0},
                "cut": item["response"] == "2",
            }
            for item in self.server.seen[-1]["items"]
        ]
        self.answer(json.dumps(self.server.spoil({"items": items, "model": self.server.model["id"]})))

    def answer(self, honest):
        step = self.server.script.pop(0) if self.server.script else None
        if step == "drop":
            return self.connection.close()
        status, headers, body = step if isinstance(step, tuple) else (200, {}, honest)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2 if step == "half" else None].encode())
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.model, made.script, made.seen, made.spoil = MODEL, [], [], lambda answer: answer
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def scored(service, count=3):
    rows = [("p", str(i), {"helpfulness": 1}) for i in range(count)]
    return RemoteScorer(service, "active").start(*map(list, zip(*rows, strict=True)))()


def problem(status, **headers):
    return status, headers, json.dumps({"detail": f"problem {status}"})


def test_rows_go_in_requests_within_the_limits_and_come_back_in_order(server, monkeypatch):
    monkeypatch.setenv("MOSLIM_SERVICE_TOKEN", " t\n")
    service = RewardService(server.url + "/", 5.0, StopRequest())
    scores = scored(service, 5)
    assert scores.rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0] and scores.cut == 1
    assert scores.parts[:, 0].tolist() == scores.rewards.tolist() and scores.obtained.tolist() == [[3, 1]] * 5
    assert [len(request["items"]) for request in server.seen] == [2, 2, 1]
    assert {(request["token"], request["normalize"]) for request in server.seen} == {("Bearer t", "active")}
    server.seen.clear()
    p, cut = RemoteRewardModel(service).start(["p" * 60, "p" * 60, "x" * 500], ["0", "1", "2"])()
    torch.testing.assert_close(p, torch.tensor([[0.1, 0.2, 0.7, 1.0, 0.0]] * 3))
    assert cut.tolist() == [False, False, True]
    assert [len(request["items"]) for request in server.seen] == [1, 1, 1]  # two would be over 200 bytes
    assert all(request["size"] <= 200 for request in server.seen[:2])


def test_a_request_is_on_its_way_while_its_sender_goes_on(server):
    service = RewardService(server.url, 5.0, StopRequest())
    arrived, others_done = threading.Event(), threading.Event()

    def spoil(answer):
        arrived.set()
        assert others_done.wait(30)
        return answer

    server.spoil = spoil
    started = RemoteScorer(service, "active").start(["p"], ["3"], [{"helpfulness": 1}])
    assert arrived.wait(30)
    others_done.set()
    assert started().rewards.tolist() == [3.0]


@pytest.mark.parametrize(
    "failures",
    [
        [problem(503), problem(502), problem(504), problem(408)],
        [problem(429, **{"Retry-After": "1"})],
        ["drop", "drop", "half"],
        [(200, {}, "no json")],
        [(503, {}, "no json")],
        [(404, {}, "<html>"), (500, {}, "Internal Server Error")],  # of what stands in its place for a while
    ],
)
def test_it_comes_again_until_it_is_answered(server, failures):
    service = RewardService(server.url, 60.0, StopRequest())
    server.script = list(failures)
    started = time.monotonic()
    assert scored(service, 2).rewards.tolist() == [0.0, 1.0]
    assert len(server.seen) == len(failures) + 1
    assert time.monotonic() - started >= (1.0 if failures[0][0] == 429 else 0.09)


def test_a_service_that_comes_back_is_waited_for_and_one_that_does_not_is_told_of(server):
    service = RewardService(server.url, 60.0, StopRequest())
    address = server.server_address
    server.shutdown()
    server.server_close()
    with pytest.raises(ServiceUnavailable, match="not answered in reward_patience=0.5 s .last: .*serve_reward.py"):
        service.patience = 0.5
        scored(service)
    service.patience = 60.0

    def come_back():
        again = ThreadingHTTPServer(address, Handler)
        again.model, again.script, again.seen, again.spoil = MODEL, [], [], lambda answer: answer
        server.again = again
        again.serve_forever(0.01)

    threading.Timer(0.5, come_back).start()
    assert scored(service).rewards.tolist() == [0.0, 1.0, 2.0]
    server.again.shutdown()
    server.again.server_close()


def test_told_to_stop_it_waits_no_longer(server):
    stop = StopRequest()
    service = RewardService(server.url, 600.0, stop)
    server.script = [problem(503, **{"Retry-After": "60"})]
    threading.Timer(0.3, lambda: setattr(stop, "told", True)).start()
    started = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        scored(service)
    assert time.monotonic() - started < 30
    assert scored(service).rewards.tolist() == [0.0, 1.0, 2.0]  # one that answers is not refused


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (problem(422), "POST /score is refused: 422 problem 422"),
        (problem(500), "POST /score is refused: 500 problem 500"),
        (problem(401), "401 problem 401: set MOSLIM_SERVICE_TOKEN to the service's"),
        (problem(404), "404 problem 404"),
    ],
)
def test_a_refusal_is_told_at_once(server, answer, message):
    service = RewardService(server.url, 600.0, StopRequest())
    server.script = [answer]
    with pytest.raises(Refused, match=f"reward={server.url}: .*{message}"):
        scored(service)
    assert service.gave_up  # so that a checkpoint is written without it


@pytest.mark.parametrize("status", [404, 500])
def test_something_else_in_its_place_is_told_at_once_at_the_start(server, status):
    server.script = [(status, {}, "<html>")]
    with pytest.raises(Refused, match=f"GET /model is refused: {status}"):
        RewardService(server.url, 600.0, StopRequest())


def change(number, **fields):
    """An answer with other fields of an item; None: without the field."""

    def spoil(answer):
        answer["items"][number] |= fields
        answer["items"][number] = {k: v for k, v in answer["items"][number].items() if v is not None}
        return answer

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda answer: [], "without a list of items"),
        (lambda answer: {**answer, "items": None}, "without a list of items"),
        (lambda answer: {**answer, "items": answer["items"][1:]}, "1 items to 2"),
        (lambda answer: {**answer, "items": [None] * 2}, "item 0 without 'cut'"),
        (change(1, reward=float("nan")), "item 1 with reward nan"),
        (change(1, reward="high"), "item 1 with reward 'high'"),
        (change(0, reward=None), "item 0 with reward None"),
        (change(0, parts={"helpfulness": 1.0}), "item 0 without its part of harmless"),
        (change(0, probabilities=None), "item 0 without 3 probabilities of helpfulness"),
        (change(1, probabilities={"helpfulness": [0.1, 0.9], "harmless": [1, 0]}), "item 1 without 3 probabilities"),
        (change(1, probabilities={"helpfulness": [0, 0, float("inf")], "harmless": [1, 0]}), "item 1 without 3 prob"),
    ],
)
def test_an_answer_of_another_form_is_told_in_one_error(server, spoil, message):
    service = RewardService(server.url, 600.0, StopRequest())
    server.spoil = spoil
    with pytest.raises(ServiceError, match=f"reward={server.url}: POST /score answers {message}.*same command resumes"):
        scored(service, 2)


def test_a_service_need_not_map_what_asks_for_nothing(server):
    """As for objective=weighted_sum."""
    service = RewardService(server.url, 600.0, StopRequest())
    server.spoil = change(0, reward=None, parts=None)
    assert RemoteRewardModel(service).start(["p"], ["0"])()[0].shape == (1, 5)


def test_another_model_is_not_taken_for_the_first(server):
    service = RewardService(server.url, 5.0, StopRequest())
    server.model = {**MODEL, "id": "m2"}
    with pytest.raises(ValueError, match=r"serves another model \(m2\) than at the start \(m1\)"):
        scored(service)


@pytest.mark.parametrize(
    "model",
    [{}, [], "hello", {"id": 1}, {**MODEL, "preferences": 3}, {**MODEL, "preferences": {"a": 1}},
     {**MODEL, "request_items": "many"}, {**MODEL, "request_seconds": 0}],
)  # fmt: skip
def test_something_else_at_the_address_is_told(server, model):
    server.model = model
    with pytest.raises(ValueError, match="it is no serve_reward.py"):
        RewardService(server.url, 5.0, StopRequest())


@pytest.mark.parametrize(("token", "message"), [(" ", "is set and empty: .* unset it"), ("a b", "cannot be sent")])
def test_a_token_that_is_none_is_told(server, monkeypatch, token, message):
    monkeypatch.setenv("MOSLIM_SERVICE_TOKEN", token)
    with pytest.raises(ValueError, match=f"MOSLIM_SERVICE_TOKEN.*{message}") as error:
        RewardService(server.url, 600.0, StopRequest())
    assert "a b" not in str(error.value)


@pytest.mark.parametrize("url", ["http://", "http://:x", "http://[::"])
def test_an_address_that_is_none_is_told_at_once(url):
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        RewardService(url, 600.0, StopRequest())
