"""The HTTP interface against a stand-in model: answers by hand, refusals, limits, batches, the end."""

import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import requests
from prometheus_client import CONTENT_TYPE_LATEST
from stub_service import AVERAGE, DEVIATION, PREFERENCES, TOKEN, stub_row

from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.serving.messages import MOST_MESSAGES, score_request
from nemo_moslim.serving.row_queue import RowQueue

DIALOGUE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "?"}]
PLAIN = {"prompt": "p", "response": "r"}


def expected(prompt, response, preferences, k):
    """Eq. 11 by hand: parts of helpfulness (classes 0-2) and harmless (classes 3-4)."""
    p, parts = stub_row(prompt, response), {}
    for name, first in (("helpfulness", 0), ("harmless", 3)):
        column = first + preferences.get(name, 1) - 1
        parts[name] = (p[column] - AVERAGE[column]) / DEVIATION[column] / k if name in preferences else 0.0
    return p, parts


def numbers(service) -> dict[str, float]:
    """GET /metrics by name and labels."""
    lines = [line for line in service.ask("GET", "/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_answers_by_hand_in_the_requests_order(service):
    rows = [("p", "r", {"harmless": 2}), (DIALOGUE, "", {"helpfulness": 3, "harmless": 1}), ("é\0 ", "\n", {})]
    items = [dict(prompt=p, response=r, preferences=asked) for p, r, asked in rows]
    for settings, k in (({}, [2, 2, 2]), ({"normalize": "active"}, [1, 2, 1])):
        answer = service.score(*items, PLAIN, **settings)
        assert answer.status_code == 200, answer.text
        *mapped, plain = answer.json()["items"]
        for found, row, count in zip(mapped, rows, k, strict=True):
            p, parts = expected(*row, count)
            assert found["probabilities"]["helpfulness"] == pytest.approx(p[:3], abs=1e-6)
            assert found["probabilities"]["harmless"] == pytest.approx(p[3:], abs=1e-6)
            assert found["parts"] == pytest.approx(parts, abs=1e-6)
            assert found["reward"] == pytest.approx(sum(parts.values()), abs=1e-6) and found["cut"] is False
        assert plain["reward"] is None and plain["parts"] is None and len(plain["probabilities"]["harmless"]) == 2
    assert service.score({"prompt": "p", "response": "x" * 41}).json()["items"][0]["cut"] is True


def test_the_model_is_described(service):
    found = service.ask("GET", "/model").json()
    assert found["preferences"] == PREFERENCES and list(found["preferences"]) == list(PREFERENCES)
    assert found["average"]["helpfulness"] == pytest.approx(AVERAGE[:3])
    assert found["deviation"]["harmless"] == pytest.approx(DEVIATION[3:])
    assert (found["request_items"], found["request_bytes"], found["max_length"]) == (8, 20000, 40)
    assert found["request_seconds"] == 4
    assert found["id"] == service.score(PLAIN).json()["model"]
    assert service.ask("GET", "/metrics").headers["Content-Type"] == CONTENT_TYPE_LATEST
    health = service.ask("GET", "/health", token=None)
    assert health.status_code == 200 and health.json() == {"status": "ok", "queued": 0}
    described = service.ask("GET", "/openapi.json").json()
    assert {"/score", "/model", "/health", "/metrics"} == set(described["paths"])
    item = described["components"]["schemas"]["ScoreItem"]["properties"]["preferences"]
    assert item["anyOf"][0]["properties"]["helpfulness"] == {"type": "integer", "minimum": 1, "maximum": 3}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"items": []}, 422, "items: List should have at least 1 item"),
        ({"items": [PLAIN] * 9}, 422, "items: List should have at most 8 items"),
        ({"items": [{"prompt": "p"}]}, 422, "items.0.response: Field required"),
        ({"items": [PLAIN, {**PLAIN, "response": 3}]}, 422, "items.1.response: Input should be a valid string"),
        ({"items": [{**PLAIN, "preferences": {"beauty": 1}}]}, 422, "unknown dimension 'beauty'; known: helpfulness"),
        ({"items": [{**PLAIN, "preferences": {"harmless": 3}}]}, 422, "harmless: level must be an integer in 1..2"),
        ({"items": [{**PLAIN, "preferences": {"harmless": True}}]}, 422, "valid integer"),
        ({"items": [{**PLAIN, "extra": 1}]}, 422, "items.0.extra: Extra inputs are not permitted"),
        ({"items": [{**PLAIN, "prompt": []}]}, 422, "items.0.prompt.messages: List should have at least 1 item"),
        ({"items": [{**PLAIN, "prompt": [DIALOGUE[0], DIALOGUE[0]]}]}, 422, "refuses this dialogue: roles must alt"),
        ({"items": [PLAIN], "normalize": "mean"}, 422, "normalize: Input should be 'total' or 'active'"),
        ({"items": [{**PLAIN, "response": "nan"}]}, 500, "not finite"),
        ({"items": [{**PLAIN, "response": "x" * 30000}]}, 413, "over 20000 bytes (limits.request_bytes)"),
    ],
)
def test_refusals_say_what_is_wrong(service, body, status, reason):
    answer = service.ask("POST", "/score", json=body)
    assert answer.status_code == status and reason in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 400


def test_a_dialogue_has_a_bounded_number_of_messages():
    request = score_request(PreferenceSchema.from_dict(PREFERENCES), "total", 8)
    for more in (0, 1):
        body = {"items": [{**PLAIN, "prompt": [DIALOGUE[0]] * (MOST_MESSAGES + more)}]}
        with pytest.raises(ValueError, match=f"at most {MOST_MESSAGES} items") if more else nullcontext():
            request.model_validate(body)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"items": NaN}', b"[" * 5000, b'{"items": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_no_json_is_refused(service, body):
    answer = service.ask("POST", "/score", data=body)
    assert answer.status_code in (400, 422) and answer.json()["detail"]


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"prompt": "a\ud800", "response": "r"}, "items.0.prompt.text"),
        ({"prompt": "p", "response": "\udfffb"}, "items.0.response"),
        ({"prompt": [{"role": "user", "content": "\ud83c"}], "response": "r"}, "items.0.prompt.messages.0.content"),
    ],
)
def test_text_that_is_no_unicode_is_refused(service, item, place):
    answer = service.score(item)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{place}: Value error, Input should be valid Unicode, without lone surrogates"
    assert service.score({"prompt": "\ud83c\udf50", "response": "r"}).status_code == 200  # a pair is a character


@pytest.mark.parametrize("token", [None, "", "another", TOKEN + " "])
def test_without_the_token_nothing_but_health(service, token):
    header = {} if token is None else {"Authorization": f"Bearer {token}x"}
    for method, path in (("GET", "/model"), ("GET", "/metrics"), ("POST", "/score"), ("GET", "/nothing")):
        answer = requests.request(method, service.url + path, headers=header, timeout=60)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["detail"] == "a bearer token is needed"


def test_it_says_whether_a_token_is_wanted(service):
    assert "a token is wanted)" in service.output() and TOKEN not in service.output()


def test_over_the_queues_limit_a_client_is_told_when_to_come_again(service):
    slow = [{"prompt": str(i), "response": "sleep 0.1"} for i in range(8)]  # two batches
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.score(*slow), range(6)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429} and 1 <= len(refused) <= 5
    for answer in refused:
        assert 1 <= int(answer.headers["Retry-After"]) <= 60 and "the queue is full" in answer.json()["detail"]
    assert service.score(PLAIN).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(service):
    started = time.monotonic()
    answer = service.score({"prompt": "p", "response": "sleep 6"})
    assert answer.status_code == 503 and "limits.request_seconds" in answer.json()["detail"]
    assert time.monotonic() - started < 6 and answer.headers["Retry-After"]
    assert service.score(PLAIN).status_code in (200, 503)  # behind the one that still sleeps
    assert service.score(PLAIN).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"items"')
        assert re.match(rb"HTTP/1.1 408 [\s\S]*the body did not arrive within 4 s", received(connection))


def test_a_body_without_a_length_is_limited_too(service):
    def chunks():
        for _ in range(30):
            yield b" " * 1000

    answer = service.ask("POST", "/score", data=chunks())
    assert answer.status_code == 413


def received(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_requests_share_batches_and_none_fails_under_the_limit(service):
    before = numbers(service)
    session = requests.Session()

    def one(i):
        body = {"items": [{"prompt": str(i), "response": "sleep 0.001", "preferences": {"harmless": 1}}]}
        return session.post(service.url + "/score", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(160)))
    assert {answer.status_code for answer in answers} == {200}
    for i, answer in enumerate(answers):
        p, parts = expected(str(i), "sleep 0.001", {"harmless": 1}, 2)
        assert answer.json()["items"][0]["reward"] == pytest.approx(parts["harmless"], abs=1e-6)
    grown = {name: value - before.get(name, 0.0) for name, value in numbers(service).items()}
    assert grown["moslim_answers_scored_total"] == 160 and grown["moslim_batch_rows_count"] < 120
    assert grown['moslim_requests_total{path="/score",status="200"}'] == 160


def test_sigterm_finishes_what_waits_and_exits_with_0(start_stub):
    service = start_stub("batch.rows=2", "batch.wait_milliseconds=1")
    slow = [{"prompt": str(i), "response": "sleep 1"} for i in range(4)]  # two batches
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.score, *slow)
        while not numbers(service)["moslim_queued_answers"]:
            assert not answer.done()
        service.process.send_signal(signal.SIGTERM)
        while (late := service.ask("GET", "/health", token=None)).status_code == 200:
            pass
        assert late.status_code == 503 and late.json()["status"] == "stopping"
        assert service.score(PLAIN).status_code == 503
        assert answer.result().status_code == 200 and len(answer.result().json()["items"]) == 4
    assert service.process.wait(60) == 0
    assert "stopped: everything that waited has been scored" in service.output()
    with pytest.raises(requests.ConnectionError):
        service.score(PLAIN)


def test_a_model_that_fails_ends_the_service(start_stub):
    service = start_stub()
    try:
        answer = service.score({"prompt": "p", "response": "crash"}, PLAIN)
        assert answer.status_code == 503 and answer.headers["Retry-After"]
    except requests.ConnectionError:  # it was gone before it could answer
        pass
    assert service.process.wait(60) == 1 and "out of memory" in service.output()


def test_a_server_that_ends_by_itself_ends_the_service_with_an_error(monkeypatch):
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.serve_config import ServeConfig
    from nemo_moslim.serving import lead as module

    class Dying:
        started, should_exit = True, False

        def __init__(self, settings):
            assert settings.timeout_graceful_shutdown == 13  # to receive a request and to score it

        def run(self, sockets):
            """Over at once."""

    monkeypatch.setattr(module.uvicorn, "Server", Dying)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module, "make_app", lambda *_: None)
    monkeypatch.setattr(module, "Service", lambda *_: SimpleNamespace(model=SimpleNamespace(id="m"), stopping=False,
                                                                      queue=RowQueue(4, 2, 0.0)))  # fmt: skip
    config = parse(compose_config("serve_reward", ["run=r", "port=0", "limits.request_seconds=6.5"]), ServeConfig)
    shared = []
    ranks = SimpleNamespace(share=shared.append)
    with module.listen("127.0.0.1", 0) as listener, pytest.raises(RuntimeError, match="ended by itself"):
        module.lead(config, None, None, ranks, listener)
    assert shared == ["stop"]  # the other ranks end too


def test_a_taken_port_is_told_in_one_line(service):
    from nemo_moslim.serving.lead import listen

    port = int(service.url.rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=f"host=127.0.0.1 port={port}: cannot listen there .*give another port"):
        listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="host=no.such.host.invalid"):
        listen("no.such.host.invalid", 80)


def test_the_answer_is_exact(service):
    """A float32 comes through JSON to the bit."""
    import torch

    found = service.score(PLAIN).json()["items"][0]["probabilities"]
    assert torch.equal(torch.tensor(found["helpfulness"] + found["harmless"]), torch.tensor(stub_row("p", "r")))
