"""A local HTTP server that answers as it is told, also badly, and remembers what it was sent."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Respond = Callable[["Handler", dict], None]


class Handler(BaseHTTPRequestHandler):
    """One request: remembered, then given to the next response of the script, or to the usual one."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Silent."""

    def do_POST(self):  # noqa: N802
        """Every request of a judge."""
        owner: JudgeServer = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner.requests.append(body)
            owner.times.append(time.monotonic())
            owner.keys.append(self.headers.get("Authorization"))
            owner.running += 1
            owner.most_running = max(owner.most_running, owner.running)
            respond = owner.script.pop(0) if owner.script else owner.usual
        try:
            respond(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner.lock:
                owner.running -= 1

    def send(self, content: str, status: int = 200, length: int | None = None, **headers: str) -> None:
        """A whole response; with `length` above the content's, one that is cut off."""
        data = content.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        if length is not None and length > len(data):
            self.close_connection = True


class JudgeServer:
    """`script`: responses to the next requests; `usual`: to all others."""

    def __init__(self, usual: Respond):
        self.usual, self.script, self.lock = usual, [], threading.Lock()
        self.requests, self.times, self.keys = [], [], []
        self.running = self.most_running = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def completion(content: str | None, tokens: tuple[int, int] | None = (100, 10), **message: str) -> str:
    """A chat completion as OpenAI's servers write it."""
    finish = message.pop("finish_reason", "stop")
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    reply = {"id": "chatcmpl-7", "object": "chat.completion", "created": 1, "model": "judge-1", "choices": [choice]}
    if tokens:
        reply["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return json.dumps(reply)


def says(content: str | None, **rest) -> Respond:
    """A judge that says this."""
    return lambda handler, body: handler.send(completion(content, **rest))


def fails(status: int, content: str = "{}", **headers: str) -> Respond:
    """An error of HTTP."""
    return lambda handler, body: handler.send(content, status, **headers)


def cut_off(handler: Handler, body: dict) -> None:
    """Half a response."""
    whole = completion('{"reason": "r", "score": 3}')
    handler.send(whole[: len(whole) // 2], length=len(whole))


def dropped(handler: Handler, body: dict) -> None:
    """No response: the connection ends."""
    handler.close_connection = True


def silent(seconds: float) -> Respond:
    """Nothing for so long, then a good response."""

    def respond(handler: Handler, body: dict) -> None:
        time.sleep(seconds)
        handler.send(completion('{"reason": "r", "score": 3}'))

    return respond


def trickling(seconds: float) -> Respond:
    """A good response, a piece every twentieth of a second, whole after so long."""

    def respond(handler: Handler, body: dict) -> None:
        data = completion('{"reason": "r", "score": 3}').encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        pieces = int(seconds / 0.05)
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            handler.wfile.write(data[start : start + size])
            handler.wfile.flush()
            time.sleep(0.05)

    return respond
