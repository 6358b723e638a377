"""When training writes checkpoints (where they lie: run_folder.py), and how it stops when told to."""

import queue
import shutil
import signal
from collections.abc import Collection
from pathlib import Path

import lightning.pytorch as pl

from nemo_moslim.checks import require
from nemo_moslim.parallel.layout import any_rank, is_rank_zero
from nemo_moslim.run_folder import (
    UNFINISHED,
    best_record,
    checkpoint_name,
    checkpoints_folder,
    is_better,
    mark_best,
    remove_old_checkpoints,
)


def write_in_this_process() -> None:
    """Spare the manager process through which megatron-core's writers report.

    It is spawned (seconds, and a copy of the main module) for saves in the background; those here are synchronous."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()


def check_monitor(monitor: str, metrics: Collection[str]) -> None:
    """ValueError if the metric that marks the best checkpoint is none of a validation's."""
    require(monitor in metrics, "trainer.monitor", monitor, "a metric of the validation: " + ", ".join(sorted(metrics)))


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
        prefix = "validation/"
        found = {k.removeprefix(prefix): v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        check_monitor(self.monitor, found)  # a dimension that no row labels has none
        value = float(found[self.monitor])
        better = is_better(value, best_record(self.run_dir), self.monitor)
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
            remove_old_checkpoints(self.run_dir, self.keep)
        trainer.strategy.barrier()


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
