"""What a policy run leaves to read: metrics.jsonl, samples.jsonl, TensorBoard, W&B, a live line."""

import json
import sys
from pathlib import Path

from nemo_moslim.parallel.layout import is_rank_zero
from nemo_moslim.training.experiment_loggers import close_loggers
from nemo_moslim.training.telemetry import cut_metrics


class RunLog:
    """Writes on rank 0 and does nothing elsewhere."""

    def __init__(self, run_dir: str, step: int, max_steps: int, log_every: int, loggers: list):
        self.max_steps, self.log_every, self.loggers, self._progress = max_steps, log_every, loggers, None
        self._run_dir = Path(run_dir)
        if not is_rank_zero():
            return
        from rich.console import Console

        for name in ("metrics.jsonl", "samples.jsonl"):
            cut_metrics(self._run_dir / name, step or -1)  # step 0: a row of its own, written again
        self.console = Console(stderr=sys.stderr.isatty())
        if sys.stderr.isatty():
            self._start_progress(step)

    def _start_progress(self, step: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self._progress = Progress(*columns, console=self.console)
        self._task = self._progress.add_task("policy", total=self.max_steps, completed=step)
        self._progress.start()

    def phase(self, name: str) -> None:
        """Show what the current step is doing."""
        if self._progress:
            self._progress.update(self._task, description=name)

    def write(self, row: dict) -> None:
        """One object per step; a line on the terminal every `log_every` steps and with a validation."""
        if not is_rank_zero():
            return
        with (self._run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        flat = {f"train/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        flat |= {f"seconds/{k}": v for k, v in row["seconds"].items()}
        flat |= {f"validation/{k}": v for k, v in row.get("validation", {}).items()}
        for logger in self.loggers:
            logger.log_metrics(flat, row["step"])
        if self._progress:
            self._progress.update(self._task, completed=row["step"])
        if row["step"] % self.log_every == 0 or "validation" in row:
            self._print(row)

    def _print(self, row: dict) -> None:
        text = f"step {row['step']}/{self.max_steps}"
        if "reward" in row:
            text += f"  reward {row['reward']:.3f}  {_followed(row)}  kl {row['kl']:.2f}  length {row['length']:.0f}"
            text += f"  {row['seconds']['step']:.1f} s  {row['tokens_per_second']:,.0f} tokens/s sampled"
        if "validation" in row:
            text += f"  | validation reward {row['validation']['reward']:.3f}  {_followed(row['validation'])}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def samples(self, step: int, rows: list[dict], table) -> None:
        """Keep sample answers and show them."""
        if not is_rank_zero():
            return
        with (self._run_dir / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
        self.console.print(table)

    def close(self) -> None:
        """Stop the live line and flush the loggers."""
        if self._progress:
            self._progress.stop()
        close_loggers(self.loggers)


def _followed(metrics: dict) -> str:
    """Hit rate per dimension; mean level per dimension where no prompt asks for levels."""
    for title, prefix in (("hits", "hit_rate/"), ("levels", "level/")):
        values = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix) and "=" not in k}
        if values:
            return f"{title} " + " ".join(f"{name} {value:.2f}" for name, value in values.items())
    return ""
