"""What a run leaves to read: metrics.jsonl (one object per step), TensorBoard, W&B, a live line, and summary.json."""

import json
import resource
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from nemo_moslim.parallel.layout import from_last_stage, is_rank_zero
from nemo_moslim.run_folder import write_atomically
from nemo_moslim.training.experiment_loggers import close_loggers
from nemo_moslim.versions import package_versions


def complete_lines(path: Path) -> list[str]:
    """The lines of a run's jsonl file, [] where there is none yet.

    A line ends at its line feed: a last one without it was cut short and is left out. Other line separators of Unicode
    stand unescaped inside answers.
    """
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []


def cut_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, which a resumed run writes again."""
    if path.is_file():
        kept = (line for line in complete_lines(path) if json.loads(line)["step"] <= step)
        write_atomically(path, "".join(line + "\n" for line in kept))


def read_metrics(run_dir: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, [] before its first step."""
    return [json.loads(line) for line in complete_lines(Path(run_dir) / "metrics.jsonl")]


def peak_memory_gigabytes() -> float:
    """Peak memory of this rank: of the device on a GPU, of the process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_memory_over_ranks() -> float:
    """The largest `peak_memory_gigabytes` of all ranks of the launch, on each of them."""
    peak = torch.tensor([peak_memory_gigabytes()], device="cuda")
    torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
    return float(peak)


class Telemetry(pl.Callback):
    """Collects a step's metrics from the last pipeline stage and writes them on rank 0."""

    def __init__(self, run_dir: str, validate_every: int, log_every: int, loggers: list):
        self.path = Path(run_dir) / "metrics.jsonl"
        self.validate_every, self.log_every, self.loggers = validate_every, log_every, loggers
        self.seconds = {"training": 0.0, "validation": 0.0}
        self.tokens = 0
        self._row: dict = {}
        self._progress = None

    def state_dict(self) -> dict:
        """Travels in the checkpoint, so that a resumed run's totals are those of the whole run."""
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state: dict) -> None:
        """See `state_dict`."""
        self.seconds, self.tokens = dict(state["seconds"]), state["tokens"]

    def on_train_start(self, trainer: pl.Trainer, pl_module) -> None:
        if is_rank_zero():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_metrics(self.path, trainer.global_step)
            self._file = self.path.open("a", encoding="utf-8")
            if sys.stderr.isatty():
                self._start_progress(trainer)

    def _start_progress(self, trainer: pl.Trainer) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("training", total=trainer.max_steps, completed=trainer.global_step)
        self._progress.start()

    def on_train_batch_start(self, trainer: pl.Trainer, *args) -> None:
        self._started = time.perf_counter()
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # before the schedule moves on

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *args) -> None:
        seconds = time.perf_counter() - self._started
        self.seconds["training"] += seconds
        step = trainer.global_step
        tokens = trainer.datamodule.step_tokens(step - 1)
        self.tokens += tokens
        if self._progress:
            self._progress.update(self._task, completed=step)
        if step % self.log_every and step % self.validate_every and step != trainer.max_steps:
            return
        sums = pl_module.training_sums
        if sums is None:
            sums = torch.zeros(pl_module.sums_size, dtype=torch.float64, device="cuda")
        self._row = {
            "step": step,
            **pl_module.metrics(from_last_stage(sums).cpu()),
            "grad_norm": float(trainer.callback_metrics["grad_norm"]),
            "lr": self._lr,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if step % self.validate_every:
            self._write(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module) -> None:
        pl_module.validation_sums = None
        self._validation_started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module) -> None:
        sums = pl_module.validation_sums
        if sums is None:
            sums = torch.zeros(pl_module.sums_size, dtype=torch.float64, device="cuda")
        metrics = pl_module.metrics(from_last_stage(sums).cpu())
        for name, value in metrics.items():
            pl_module.log(f"validation/{name}", value, rank_zero_only=False)
        self.seconds["validation"] += time.perf_counter() - self._validation_started
        self._row = {**self._row, "validation": metrics}
        if self._row.get("step") == trainer.global_step:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not is_rank_zero():
            return
        self._file.write(json.dumps(self._row, allow_nan=False) + "\n")
        self._file.flush()
        step = self._row["step"]
        flat = {f"train/{k}": v for k, v in self._row.items() if k not in ("step", "validation")}
        flat |= {f"validation/{k}": v for k, v in self._row.get("validation", {}).items()}
        for logger in self.loggers:
            logger.log_metrics(flat, step)
        self._print_line(trainer)

    def _print_line(self, trainer: pl.Trainer) -> None:
        row = self._row
        text = f"step {row['step']}/{trainer.max_steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}"
        text += f"  {row['tokens_per_second']:,.0f} tokens/s"
        if "validation" in row:
            shown = {k: v for k, v in row["validation"].items() if not k.startswith("macro") and k != "counted_tokens"}
            text += "  | validation " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
        if self._progress:
            self._progress.update(self._task, description=f"loss {row['loss']:.3f}")
        if self._progress is None:
            print(text, flush=True)
        elif "validation" in row:
            self._progress.console.print(text)

    def on_train_end(self, trainer: pl.Trainer, pl_module) -> None:
        if is_rank_zero():
            self._file.close()
            if self._progress:
                self._progress.stop()
        close_loggers(self.loggers)


def stopped_early(trainer: pl.Trainer) -> bool:
    """Early stopping has ended the run: its patience is spent."""
    stopping = trainer.early_stopping_callback
    return stopping is not None and stopping.wait_count >= stopping.patience


def write_summary(run_dir: str, trainer: pl.Trainer, telemetry: Telemetry, extra: dict) -> None:
    """summary.json: final metrics, seconds per phase, tokens per second, peak memory over ranks, versions."""
    peak = peak_memory_over_ranks()
    if not is_rank_zero():
        return
    rows = read_metrics(run_dir)
    validations = [row["validation"] for row in rows if "validation" in row]
    summary = {
        "steps": trainer.global_step,
        "finished": trainer.global_step >= trainer.max_steps or stopped_early(trainer),
        "train": {k: v for k, v in rows[-1].items() if k != "validation"} if rows else {},
        "validation": validations[-1] if validations else {},
        "seconds": {k: round(v, 3) for k, v in telemetry.seconds.items()},
        "tokens": telemetry.tokens,
        "tokens_per_second": round(telemetry.tokens / max(telemetry.seconds["training"], 1e-9), 1),
        "ranks": trainer.world_size,
        "device_seconds": round(sum(telemetry.seconds.values()) * trainer.world_size, 3),
        "peak_memory_gigabytes_per_rank": round(peak, 3),
        "versions": package_versions(),
        **extra,
    }
    write_atomically(Path(run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
