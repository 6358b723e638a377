"""`statistics.mode=exact`: average and deviation of the probabilities (Eq. 11) in one pass over the training rows."""

import shutil

import lightning.pytorch as pl
import torch

from nemo_moslim.config import BatchConfig
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.functional.statistics import Moments, empty_statistics, exact_update
from nemo_moslim.models.initial_weights import load_weights, save_weights
from nemo_moslim.models.token_head import find_head
from nemo_moslim.parallel.layout import is_rank_zero
from nemo_moslim.rollout.score import unwrapped, validation_sums
from nemo_moslim.run_folder import UNFINISHED, best_record, checkpoints_folder, mark_best, resolve_checkpoint


def exact_statistics(trainer: pl.Trainer, run_dir: str, dataset: RewardDataset, batch: BatchConfig) -> None:
    """Give the run's checkpoint (best, else last) exact statistics, as a checkpoint NAME-exact that stands for the run.

    It holds weights and context without the optimizer; training resumes from the others.
    """
    checkpoint = resolve_checkpoint(run_dir)
    if checkpoint.name.endswith("-exact"):
        return
    model = trainer.lightning_module
    module = unwrapped(model)
    load_weights(module, checkpoint)
    module.cuda().eval()  # at the end of a fit Lightning has moved it to the host
    sums = validation_sums(model, dataset, batch)
    head = find_head(module)
    if head is not None:
        moments = Moments(*sums[-3 * sum(model.config.levels) :].view(3, -1))
        head.set_statistics(exact_update(empty_statistics(sum(model.config.levels), device=sums.device), moments))
    final = checkpoints_folder(run_dir) / f"{checkpoint.name}-exact"
    unfinished = final.with_name(UNFINISHED + final.name)
    if is_rank_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "weights").mkdir(parents=True)
    torch.distributed.barrier()
    save_weights(module, unfinished)
    if is_rank_zero():
        shutil.copytree(checkpoint / "context", unfinished / "context")
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        record = best_record(run_dir) or {"metric": "last", "value": 0.0}
        mark_best(run_dir, final.name, record["metric"], record["value"])
    torch.distributed.barrier()
