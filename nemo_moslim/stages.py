"""A recipe as a list of commands: each is shown, run with its output passed through, and timed."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from nemo_moslim.launch import launch
from nemo_moslim.run_folder import write_atomically

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass
class Recipe:
    """Runs the entry points of examples/ one after the other and keeps the seconds of each in `folder`/seconds.json.

    A stage that finished in an earlier call is not run again; a training that was cut short resumes. A finished stage
    whose settings are no longer those it was run with (`folder`/commands.json) ends the recipe.
    """

    folder: Path
    stages: int
    _number: int = field(default=0, init=False)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per finished stage."""
        return _read(self.folder / "seconds.json")

    @property
    def commands(self) -> dict[str, list[str]]:
        """Script and settings per finished stage."""
        return _read(self.folder / "commands.json")

    def run(self, name: str, script: str, *settings: str, ranks: int = 0) -> None:
        """Run examples/SCRIPT with settings; ranks > 0 launches it with torchrun.

        Raises:
            SystemExit: the command failed, its exit code is passed on; or 2: the stage finished with other settings.
        """
        self._number += 1
        command = [script, *settings]
        if name in self.seconds:
            if self.commands.get(name, command) != command:
                raise SystemExit(_changed(self.folder, name, self.commands[name], command))
            print(f"[{self._number}/{self.stages}] {name}: done before", flush=True)
            return
        shown = f"torchrun --nproc-per-node {ranks}" if ranks else "python"
        print(
            f"\n[{self._number}/{self.stages}] {name}\n    {shown} examples/{script} {' '.join(settings)}", flush=True
        )
        started = time.perf_counter()
        code = launch(EXAMPLES / script, settings, ranks)
        if code:
            print(
                f"error: stage {name!r} failed (exit code {code}); mend it and run the same command again, finished "
                "stages are kept",
                file=sys.stderr,
            )
            raise SystemExit(code if code > 0 else 128 - code)
        took = round(time.perf_counter() - started, 1)
        with FileLock(self.folder / ".lock"):  # of processes that share a recipe
            _write(self.folder / "commands.json", {**self.commands, name: command})
            _write(self.folder / "seconds.json", {**self.seconds, name: took})
        print(f"    {took:.0f} s", flush=True)


def flat(settings: Iterable) -> list[str]:
    """Settings as one list; those of a YAML anchor are a list within the list."""
    return [each for one in settings for each in ([one] if isinstance(one, str) else flat(one))]


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _changed(folder: Path, name: str, then: list[str], now: list[str]) -> int:
    """Says which settings differ; the exit code."""
    before, after = sorted(set(then) - set(now)), sorted(set(now) - set(then))
    print(
        f"error: {folder}: stage {name!r} finished with {' '.join(before) or 'fewer settings'}, now it has "
        f"{' '.join(after) or 'fewer settings'}; use another output folder, or delete this one to begin anew",
        file=sys.stderr,
    )
    return 2
