"""A service on the stand-in model, in a process of its own."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from stub_service import TOKEN

ROOT = Path(__file__).resolve().parents[2]

START_SECONDS = 180.0


class StubService:
    """A started process; `url` once it serves."""

    def __init__(self, folder: Path, warm_python: dict[str, str], *settings: str):
        self._log = folder / "service.log"
        environment = {
            **os.environ,
            **warm_python,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MOSLIM_SERVICE_TOKEN": f" {TOKEN}\n",
        }
        for name in ("RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        scripts = [ROOT / "tests" / "distributed" / "warm_python.py", ROOT / "tests" / "serving" / "stub_service.py"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *scripts, *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
            )  # fmt: skip
        self.url = self._wait()

    def _wait(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"http://\S+", self.output()):
                return found.group()
            time.sleep(0.05)
        raise AssertionError(f"the service did not start:\n{self.output()}")

    def output(self) -> str:
        """What it printed."""
        return self._log.read_text()

    def ask(self, method: str, path: str, token: str | None = TOKEN, **options) -> requests.Response:
        """One request."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.request(method, self.url + path, headers=headers, timeout=60, **options)

    def score(self, *items: dict, **more) -> requests.Response:
        """POST /score."""
        return self.ask("POST", "/score", json={"items": list(items), **more})


@pytest.fixture(scope="session")
def start_stub(trainings, tmp_path_factory):
    """Starts services, forked from the trainings' server; what is left of them is killed."""
    started = []

    def start(*settings: str) -> StubService:
        started.append(StubService(tmp_path_factory.mktemp("service"), trainings.warm_python(), *settings))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait()


@pytest.fixture(scope="session")
def service(start_stub) -> StubService:
    """Small limits, so that each can be met."""
    limits = ["queue_rows=12", "request_items=8", "request_bytes=20000", "request_seconds=4"]
    return start_stub("batch.rows=4", "batch.wait_milliseconds=20", *(f"limits.{limit}" for limit in limits))


@pytest.fixture(scope="session")
def critic_service(start_stub, tmp_path_factory) -> StubService:
    """One that holds a critic too."""
    limits = ["queue_rows=12", "request_items=8", "request_bytes=20000", "critic_seconds=30"]
    folder = tmp_path_factory.mktemp("critic")
    return start_stub("critic=true", f"critic_dir={folder}", *(f"limits.{limit}" for limit in limits))
