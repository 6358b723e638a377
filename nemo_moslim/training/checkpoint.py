"""Checkpoints of a run: where they lie, which one stands for the run, and when training writes one.

    RUN/checkpoints/step=000100/   weights/ (megatron-core distributed checkpoint) and context/: NeMo 2's layout
    RUN/checkpoints/best.json      {"checkpoint": "step=000100", "metric": "score", "value": 0.61}, where one is marked

A checkpoint is written under a name that starts with a dot and renamed when it is complete, so one that was cut short
is never seen.
"""

import json
import os
import queue
import shutil
import signal
from pathlib import Path

import lightning.pytorch as pl

from nemo_moslim.parallel.layout import any_rank, is_rank_zero

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
    temporary.write_text(text)
    temporary.replace(path)


def write_in_this_process() -> None:
    """Spare the manager process through which megatron-core's writers report.

    It is spawned (seconds, and a copy of the main module) for saves in the background; those here are synchronous."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()


class RunCheckpoint(pl.Callback):
    """Writes checkpoints every `every` steps, at the end, and when the process is told to stop; keeps the best.

    Where a step is also a validation step the checkpoint is written after it, so that its metric is known.
    """

    def __init__(self, run_dir: str, every: int, validate_every: int, keep: int, monitor: str):
        self.run_dir, self.every, self.validate_every = Path(run_dir), every, validate_every
        self.keep, self.monitor = keep, monitor
        self._saved_step = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = checkpoints_folder(self.run_dir)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(leftover)
        write_in_this_process()
        trainer.strategy.barrier()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        # A checkpoint holds a finished step and its validation. Lightning would repeat a part of the validation.
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step % self.validate_every:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *args) -> None:
        step = trainer.global_step
        if trainer.sanity_checking or step == 0:
            return
        better = self._is_better(trainer)
        if step % self.every == 0 or better:
            self.save(trainer, best=better)
        self._remove_old(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer)
        self._remove_old(trainer)

    def _is_better(self, trainer: pl.Trainer) -> bool:
        value = float(trainer.callback_metrics[f"validation/{self.monitor}"])
        record = best_record(self.run_dir)
        if record and record["metric"] != self.monitor:
            record = None
        lower_is_better = self.monitor == "loss"
        better = record is None or (value < record["value"] if lower_is_better else value > record["value"])
        return any_rank(better and trainer.is_global_zero)

    def save(self, trainer: pl.Trainer, best: bool = False) -> None:
        """Write the state after the current step, and mark it as the best of the run if it is; a collective."""
        from nemo.lightning.io.pl import TrainerContext

        name = checkpoint_name(trainer.global_step)
        final = checkpoints_folder(self.run_dir) / name
        unfinished = final.with_name(UNFINISHED + name)
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            TrainerContext.from_trainer(trainer).io_dump(unfinished / "context", yaml_attrs=["model"])
            shutil.rmtree(final, ignore_errors=True)
            if best:  # before the checkpoint has its name: a kill in between must not leave it unmarked
                value = float(trainer.callback_metrics[f"validation/{self.monitor}"])
                mark_best(self.run_dir, name, self.monitor, value)
            unfinished.rename(final)
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step

    def _remove_old(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            record = best_record(self.run_dir)
            kept = {record["checkpoint"]} if record else set()
            for old in list_checkpoints(self.run_dir)[: -self.keep]:
                if old.name not in kept:
                    remove_checkpoint(old)
        trainer.strategy.barrier()


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves no half of it under its name."""
    doomed = checkpoint.with_name(UNFINISHED + checkpoint.name)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


class StopOnSignal(pl.Callback):
    """On SIGTERM (any rank) training stops at the end of the step, whose checkpoint is written on the way out."""

    def __init__(self):
        self.stopped = False
        self._received = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not earlier: after on_fit_start Lightning registers a handler that ends the fit without a checkpoint
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        self._received = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args) -> None:
        if any_rank(self._received):
            self.stopped = True
            trainer.should_stop = True
            if trainer.global_step % trainer.val_check_interval:
                trainer.limit_val_batches = 0  # Lightning would validate once more, where an uninterrupted run does not
            if is_rank_zero():
                print(
                    f"stopping at step {trainer.global_step}: told to (SIGTERM); the same command resumes", flush=True
                )
