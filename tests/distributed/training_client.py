"""The tests' side of training_server.py: starts trainings, waits for them, reads what they left."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMING_KEYS = ("seconds", "tokens_per_second", "answers_per_second", "memory_gigabytes")
LIMIT = float(os.environ.get("MOSLIM_TEST_LIMIT", "240"))  # seconds after which a job is killed and its test fails


@dataclass
class Job:
    """One started function: a process per rank."""

    pids: list[int]
    folder: Path

    def output(self) -> str:
        """What all ranks printed."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("output.*")))

    def results(self) -> list:
        """What the function returned, per rank."""
        return [json.loads((self.folder / f"result.{rank}").read_text()) for rank in range(len(self.pids))]

    def signal(self, number: signal.Signals, ranks: list[int] | None = None) -> None:
        """Send a signal to some (or all) ranks."""
        for rank, pid in enumerate(self.pids):
            if ranks is None or rank in ranks:
                os.kill(pid, number)


class Trainings:
    """A server process and the jobs it runs; `folder` takes their output."""

    def __init__(self, folder: Path):
        self.folder, self._numbers = folder, itertools.count()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        environment |= {"WARM_PYTHON": str(folder / "warm_python")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # the Python of warm_python.py
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            environment.pop(name, None)
        self._log = (folder / "server.log").open("w")
        self._server = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "distributed" / "training_server.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def close(self) -> None:
        """End the server."""
        self._server.stdin.close()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()

    def _ask(self, **request) -> dict:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise AssertionError(f"the training server died:\n{(self.folder / 'server.log').read_text()[-6000:]}")
        return json.loads(line)

    def warm_python(self) -> dict[str, str]:
        """Environment with which warm_python.py runs scripts."""
        path = self.folder / "warm_python"
        if not path.exists():
            self._ask(listen=str(path))
            while not path.exists():
                time.sleep(0.01)
        return {"WARM_PYTHON": str(path)}

    def start(self, function: str, ranks: int = 1, **arguments) -> Job:
        """Start a function of training_probes.py and return at once."""
        folder = self.folder / f"job{next(self._numbers)}"
        folder.mkdir()
        return Job(self._ask(start=function, arguments=arguments, ranks=ranks, folder=str(folder))["pids"], folder)

    def wait(self, job: Job) -> list[int]:
        """Exit codes of the ranks."""
        return self._ask(wait=job.pids, timeout=LIMIT)["codes"]

    def run(self, function: str, ranks: int = 1, **arguments) -> Job:
        """Start a function and wait until all its ranks have ended well.

        Raises:
            AssertionError: a rank failed; the message ends with the output.
        """
        job = self.start(function, ranks, **arguments)
        codes = self.wait(job)
        if any(codes):
            raise AssertionError(f"{function} {arguments}: exit codes {codes}\n{job.output()[-6000:]}")
        return job

    def train(self, entry: str, *arguments: str, ranks: int = 1, fault: dict | None = None) -> Job:
        """`examples/ENTRY.py arguments…` to its end."""
        return self.run("train", ranks, entry=entry, arguments=list(arguments), fault=fault)


def wait_for(condition, job: Job, seconds: float = LIMIT) -> None:
    """Poll until `condition()`.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain\n{job.output()[-6000:]}")
        time.sleep(0.005)


def told_to_end(trainings: Trainings, job: Job) -> list[int]:
    """Exit codes of a service after SIGTERM; of one that has ended before, none."""
    try:
        job.signal(signal.SIGTERM)
    except ProcessLookupError:
        return []
    return trainings.wait(job)


def metrics(run_dir: Path) -> list[dict]:
    """Rows of metrics.jsonl without what the clock decides."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMING_KEYS} for row in rows]


def steps_done(run_dir: Path) -> int:
    """Complete rows of metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def weights(checkpoint: Path) -> dict:
    """Every tensor of a distributed checkpoint by name, whole, whatever layout wrote it, optimizer's state included."""
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    state = _load_state_dict_from_keys(checkpoint_id=checkpoint / "weights")
    return {name: value for name, value in flat(state) if hasattr(value, "dtype")}


def flat(tree, prefix: str = ""):
    """(dotted name, leaf) pairs of nested dicts and lists."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from flat(value, f"{prefix}{index}.")
    else:
        yield prefix.removesuffix("."), tree
