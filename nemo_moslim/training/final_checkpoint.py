"""What a reward model's training makes of its checkpoints at its end: their mean, and exact statistics.

The checkpoints made here hold weights and context without the optimizer; training resumes from the others.
"""

import shutil
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch

from nemo_moslim.config import RewardModelTrainingConfig
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.functional.statistics import Moments, empty_statistics, exact_update
from nemo_moslim.models.initial_weights import load_weights, save_weights
from nemo_moslim.models.reward_model import RewardModel
from nemo_moslim.models.token_head import find_head
from nemo_moslim.models.weight_mixing import mix
from nemo_moslim.parallel.layout import any_rank, is_rank_zero
from nemo_moslim.rollout.score import unwrapped, validation_sums
from nemo_moslim.run_folder import (
    UNFINISHED,
    best_record,
    is_better,
    list_checkpoints,
    mark_best,
    resolve_checkpoint,
)

AVERAGED, EXACT = "-averaged", "-exact"


def make_final_checkpoints(
    trainer: pl.Trainer, config: RewardModelTrainingConfig, train: RewardDataset, validation: RewardDataset
) -> None:
    """After the last step: `average_checkpoints` first, then `statistics.mode=exact` for what stands for the run."""
    model = trainer.lightning_module
    unwrapped(model).cuda().eval()  # at the end of a fit Lightning has moved it to the host
    if config.average_checkpoints:
        average_checkpoints(model, config, train, validation)
    if config.statistics.mode == "exact":
        checkpoint = resolve_checkpoint(config.run_dir)
        if not checkpoint.name.endswith((AVERAGED, EXACT)):
            load_weights(unwrapped(model), checkpoint)
            measure_statistics(model, config, train)
            final = save_beside(model, checkpoint, EXACT)
            record = best_record(config.run_dir) or {"metric": "last", "value": 0.0}
            stands_for_the_run(final, record["metric"], record["value"])


def average_checkpoints(
    model: RewardModel, config: RewardModelTrainingConfig, train: RewardDataset, validation: RewardDataset
) -> None:
    """NAME-averaged: the mean of the newest checkpoints' weights (Izmailov et al. 2018), with exact statistics.

    It stands for the run where `trainer.monitor` is better than that of the best single checkpoint. NAME is the newest.
    """
    newest = list_checkpoints(config.run_dir, with_optimizer=True)[-config.average_checkpoints :]
    record = best_record(config.run_dir)
    if record and record["checkpoint"] == newest[-1].name + AVERAGED:
        return  # otherwise it is made again: a kill may have come between its name and its mark
    loads = [partial(load_weights, checkpoint=checkpoint) for checkpoint in newest]
    mix(unwrapped(model), loads, [1 / len(newest)] * len(newest))
    measure_statistics(model, config, train)
    final = save_beside(model, newest[-1], AVERAGED)
    monitor = config.trainer.monitor
    value = model.metrics(validation_sums(model, validation, config.batch))[monitor]
    better = any_rank(is_rank_zero() and is_better(value, best_record(config.run_dir), monitor))
    if better:
        stands_for_the_run(final, monitor, value)
    if is_rank_zero():
        chosen = "stands for the run" if better else "no better than the best checkpoint, which stands for the run"
        print(f"mean of {len(newest)} checkpoints: validation {monitor} {value:.4f}, {chosen}", flush=True)


def measure_statistics(model: RewardModel, config: RewardModelTrainingConfig, train: RewardDataset) -> None:
    """Average and deviation of the probabilities (Eq. 11) in one pass over the training rows, into the model."""
    sums = validation_sums(model, train, config.batch)
    head = find_head(unwrapped(model))
    if head is not None:
        classes = sum(model.config.levels)
        moments = Moments(*sums[-3 * classes :].view(3, -1))
        head.set_statistics(exact_update(empty_statistics(classes, device=sums.device), moments))


def save_beside(model: RewardModel, checkpoint: Path, suffix: str) -> Path:
    """The model as a checkpoint with the context of another one, under its name and a suffix; a collective."""
    final = checkpoint.with_name(checkpoint.name + suffix)
    unfinished = final.with_name(UNFINISHED + final.name)
    if is_rank_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "weights").mkdir(parents=True)
    torch.distributed.barrier()
    save_weights(unwrapped(model), unfinished)
    if is_rank_zero():
        shutil.copytree(checkpoint / "context", unfinished / "context")
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
    torch.distributed.barrier()
    return final


def stands_for_the_run(checkpoint: Path, metric: str, value: float) -> None:
    """Mark it as the best; a collective."""
    if is_rank_zero():
        mark_best(checkpoint.parent.parent, checkpoint.name, metric, value)
    torch.distributed.barrier()
