"""The clients of what=serve, a process of its own: `python -m nemo_moslim.benchmark.load_client TASK.json`.

Each client sends its next request when the last one is answered. Nothing is sent again: a refusal counts, and so does a
request without an answer.
"""

import json
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import requests


def main() -> None:
    """Reads url, rows, items (of a request), clients and rounds; writes seconds, latencies and answers beside it."""
    file = Path(sys.argv[1])
    task = json.loads(file.read_text())
    rows, size = task["rows"], task["items"]
    bodies = [{"items": rows[start : start + size]} for start in range(0, len(rows), size)]
    rounds = [one_round(task["url"], bodies, task["clients"]) for _ in range(task["rounds"] + 1)]  # the first warms up
    file.with_name("load.json").write_text(json.dumps(rounds[1:]))


def one_round(url: str, bodies: list[dict], clients: int) -> dict:
    """All requests once: seconds in all and of each that was scored, statuses, rewards of the rows (null: not scored).

    A status is HTTP's, or the name of the error that kept a request from being answered.
    """
    answers: list[list | None] = [None] * len(bodies)
    seconds, statuses, places, lock = [], Counter(), iter(range(len(bodies))), threading.Lock()

    def client() -> None:
        with requests.Session() as session:
            while True:
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                started = time.perf_counter()
                try:
                    answer = session.post(f"{url}/score", json=bodies[place], timeout=600)
                    taken = time.perf_counter() - started
                    status, found = str(answer.status_code), answer.json() if answer.ok else None
                except requests.RequestException as error:  # a body that is no JSON is one too
                    status, found = type(error).__name__, None
                with lock:
                    statuses[status] += 1
                    if found:
                        answers[place] = [item["reward"] for item in found["items"]]
                        seconds.append(taken)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - started
    rewards = [
        reward for body, found in zip(bodies, answers, strict=True) for reward in found or [None] * len(body["items"])
    ]
    return {"seconds": total, "request_seconds": seconds, "statuses": dict(statuses), "rewards": rewards}


def figures(rounds: list[dict]) -> dict:
    """Rates and latencies of what was scored, over all rounds (`one_round`), and every request's status.

    Raises:
        ValueError: nothing was scored.
    """
    statuses = sum((Counter(one["statuses"]) for one in rounds), Counter())
    latencies = np.concatenate([one["request_seconds"] for one in rounds]) * 1000
    if not len(latencies):
        raise ValueError(f"the service scored nothing: {told(statuses)}")
    rows = [sum(reward is not None for reward in one["rewards"]) for one in rounds]
    seconds = [one["seconds"] for one in rounds]
    return {
        "answers_per_second": statistics.median(n / s for n, s in zip(rows, seconds, strict=True)),
        "requests_per_second": statistics.median(len(one["request_seconds"]) / one["seconds"] for one in rounds),
        "milliseconds": {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 99)}
        | {"max": float(latencies.max())},
        "statuses": dict(statuses),
        "all_scored": set(statuses) == {"200"},
        "seconds": seconds,
    }


def told(statuses: dict[str, int]) -> str:
    """10 x 200, 2 x ConnectionError."""
    return ", ".join(f"{count} x {status}" for status, count in statuses.items())


if __name__ == "__main__":
    main()
