"""The clients of what=serve against a service that refuses and breaks: each request counts once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nemo_moslim.benchmark.load_client import figures, one_round

BODIES = [{"items": [{"response": f"{place}.{row}"} for row in range(2)]} for place in range(6)]


class Handler(BaseHTTPRequestHandler):
    """By the first item: 1 is refused, 2 is broken off, 3 is no JSON, the others get the reward in their text."""

    def do_POST(self):
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        place = items[0]["response"][0]
        if place == "2":
            return self.connection.close()
        rewards = {"items": [{"reward": float(item["response"])} for item in items]}
        content = b"<html>" if place == "3" else json.dumps(rewards).encode()
        self.send_response(429 if place == "1" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("clients", [1, 3])
def test_a_request_that_fails_is_counted_and_ends_no_client(url, clients):
    found = one_round(url, BODIES, clients)
    assert found["statuses"] == {"200": 3, "429": 1, "ConnectionError": 1, "JSONDecodeError": 1}
    assert found["rewards"] == [0.0, 0.1, *[None] * 6, 4.0, 4.1, 5.0, 5.1] and len(found["request_seconds"]) == 3


def test_figures_are_of_what_was_scored():
    whole = {"seconds": 2.0, "request_seconds": [1.0, 1.0], "statuses": {"200": 2}, "rewards": [0.5] * 4}
    part = {
        "seconds": 1.0,
        "request_seconds": [0.5],
        "statuses": {"200": 1, "Timeout": 1},
        "rewards": [0.5] * 2 + [None] * 2,
    }
    assert figures([whole, whole])["all_scored"] is True
    found = figures([whole, part, part])
    assert (found["answers_per_second"], found["requests_per_second"]) == (2.0, 1.0)
    assert found["milliseconds"]["max"] == 1000.0 and found["milliseconds"]["p50"] == 750.0
    assert found["statuses"] == {"200": 4, "Timeout": 2} and found["all_scored"] is False
    with pytest.raises(ValueError, match="scored nothing: 2 x ConnectionError"):
        figures([{"seconds": 1.0, "request_seconds": [], "statuses": {"ConnectionError": 2}, "rewards": [None] * 4}])
