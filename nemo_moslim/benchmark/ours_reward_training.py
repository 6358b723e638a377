"""what=rm: train_rm.py as it is, its steps timed in turns with those of transformers' Trainer."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from nemo_moslim.benchmark.contest import Contest
from nemo_moslim.benchmark.model_folders import untrained_reward_model
from nemo_moslim.benchmark.operators import ProfiledRounds
from nemo_moslim.benchmark.peer_process import UNLABELLED, Round
from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.checks import require
from nemo_moslim.config import RewardModelTrainingConfig, to_plain
from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
from nemo_moslim.data.ratings import read_ratings
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.shared_prompts import AnswersTogether
from nemo_moslim.functional.flops import causal_pairs
from nemo_moslim.parallel.layout import from_last_stage
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.training.supervised import train_reward_model


def write_task(config: BenchmarkConfig, training: RewardModelTrainingConfig, policy: Path, work: Path) -> None:
    """task.json and rows.npz for the peer: the rows that train_rm.py reads, encoded by our tokenizer.

    Raises:
        ValueError: a loss or a label distribution that the peer's loss does not have, or rows that cannot be used.
    """
    require(training.loss == "per_head", "loss", training.loss, "per_head: the peer's loss is that of Eq. 6-9")
    schema = PreferenceSchema.from_dict(to_plain(training.preferences))
    encoder, file = ChatEncoder(load_tokenizer(policy)), Path(config.data) / "train.jsonl"
    data = RewardDataset.build(
        read_ratings(file, schema), schema, encoder, training.model.max_length, training.batch.long_rows, 8, str(file)
    )
    levels = [dimension.levels for dimension in schema.dimensions]
    if not bool(((data.targets == 0) | (data.targets == 1)).all()):
        raise ValueError(f"{file}: a label distribution; what=rm compares on single levels")
    chosen = torch.stack([head.argmax(-1) for head in data.targets.split(levels, -1)], -1)
    labels = chosen.masked_fill(~data.label_mask, UNLABELLED)
    np.savez(work / "rows.npz", tokens=data.rows.tokens, offsets=data.rows.offsets, labels=labels.numpy())
    task = {
        "what": "rm",
        "reward": str(untrained_reward_model(policy, sum(levels), training.trainer.seed, work)),
        "levels": levels,
        "pad_id": encoder.pad_id,
        "dtype": "float32" if training.precision == "fp32" else "bfloat16",
        "steps": config.steps,
        "seed": config.seed,
        "training": {
            "global_size": training.batch.global_size,
            "lr": training.optimizer.lr,
            "clip_grad": training.optimizer.clip_grad,
        },
    }
    (work / "task.json").write_text(json.dumps(task))


@dataclass
class StepsInTurns(pl.Callback):
    """After the first step both sides' losses are compared; then `steps` of ours, a turn of the peer, and so on.

    A turn's time runs from the end of the step before it to the end of its last step: everything that a training does.
    """

    make_contest: Callable[[], Contest | ProfiledRounds]
    steps: int

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, *args) -> None:
        step = trainer.global_step
        if step == 1:
            self.contest = self.make_contest()
            self._compare_first_step(trainer, pl_module)
            self.contest.begin()
        elif (step - 1) % self.steps:
            return
        elif not self.contest.take(self._round(trainer, step)):
            trainer.should_stop = True
            trainer.limit_val_batches = 0
        self._watch = Stopwatch()

    def _round(self, trainer: pl.Trainer, step: int) -> Round:
        spent, data = self._watch.read(), trainer.datamodule
        rows = [row for taken in range(step - self.steps, step) for row in data.plan.step(taken).flatten()]
        train = data.train.rows if isinstance(data.train, AnswersTogether) else data.train
        lengths, items = train.lengths[rows].tolist(), len(rows)
        return Round(**spent, tokens=sum(lengths), items=items, pairs=sum(map(causal_pairs, lengths)), read=items)

    def _compare_first_step(self, trainer: pl.Trainer, pl_module) -> None:
        sums = pl_module.training_sums
        if sums is None:
            sums = torch.zeros(pl_module.sums_size, dtype=torch.float64, device="cuda")
        loss_sum, count = from_last_stage(sums)[:2].tolist()
        theirs = self.contest.check(rows=trainer.datamodule.plan.step(0).flatten().tolist())
        if theirs:
            self.contest.compare("loss", [loss_sum / count], [theirs["loss"]])


def run(
    config: BenchmarkConfig, training: RewardModelTrainingConfig, make_contest: Callable[[int], Contest]
) -> Contest | ProfiledRounds:
    """Train for as many steps as the rounds take; the contest, finished."""
    callback = StepsInTurns(lambda: make_contest(training.batch.global_size), config.steps)
    train_reward_model(training, [callback])
    return callback.contest
