"""The playground's page in a browser; the test plays the models' part. Needs Gradio's own environment."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from ports import free_port

from nemo_moslim.playground.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
DIMENSIONS = [{"name": "helpfulness", "levels": 5, "lowest": 1}, {"name": "harmless", "levels": 2, "lowest": 0}]


@pytest.fixture(scope="module")
def page_python():
    """The Python that `make playground` makes, or MOSLIM_PLAYGROUND_PYTHON."""
    python = os.environ.get("MOSLIM_PLAYGROUND_PYTHON", str(ROOT / ".venv-playground/bin/python"))
    if not Path(python).is_file():
        pytest.skip(f"no Gradio: {python} is not there (make .venv-playground/.ready)")
    return python


class Played:
    """The page's process and a thread that answers it: texts name the settings and the number of messages."""

    def __init__(self, python: str, port: int):
        ours, theirs = socket.socketpair()
        self.wire, self.requests, self.end = Wire(ours), [], ours
        command = [python, "-m", "nemo_moslim.playground.page", str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)  # fmt: skip
        theirs.close()
        self.wire.send({"title": "<b>policy</b>", "host": "127.0.0.1", "port": port, "seed": 7,
                        "dimensions": DIMENSIONS})  # fmt: skip
        self.thread = threading.Thread(target=self.play, daemon=True)
        self.thread.start()

    def play(self) -> None:
        while request := self.wire.receive():
            self.requests.append(request)
            if request["conversations"][0]["prompt"] == "too long":
                self.wire.send({"error": "the conversation has 9 tokens"})
                continue
            answers = []
            for row in request["conversations"]:
                levels = row["preferences"]
                asked = [f"{name}={levels[name]}" for name in sorted(levels)]
                probabilities = {"helpfulness": [0.1, 0.6, 0.1, 0.1, 0.1], "harmless": [0.25, 0.75]}
                text = f"<img src=x onerror=window.ran=1> {' '.join(asked)}"
                answers.append({"response": text, "reward": 0.5, "probabilities": probabilities})
            self.wire.send({"answers": answers})

    def close(self) -> int:
        self.end.shutdown(socket.SHUT_RDWR)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def played(page_python):
    port = free_port()
    played = Played(page_python, port)
    assert played.process.stdout.readline() == f"playground: http://127.0.0.1:{port}\n"
    played.url = f"http://127.0.0.1:{port}"
    yield played
    assert played.close() == 0, "the page ends with the models"


def opened(browser, url, width):
    """The page once it is ready: (page, complaints of the browser, requests elsewhere)."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    page.complaints, page.elsewhere = [], []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: page.elsewhere.append(r.url) if "127.0.0.1" not in r.url[:20] else None)
    page.goto(url)
    page.wait_for_selector("#prompt textarea", timeout=60_000)
    return page


def ask(page, text):
    bars = page.locator(".bars").count()
    page.fill("#prompt textarea", text)
    page.press("#prompt textarea", "Enter")
    page.wait_for_function("n => document.querySelectorAll('.bars').length === n", arg=bars + 2, timeout=60_000)


def move(page, slider, value):
    page.fill(f"#{slider} input[type=number]", str(value))
    page.press(f"#{slider} input[type=number]", "Tab")


def test_a_chat_at_two_settings(browser, played):
    page = opened(browser, played.url, 1280)
    move(page, "A-helpfulness", 4)
    move(page, "B-harmless", -1)  # under its lowest level, 0: not asked for
    ask(page, "Name some <i>fruits</i>.")
    (request,) = played.requests
    assert (
        request["seed"] == 7 and [row["prompt"] for row in request["conversations"]] == ["Name some <i>fruits</i>."] * 2
    )
    assert [row["preferences"] for row in request["conversations"]] == [
        {"helpfulness": 4, "harmless": 2}, {"helpfulness": 1}
    ]  # fmt: skip
    left, right = page.inner_text("#chat-A"), page.inner_text("#chat-B")
    assert "<img src=x onerror=window.ran=1> harmless=2 helpfulness=4" in left and "helpfulness=1" in right
    assert "Name some <i>fruits</i>." in left and "reward +0.50" in left
    assert page.evaluate("window.ran === undefined")
    # the likeliest level beside the name; the asked level stands out, where there is one
    assert "helpfulness 2" in left and "harmless 1" in left
    asked = page.locator("#chat-A .bars i.asked").evaluate_all("found => found.map(e => e.title)")
    assert asked == ["helpfulness 4: 0.10", "harmless 1: 0.75"]
    assert page.locator("#chat-B .bars i.asked").count() == 1
    heights = page.locator("#chat-A .bars i").evaluate_all("found => found.map(e => e.getBoundingClientRect().height)")
    assert heights[1] == max(heights[:5]) and heights[6] > 2.5 * heights[5]

    page.check("#remember input")
    ask(page, "And now?")
    conversation = played.requests[-1]["conversations"][1]["prompt"]
    assert [message["role"] for message in conversation] == ["user", "assistant", "user"]
    assert conversation[1]["content"].endswith("helpfulness=1") and conversation[2]["content"] == "And now?"
    assert played.requests[-1]["seed"] == 8
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('.bars').length === 0")
    ask(page, "Again.")
    assert played.requests[-1]["conversations"][0]["prompt"] == "Again."
    assert page.elsewhere == [] and page.complaints == []
    page.context.close()


def test_a_refusal_is_shown_and_the_phone_has_room(browser, played):
    page = opened(browser, played.url, 390)
    page.fill("#prompt textarea", "too long")
    page.click("#ask")
    page.get_by_text("the conversation has 9 tokens").wait_for()
    ask(page, "short")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.context.close()
