"""Reward-model training by transformers' Trainer: Qwen2ForSequenceClassification with our classes as its labels.

Shapes: B rows, S positions, N heads, C classes.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from nemo_moslim.benchmark.peer_models import DEVICE, load
from nemo_moslim.benchmark.peer_process import UNLABELLED
from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.functional.flops import causal_pairs


def head_losses(logits: Tensor, labels: Tensor, levels: list[int]) -> Tensor:
    """Sum over labelled (row, head) pairs of the cross-entropy inside the head (MOSLIM Eq. 6-9): scalar.

    Args:
        logits: [B, C], the heads side by side.
        labels: int64 [B, N], the level less one, or UNLABELLED.
    """
    pairs = zip(logits.float().split(levels, dim=-1), labels.T, strict=True)
    return sum(cross_entropy(head, label, ignore_index=UNLABELLED, reduction="sum") for head, label in pairs)


class RatedRows:
    """Encoded rows with their labels, as Trainer reads them."""

    def __init__(self, file: Path):
        stored = np.load(file)
        self.tokens, self.offsets, self.labels = stored["tokens"], stored["offsets"], stored["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        tokens = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return {"input_ids": tokens, "labels": self.labels[row]}


class Padding:
    """Collates rows to the longest of the batch, and counts what it has handed out."""

    def __init__(self, pad_id: int):
        self.pad_id, self.tokens, self.rows, self.pairs = pad_id, 0, 0, 0

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        tokens = np.full((len(rows), max(lengths)), self.pad_id, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : lengths[place]] = row["input_ids"]
        self.tokens, self.rows = self.tokens + sum(lengths), self.rows + len(rows)
        self.pairs += sum(map(causal_pairs, lengths))
        tokens, lengths = torch.from_numpy(tokens), torch.tensor(lengths)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        labels = torch.from_numpy(np.stack([row["labels"] for row in rows]))
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


class InTurns(TrainerCallback):
    """Trains `steps` steps per turn, batches included in the time; `counted` adds up `tokens`, `rows` and `pairs`."""

    def __init__(self, turn, counted, steps: int):
        self.turn, self.counted, self.steps = turn, counted, steps

    def _begin(self) -> bool:
        going_on = self.turn.wait()
        self._tokens, self._rows, self._pairs = self.counted.tokens, self.counted.rows, self.counted.pairs
        self._watch = Stopwatch()
        return going_on

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = not self._begin()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.steps:
            return
        spent = self._watch.read()
        tokens, rows = self.counted.tokens - self._tokens, self.counted.rows - self._rows
        self.turn.answer(**spent, tokens=tokens, items=rows, pairs=self.counted.pairs - self._pairs, read=rows)
        control.should_training_stop = not self._begin()


def steps_of_a_turn(rows: int, global_size: int, steps: int, by_length: bool) -> int:
    """Trainer's `group_by_length` sorts up to 50 steps' rows, longest first, so that a turn has to take all of them:
    its shorter answers alone would be another task. Otherwise `steps`."""
    return max(1, min(rows // (4 * global_size), 50)) if by_length else steps


class RewardTraining:
    """See `peer.Workload`."""

    def __init__(self, task: dict):
        self.task, self.rows = task, RatedRows(Path(task["folder"]) / "rows.npz")

    def _model(self) -> torch.nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(self.task["reward"], attn_implementation="sdpa")

    def check(self, rows: list[int]) -> dict:
        """The mean loss per label over these rows, in the task's dtype."""
        model, levels = load(AutoModelForSequenceClassification, self.task["reward"], self.task), self.task["levels"]
        total, count = 0.0, 0
        with torch.no_grad():
            for row in rows:
                batch = {k: v.to(DEVICE) for k, v in Padding(self.task["pad_id"])([self.rows[row]]).items()}
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                total += float(head_losses(logits, batch["labels"], levels))
                count += int((batch["labels"] != UNLABELLED).sum())
        return {"loss": total / count}

    def rounds(self, variant: dict, turn) -> None:
        """Train until the last turn."""
        task, levels = self.task, self.task["levels"]
        padding, training = Padding(task["pad_id"]), task["training"]
        steps = steps_of_a_turn(len(self.rows), training["global_size"], task["steps"], variant["sorted"])

        def loss(outputs, labels: Tensor, num_items_in_batch) -> Tensor:
            return head_losses(outputs.logits, labels, levels) / num_items_in_batch

        with tempfile.TemporaryDirectory() as folder:
            together = variant["batch_size"] * int(os.environ.get("WORLD_SIZE", "1"))
            arguments = TrainingArguments(
                folder,
                max_steps=10**6,
                per_device_train_batch_size=variant["batch_size"],
                gradient_accumulation_steps=training["global_size"] // together,
                group_by_length=variant["sorted"],
                learning_rate=training["lr"],
                lr_scheduler_type="constant",
                max_grad_norm=training["clip_grad"],
                bf16=task["dtype"] == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=task["seed"],
                remove_unused_columns=False,
            )
            trainer = Trainer(
                model=self._model(), args=arguments, train_dataset=self.rows, data_collator=padding,
                compute_loss_func=loss, callbacks=[InTurns(turn, padding, steps)],
            )  # fmt: skip
            trainer.train()
