"""The stages of a comparison: commands with a folder each, named after what decides their outcome.

A stage's folder is stages/NAME-DIGEST, the digest of its script, its settings, what they compose to with conf/,
the content of the files from outside that it reads, and the package's version. Settings name the folders of earlier
stages, so that a change anywhere gives new folders from there on, methods that need the same stage share it, and what
is finished is never run again. Several processes may execute one study: each takes the next stage that is ready and
that no other one is running.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nemo_moslim import __version__
from nemo_moslim.cli import compose_config
from nemo_moslim.run_folder import write_atomically
from nemo_moslim.stages import Recipe

COST_FILE = "summary.json"  # of a training run, or beside what another command writes
PATH_KEYS = ("data", "tokenizer", "model.init", "policy", "reward", "input", "points", "offline", "exclude")
OPEN_KEYS = ("preferences", "fields")
POLL_SECONDS = 2.0  # between looks at whether another process has finished what the waiting stages need
KINDS = ("data", "language model", "reward model", "policy", "sampling and scoring", "evaluation")


@dataclass(frozen=True)
class Stage:
    """One command."""

    folder: Path
    kind: str  # of KINDS: what its cost counts as
    script: str
    settings: tuple[str, ...]
    ranks: int  # 0: without torchrun
    composed: dict[str, Any] = field(compare=False)  # all settings, the yaml files' among them, without the output


def digest_of(script: str, settings: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """What a stage's folder is named after, and all its settings.

    Args:
        settings: of examples/SCRIPT, with paths of the study relative to it.

    Raises:
        ValueError: settings that the script does not have.
    """
    composed = composed_settings(script, settings)
    inputs = (composed["input"] or []) if script == "prepare_data.py" else []  # others read the study's own files
    contents = [content(Path(path)) for path in ([inputs] if isinstance(inputs, str) else inputs)]
    decisive = json.dumps([__version__, script, settings, composed, contents], sort_keys=True)
    return hashlib.blake2b(decisive.encode(), digest_size=5).hexdigest(), composed


@cache
def composed_settings(script: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """The settings that an entry point sees."""
    from omegaconf import OmegaConf

    command = script.removesuffix(".py")
    return OmegaConf.to_container(compose_config(command, settings, path_keys=PATH_KEYS, open_keys=OPEN_KEYS))


@cache
def content(file: Path) -> list[Any] | None:
    """Size and hash of a file; None for what is none."""
    if not file.is_file():
        return None
    read = file.read_bytes()
    return [len(read), hashlib.blake2b(read).hexdigest()]


class Study:
    """Collects stages while methods describe what they need, then runs them in that order."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks = folder, ranks
        self.stages: dict[Path, Stage] = {}

    def stage(
        self, name: str, kind: str, script: str, *settings: str, output: str = "run_dir", file: str = "", ranks: int = 0
    ) -> Path:
        """Ask for a stage and get what it will write: its folder, or a file in it.

        Args:
            settings: of examples/SCRIPT, without the one that names the output.
            output: the setting that takes the folder (or the file).
            ranks: launched with torchrun on so many; 0: without.
        """
        assert kind in KINDS, kind
        settings = tuple(str(setting) for setting in settings)
        digest, composed = digest_of(script, tuple(s.replace(f"{self.folder}/", "") for s in settings))
        folder = self.folder / "stages" / f"{name}-{digest}"
        target = folder / file if file else folder
        self.stages.setdefault(folder, Stage(folder, kind, script, (*settings, f"{output}={target}"), ranks, composed))
        return target

    def file(self, name: str, content: object) -> Path:
        """Write a small JSON file that a stage reads, named after its content."""
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        digest = hashlib.blake2b(text.replace(f"{self.folder}/", "").encode(), digest_size=5).hexdigest()
        path = self.folder / "specifications" / f"{name}-{digest}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return path

    def needed_by(self, target: Path) -> list[Stage]:
        """The stage that writes a target, and all that its settings name, in the order in which they run."""
        needed: dict[Path, Stage] = {}

        def add(text: str) -> None:
            for folder, stage in self.stages.items():
                if str(folder) in text and folder not in needed:
                    needed[folder] = stage
                    for setting in stage.settings[:-1]:
                        add(setting)
                        file = Path(setting.partition("=")[2])
                        if file.parent == self.folder / "specifications":
                            add(file.read_text())

        add(str(target))
        return [stage for stage in self.stages.values() if stage.folder in needed]

    def execute(self) -> None:
        """Run every stage that is not finished, each after those that it reads; processes that execute one study share.

        Raises:
            SystemExit: a stage failed; the same call goes on from there.
        """
        recipe = Recipe(self.folder, stages=len(self.stages))
        inputs = {stage.folder: {needed.folder.name for needed in self.needed_by(stage.folder)} - {stage.folder.name}
                  for stage in self.stages.values()}  # fmt: skip
        waiting, told = list(self.stages.values()), False
        while waiting:
            finished = recipe.seconds.keys()
            ready = [stage for stage in waiting if stage.folder.name in finished or inputs[stage.folder] <= finished]
            taken = next((stage for stage in ready if self._run(recipe, stage)), None)
            if taken:
                waiting.remove(taken)
                told = False
            else:
                if not told:
                    print(f"waiting for another process: {len(waiting)} stages left, none that can begin", flush=True)
                told = True
                time.sleep(POLL_SECONDS)

    def _run(self, recipe: Recipe, stage: Stage) -> bool:
        """Run a stage, unless another process is at it: then False."""
        stage.folder.parent.mkdir(parents=True, exist_ok=True)
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        try:
            with FileLock(locks / stage.folder.name, blocking=False):  # ends with the process that holds it
                recipe.run(stage.folder.name, stage.script, *stage.settings, ranks=stage.ranks)
        except Timeout:
            return False
        return True

    def summary(self, stage: Stage) -> dict[str, Any]:
        """What a stage reports of itself: a training's summary.json, or the one beside its output; {} for none."""
        files = sorted(stage.folder.glob(f"*{COST_FILE}"))
        return json.loads(files[0].read_text()) if files else {}

    def cost(self, stages: Iterable[Stage]) -> dict[str, float]:
        """Device-seconds by kind of stage, their sum, and answers sampled.

        A training counts what its summary.json does: its steps, on all ranks; other stages what they report beside
        their output, else their whole time.
        """
        seconds: Counter[str] = Counter()
        answers, walls = 0, Recipe(self.folder, stages=0).seconds
        for stage in stages:
            if summary := self.summary(stage):
                seconds[stage.kind] += summary["device_seconds"]
                answers += summary.get("answers", 0)
            else:
                seconds[stage.kind] += walls.get(stage.folder.name, 0.0) * max(stage.ranks, 1)
        return {**seconds, "all": sum(seconds.values()), "answers": answers}
