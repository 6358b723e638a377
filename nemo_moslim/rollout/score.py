"""Forward passes of a reward model over many rows, in any layout: probabilities for evaluation and for rewards."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.config import BatchConfig
from nemo_moslim.data.length_batches import evaluation_batches, rank_share
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.functional.classification import probabilities
from nemo_moslim.models.reward_model import RewardModel, answer_logits, reward_model_step, reward_sums
from nemo_moslim.parallel.layout import from_last_stage, sum_over_data_ranks


def unwrapped(model: RewardModel) -> torch.nn.Module:
    """The megatron module inside NeMo's model and the wrappers of precision and data parallelism."""
    module = model.module
    while hasattr(module, "module"):
        module = module.module
    return module


def forward_micro_batches(
    module: torch.nn.Module, micro_batches: list, collect: Callable[[object, Tensor], dict], max_length: int
) -> list[dict]:
    """Run micro-batches through megatron-core's forward-only schedule.

    Returns:
        On the last pipeline stage, `collect(batch, output)` of every micro-batch, in order; elsewhere an empty list.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(iterator: Iterator, stage: torch.nn.Module):
        batch = next(iterator).to_device()
        output = reward_model_step(stage, batch)

        def keep(output: Tensor, non_loss_data: bool = False):
            return collect(batch, output)

        return output, keep

    with torch.no_grad():
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=[module],
            num_microbatches=len(micro_batches),
            seq_length=max_length,
            micro_batch_size=len(micro_batches[0]),
            forward_only=True,
            collect_non_loss_data=True,
        )


def _rank_batches(dataset: RewardDataset, global_size: int, micro_size: int) -> Iterator[tuple[np.ndarray, list]]:
    from megatron.core import parallel_state

    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for batch in evaluation_batches(dataset.lengths, global_size, micro_size):
        share = rank_share(batch, rank, ranks)
        yield share, [dataset.batch(rows) for rows in share]


def validation_sums(model: RewardModel, dataset: RewardDataset, batch: BatchConfig) -> Tensor:
    """`reward_sums` over a whole data set, all-reduced, on every rank: fp64 [model.sums_size]."""
    module, total = unwrapped(model), torch.zeros(model.sums_size, dtype=torch.float64, device="cuda")

    def collect(rows, output: Tensor) -> dict:
        return {"sums": reward_sums(answer_logits(output, rows.last_index), rows, model.config)[2]}

    for _, micro_batches in _rank_batches(dataset, batch.global_size, batch.micro_size):
        for kept in forward_micro_batches(module, micro_batches, collect, dataset.rows.lengths.max()):
            total += kept["sums"]
    return from_last_stage(sum_over_data_ranks(total))


def score_rows(model: RewardModel, dataset: RewardDataset, micro_size: int) -> Tensor:
    """Probabilities of every row of a data set, on every rank: fp32 [R, C], in the data set's order."""
    from megatron.core import parallel_state

    module, config = unwrapped(model), model.config
    module.eval()
    scores = torch.zeros(len(dataset), sum(config.levels), device="cuda")

    def collect(rows, output: Tensor) -> dict:
        return {"p": probabilities(answer_logits(output, rows.last_index), config.levels, config.loss)}

    global_size = micro_size * parallel_state.get_data_parallel_world_size()
    for share, micro_batches in _rank_batches(dataset, global_size, micro_size):
        for rows, kept in zip(
            share, forward_micro_batches(module, micro_batches, collect, max(dataset.lengths)), strict=False
        ):
            real = torch.from_numpy(rows >= 0)
            scores[torch.from_numpy(rows)[real]] = kept["p"][real].float()
    return from_last_stage(sum_over_data_ranks(scores))
