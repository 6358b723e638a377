"""A recipe as a list of commands: each is shown, run with its output passed through, and timed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass
class Recipe:
    """Runs the entry points of examples/ one after the other and keeps the seconds of each in `folder`/seconds.json.

    A stage that finished in an earlier call is not run again; a training that was cut short resumes.
    """

    folder: Path
    stages: int
    _number: int = field(default=0, init=False)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per finished stage."""
        path = self.folder / "seconds.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def run(self, name: str, script: str, *settings: str, ranks: int = 0) -> None:
        """Run examples/SCRIPT with settings; ranks > 0 launches it with torchrun.

        Raises:
            SystemExit: the command failed; its exit code is passed on.
        """
        self._number += 1
        if name in self.seconds:
            print(f"[{self._number}/{self.stages}] {name}: done before", flush=True)
            return
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
        shown = f"torchrun --nproc-per-node {ranks}" if ranks else "python"
        print(
            f"\n[{self._number}/{self.stages}] {name}\n    {shown} examples/{script} {' '.join(settings)}", flush=True
        )
        started = time.perf_counter()
        quiet = {"PYTHONWARNINGS": "ignore", **({"OMP_NUM_THREADS": "1"} if ranks else {})}  # torchrun warns without it
        command = [sys.executable, *launcher, str(EXAMPLES / script), *settings]
        code = subprocess.run(command, check=False, env={**quiet, **os.environ}).returncode
        if code:
            print(
                f"error: stage {name!r} failed (exit code {code}); mend it and run the same command again, finished "
                "stages are kept",
                file=sys.stderr,
            )
            raise SystemExit(code)
        seconds = {**self.seconds, name: round(time.perf_counter() - started, 1)}
        (self.folder / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
        print(f"    {seconds[name]:.0f} s", flush=True)
