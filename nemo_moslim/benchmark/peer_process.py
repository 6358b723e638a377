"""The peer as child processes: they wait while our side runs, and run while it waits."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNLABELLED = -100  # the label that torch's cross-entropy leaves out
TAIL = 1500  # characters of a dead process's output that the error shows


@dataclass(frozen=True)
class Round:
    """What one side did in its turn."""

    seconds: float
    cpu_seconds: float  # of the processors, on all threads and processes of the side
    tokens: int  # real ones: no padding, nothing behind an answer's end
    items: int  # rows or answers
    pairs: int = 0  # of passes over whole rows: (query, key) pairs under the causal mask
    read: int = 0  # of the same: positions that are read: a reward model's ends of rows, those before answer tokens


class PeerGroup:
    """One or more data-parallel processes of the peer; see benchmark/peer.py for what they answer."""

    def __init__(self, python: str | None, folder: Path, processes: int, threads: int):
        self.processes, self.threads, self._log = processes, threads, folder / f"peer-{processes}-{id(self)}.log"
        port = _free_port()
        self._children = [self._start(python or sys.executable, folder, rank, port) for rank in range(processes)]
        self.versions = self._answers()[0]["versions"]

    def _start(self, python: str, folder: Path, rank: int, port: int) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "GROUP_", "ROLE_"))}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true",
                        "OMP_NUM_THREADS": str(self.threads)}  # fmt: skip
        if self.processes > 1:
            launch = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=self.processes, LOCAL_WORLD_SIZE=self.processes)
            environment |= {name: str(value) for name, value in launch.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with self._log.open("a") as log:
            return subprocess.Popen(
                [python, "-m", "nemo_moslim.benchmark.peer", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment,
            )  # fmt: skip

    def tell(self, **request) -> None:
        """Send a request that has no answer."""
        for child in self._children:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()

    def ask(self, **request) -> list[dict]:
        """The answers of all processes.

        Raises:
            ValueError: a process died; the message ends with what it printed last.
        """
        self.tell(**request)
        return self._answers()

    def _answers(self) -> list[dict]:
        lines = [child.stdout.readline() for child in self._children]
        if not all(lines):
            self.close()
            tail = self._log.read_text(errors="replace").strip()[-TAIL:]
            raise ValueError(
                "the peer's process died; it needs torch, numpy, transformers, accelerate (against=trl: trl): pip "
                f"install 'nemo_moslim[benchmark]', or give peer_python=INTERPRETER. Its last words: {tail}"
            )
        return [json.loads(line) for line in lines]

    def open(self, variant: dict) -> None:
        """Prepare to run in a variant (see `peer.py`)."""
        self.tell(open=variant)

    def round(self) -> Round:
        """Run once; of the seconds the slowest process's count, the rest is summed."""
        parts = self.ask(round=True)
        summed = {
            name: sum(part[name] for part in parts) for name in ("cpu_seconds", "tokens", "items", "pairs", "read")
        }
        return Round(seconds=max(part["seconds"] for part in parts), **summed)

    def end(self) -> None:
        """Leave the variant."""
        self.tell(round=False)

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
