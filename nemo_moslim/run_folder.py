"""Where a run keeps its checkpoints, and which one stands for the run. Paths only: nothing heavy is imported.

    RUN/checkpoints/step=000100/   weights/ (megatron-core distributed checkpoint) and context/: NeMo 2's layout
    RUN/checkpoints/best.json      {"checkpoint": "step=000100", "metric": "score", "value": 0.61}, where one is marked

A checkpoint is written under a name that starts with a dot and renamed when it is complete, so one that was cut short
is never seen.
"""

import json
import os
import shutil
from pathlib import Path

UNFINISHED = ".unfinished-"


def checkpoints_folder(run_dir: str | Path) -> Path:
    """RUN/checkpoints."""
    return Path(run_dir) / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step={step:06d}"


def step_of(checkpoint: Path) -> int:
    """Updates behind a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step=").split("-")[0])


def list_checkpoints(run_dir: str | Path, with_optimizer: bool = False) -> list[Path]:
    """Complete checkpoints of a run in order of step; with_optimizer: only those that training can resume from."""
    found = [p for p in checkpoints_folder(run_dir).glob("step=*") if (p / "weights").is_dir()]
    if with_optimizer:
        found = [p for p in found if "-" not in p.name]
    return sorted(found, key=lambda p: (step_of(p), p.name))


def best_record(run_dir: str | Path) -> dict | None:
    """The content of best.json if the checkpoint it names is there."""
    path = checkpoints_folder(run_dir) / "best.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if (checkpoints_folder(run_dir) / record["checkpoint"] / "weights").is_dir() else None


def mark_best(run_dir: str | Path, checkpoint: str, metric: str, value: float) -> None:
    """Name the checkpoint that stands for the run; written whole or not at all."""
    write_atomically(
        checkpoints_folder(run_dir) / "best.json",
        json.dumps({"checkpoint": checkpoint, "metric": metric, "value": value}) + "\n",
    )


def is_better(value: float, record: dict | None, metric: str) -> bool:
    """Whether a checkpoint with this value of `metric` is better than that of a `best_record`; a lower loss is."""
    if record is None or record["metric"] != metric:
        return True
    return value < record["value"] if metric == "loss" else value > record["value"]


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a RUN, or RUN/checkpoints/NAME, stands for: the best where one is marked, else the last.

    Raises:
        ValueError: nothing complete is there.
    """
    path = Path(path)
    if (path / "weights").is_dir() and (path / "context").is_dir():
        return path
    if record := best_record(path):
        return checkpoints_folder(path) / record["checkpoint"]
    if found := list_checkpoints(path):
        return found[-1]
    raise ValueError(
        f"{path}: no complete checkpoint (expected {path}/checkpoints/step=…/weights); is it a run directory?"
    )


def is_run(path: str | Path) -> bool:
    """True for a run directory or one of its checkpoints (as opposed to a Hugging Face folder)."""
    return (Path(path) / "checkpoints").is_dir() or (Path(path) / "weights").is_dir()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_cost(output: str | Path, seconds: float, ranks: int, answers: int) -> None:
    """What a file of answers took, beside it: FILE.summary.json. Model loading and start-up are not in the seconds."""
    summary = {"answers": answers, "seconds": round(seconds, 3), "ranks": ranks}
    text = json.dumps({**summary, "device_seconds": round(seconds * ranks, 3)}, indent=2) + "\n"
    write_atomically(Path(output).with_suffix(".summary.json"), text)


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves no half of it under its name."""
    doomed = checkpoint.with_name(UNFINISHED + checkpoint.name)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_old_checkpoints(run_dir: str | Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints, and the best where one is marked."""
    record = best_record(run_dir)
    for old in list_checkpoints(run_dir)[:-keep]:
        if not record or old.name != record["checkpoint"]:
            remove_checkpoint(old)
