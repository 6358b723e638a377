"""What lies in the folders that a report is made of: runs, results of evaluate.py, comparisons.

Reads files alone: nothing heavy is imported, and what another program is still writing does no harm.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SKIPPED = {"checkpoints", "context", "tensorboard", "export", "stages", "specifications", "tables", "__pycache__"}
DATA_MARKS = ("manifest.json", "config.json")  # prepared data or a tokenizer, a Hugging Face folder
KINDS = ("language model", "reward model", "policy", "pairs")  # of trainings, in the order in which they follow
DEPTH = 4  # folders below a given one that are looked at
LARGEST_RESULT = 20_000_000  # bytes of a JSON file that may be a result


@dataclass(frozen=True)
class Run:
    """A training run."""

    name: str
    kind: str  # of KINDS
    config: dict[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]  # of metrics.jsonl
    summary: dict[str, Any]  # {} while it has not ended


@dataclass(frozen=True)
class Control:
    """What task=controllability wrote."""

    name: str
    report: dict[str, Any]  # control.json
    answers: list[dict[str, Any]]  # answers.jsonl
    every_level: list[dict[str, Any]]  # every_level.jsonl: few prompts, each at every level of every dimension


@dataclass(frozen=True)
class Result:
    """A JSON file of another kind."""

    name: str
    content: dict[str, Any]


@dataclass
class Found:
    """Everything that the report can show, in the order of the folders given and of their names."""

    runs: list[Run] = field(default_factory=list)
    rewards: list[Result] = field(default_factory=list)  # of task=reward
    baselines: list[Result] = field(default_factory=list)  # of task=text_baseline
    controls: list[Control] = field(default_factory=list)
    benchmarks: list[Result] = field(default_factory=list)  # of task=benchmarks
    agreements: list[Result] = field(default_factory=list)  # of task=judge_agreement
    comparisons: list[Result] = field(default_factory=list)  # comparison.json, with its `config`
    stages: list[Result] = field(default_factory=list)  # seconds.json of recipes

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__dataclass_fields__)

    def of_kind(self, kind: str) -> list[Run]:
        """The runs of one kind."""
        return [run for run in self.runs if run.kind == kind]


def find(paths: Sequence[str]) -> Found:
    """Everything in the given run directories, folders of a recipe, of an evaluation or of a comparison, and files.

    Raises:
        ValueError: a path that is not there or holds nothing to report, or a damaged file.
    """
    found = Found()
    for path in map(Path, paths):
        before = sum(len(getattr(found, name)) for name in found.__dataclass_fields__)
        root = path.absolute()
        if not path.exists():
            raise ValueError(f"runs: {path} does not exist")
        for folder in _folders(path) if path.is_dir() else [path.parent]:
            inside = folder.absolute().relative_to(root if path.is_dir() else root.parent).as_posix()
            label = (root.name if path.is_dir() else root.parent.name) if inside == "." else inside
            if len(paths) > 1 and inside != "." and path.is_dir():
                label = f"{root.name}/{inside}"
            for file in sorted(folder.iterdir()) if path.is_dir() else [path]:
                _add(found, file, label)
        if before == sum(len(getattr(found, name)) for name in found.__dataclass_fields__):
            raise ValueError(
                f"runs: nothing to report in {path}: expected a run directory (config.yaml and metrics.jsonl), the "
                "folder of a recipe or comparison, or what evaluate.py wrote"
            )
    found.runs.sort(key=lambda run: KINDS.index(run.kind))
    return found


def _folders(root: Path) -> Iterator[Path]:
    """The folder and those below it that may hold something to report."""
    yield root
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop(0)
        for child in sorted(folder.iterdir()):
            is_data = child.is_dir() and any((child / mark).is_file() for mark in DATA_MARKS)
            if not child.is_dir() or child.name in SKIPPED or child.name.startswith(".") or is_data or depth == DEPTH:
                continue
            yield child
            pending.append((child, depth + 1))


def _add(found: Found, file: Path, label: str) -> None:
    """Sort a file by its name or content; files of other kinds are passed by."""
    name, folder = file.name, file.parent
    if name == "metrics.jsonl" and (folder / "config.yaml").is_file():
        found.runs.append(read_run(folder, label))
    elif name == "control.json":
        answers, every = (_read_lines(folder / f"{stem}.jsonl") for stem in ("answers", "every_level"))
        found.controls.append(Control(label, _read_object(file), answers, every))
    elif name == "benchmarks.json":
        found.benchmarks.append(Result(label, _read_object(file)))
    elif name == "agreement.json":
        found.agreements.append(Result(label, _read_object(file)))
    elif name == "comparison.json":
        config = folder / "config.yaml"
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        found.comparisons.append(Result(label, {"numbers": _read_object(file), "config": settings}))
    elif name == "seconds.json":
        found.stages.append(Result(label, _read_object(file)))
    elif name.endswith(".json") and not name.endswith("summary.json") and file.stat().st_size < LARGEST_RESULT:
        content = _read_json(file)
        result = Result(f"{label}/{file.stem}", content if isinstance(content, dict) else {})
        if {"intensity_accuracy", "preference_accuracy"} <= set(result.content):
            found.rewards.append(result)
        elif any(isinstance(entry, dict) and "baseline_accuracy" in entry for entry in result.content.values()):
            found.baselines.append(result)


def read_run(folder: Path, label: str) -> Run:
    """A run directory; a run that goes on has no summary yet.

    Raises:
        ValueError: a damaged file.
    """
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{folder}/config.yaml cannot be read: {error}") from error
    summary = _read_object(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    return Run(label, _kind(config), config, text, _read_lines(folder / "metrics.jsonl"), summary)


def _kind(config: dict[str, Any]) -> str:
    if "algorithm" in config:
        return "policy"
    if "preferences" in config and "statistics" in config:
        return "reward model"
    return "pairs" if "beta" in config else "language model"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _read_object(file: Path) -> dict[str, Any]:
    content = _read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Objects of a jsonl file; none where it is absent. A last line without its end is still being written."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):  # not splitlines: texts may hold other ends of lines
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from error
    return rows
