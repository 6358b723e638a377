"""Forward passes over many rows, in any layout; the reward model's probabilities and the rewards they map to.

Shapes: R rows, N heads (preference dimensions), C classes (the sum of all heads' levels).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import lcm
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.config import BatchConfig
from nemo_moslim.data.chat import ChatEncoder, Prompt, load_tokenizer
from nemo_moslim.data.length_batches import evaluation_batches, rank_share
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.shared_prompts import AnswersTogether
from nemo_moslim.functional.classification import probabilities
from nemo_moslim.functional.reward_mapping import map_rewards
from nemo_moslim.models.layer_spec import shares_prompts
from nemo_moslim.models.reward_model import (
    RewardModel,
    mapping_statistics,
    reward_model_step,
    reward_sums,
)
from nemo_moslim.models.summed_loss import SummedLossModel
from nemo_moslim.parallel.layout import from_last_stage, sum_over_data_ranks
from nemo_moslim.parallel.layout_checks import dtype_multiple
from nemo_moslim.rollout.scorer import Scores, asked_levels, most_likely_levels


def unwrapped(model: SummedLossModel) -> torch.nn.Module:
    """The megatron module inside NeMo's model and the wrappers of precision and data parallelism."""
    module = model.module
    while hasattr(module, "module"):
        module = module.module
    return module


def forward_micro_batches(
    module: torch.nn.Module,
    micro_batches: list,
    collect: Callable[[object, Tensor], dict],
    max_length: int,
    forward: Callable[[torch.nn.Module, object], Tensor] = reward_model_step,
) -> list[dict]:
    """Run micro-batches through megatron-core's forward-only schedule; `forward` is the model's forward step.

    Returns:
        On the last pipeline stage, `collect(batch, output)` of every micro-batch, in order; elsewhere an empty list.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(iterator: Iterator, stage: torch.nn.Module):
        batch = next(iterator).to_device()
        output = forward(stage, batch)

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


def micro_batches_per_pass() -> int:
    """Micro-batches that a rank's forward passes take at a time: enough for every pipeline stage to have work."""
    from megatron.core import parallel_state

    stages = parallel_state.get_pipeline_model_parallel_world_size()
    return 1 if stages == 1 else 4 * stages


def rank_batches(dataset, global_size: int, micro_size: int) -> Iterator[tuple[np.ndarray, list]]:
    """This data-parallel rank's share of every global batch of a data set: row indices (-1: filler) and batches."""
    from megatron.core import parallel_state

    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for batch in evaluation_batches(dataset.lengths, global_size, micro_size):
        share = rank_share(batch, rank, ranks)
        yield share, [dataset.batch(rows) for rows in share]


def validation_sums(model: RewardModel, dataset: RewardDataset | AnswersTogether, batch: BatchConfig) -> Tensor:
    """`reward_sums` over a whole data set, all-reduced, on every rank: fp64 [model.sums_size]."""
    module, total = unwrapped(model), torch.zeros(model.sums_size, dtype=torch.float64, device="cuda")
    longest = int(dataset.lengths.max())

    def collect(rows, output: Tensor) -> dict:
        return {"sums": reward_sums(output, rows, model.config)[2]}

    for _, micro_batches in rank_batches(dataset, batch.global_size, batch.micro_size):
        for kept in forward_micro_batches(module, micro_batches, collect, longest):
            total += kept["sums"]
    return from_last_stage(sum_over_data_ranks(total))


def score_rows(model: RewardModel, dataset: RewardDataset, micro_size: int) -> Tensor:
    """Probabilities of every row of a data set, on every rank: fp32 [R, C], in the data set's order."""
    from megatron.core import parallel_state

    module, config = unwrapped(model), model.config
    module.eval()
    scores = torch.zeros(len(dataset), sum(config.levels), device="cuda")

    def collect(rows, output: Tensor) -> dict:
        return {"p": probabilities(output, config.levels, config.loss)}

    longest = int(dataset.lengths.max())
    if shares_prompts():
        together = AnswersTogether.build(dataset, micro_size)
        dataset = together if together.blocks < len(dataset) else dataset
    global_size = micro_size * micro_batches_per_pass() * parallel_state.get_data_parallel_world_size()
    for share, micro_batches in rank_batches(dataset, global_size, micro_size):
        passed = forward_micro_batches(module, micro_batches, collect, longest)
        for indices, kept in zip(share, passed, strict=False):  # nothing is kept before the last stage
            rows = torch.from_numpy(indices)
            real = rows >= 0
            scores[rows[real]] = kept["p"][real].float()
    return from_last_stage(sum_over_data_ranks(scores))


class LocalRewardModel:
    """A reward model on this launch's ranks; it brings its own tokenizer and chat template."""

    def __init__(self, model: RewardModel, tokenizer: Path, micro_size: int, offload: bool):
        self.model, self.micro_size, self.offload = model, micro_size, offload
        self.schema = model.config.schema
        self.encoder = ChatEncoder(load_tokenizer(tokenizer))
        if offload:
            unwrapped(model).cpu()
            if torch.cuda.is_available():
                for tensor in _tensors(unwrapped(model)):
                    tensor.data = tensor.data.pin_memory()  # copies at the bus's speed

    def probabilities(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """fp32 [R, C] on every rank, and bool [R]: rows over the model's length, which lost text on the left.

        Prompts carry no preference tags. Every rank passes all rows.
        """
        config = self.model.config
        rows = [dict(prompt=p, response=r, labels={}) for p, r in zip(prompts, responses, strict=True)]
        splits = config.tensor_model_parallel_size if config.sequence_parallel else 1
        multiple = lcm(dtype_multiple("bf16" if config.bf16 else "fp32"), splits)
        dataset = RewardDataset.build(
            rows, self.schema, self.encoder, config.seq_length, "cut_response", multiple, origin="rollout"
        )
        with on_device(unwrapped(self.model), self.offload):
            return score_rows(self.model, dataset, self.micro_size), torch.from_numpy(dataset.rows.shortened)

    def start(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Callable[[], tuple[Tensor, Tensor]]:
        """As a service's, but computed at once: what could be computed meanwhile needs the same ranks."""
        p, shortened = self.probabilities(prompts, responses)
        found = p.cpu(), shortened
        return lambda: found


class LocalScorer:
    """MOSLIM's rewards: the levels that prompts ask for, mapped by Eq. 11."""

    def __init__(self, model: RewardModel, tokenizer: Path, normalize: str, micro_size: int, offload: bool):
        """
        Raises:
            ValueError: a deviation of Eq. 11 is under the model's floor, or was never measured.
        """
        self.average, self.deviation = _statistics(model)
        self.reward_model, self.normalize = LocalRewardModel(model, tokenizer, micro_size, offload), normalize
        self.schema = self.reward_model.schema

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], preferences: Sequence[dict[str, int]]
    ) -> Scores:
        """Scores of answers on every rank, which passes all rows; those over the model's length lose text on the left
        and are counted."""
        p, shortened = self.reward_model.probabilities(prompts, responses)
        asked, levels = asked_levels(preferences, self.schema).to(p.device), [d.levels for d in self.schema.dimensions]
        rewards, parts = map_rewards(p, asked, self.average, self.deviation, levels, self.normalize)
        found = rewards, parts, most_likely_levels(p, levels), p
        return Scores(*(values.cpu() for values in found), int(shortened.sum()))

    def start(
        self, prompts: Sequence[Prompt], responses: Sequence[str], preferences: Sequence[dict[str, int]]
    ) -> Callable[[], Scores]:
        """See `Scorer`; computed at once, as `LocalRewardModel.start`."""
        scores = self.score(prompts, responses, preferences)
        return lambda: scores


def _statistics(model: RewardModel) -> Tensor:
    """Average and deviation of Eq. 11 on every rank: fp32 [2, C]."""
    from megatron.core import parallel_state

    statistics = torch.zeros(2, model.config.schema.num_classes, device="cuda")
    if parallel_state.is_pipeline_last_stage():
        statistics = torch.stack(mapping_statistics(model.head, model.config)).contiguous()
    return from_last_stage(statistics)


@contextlib.contextmanager
def on_device(module: torch.nn.Module, offloaded: bool) -> Iterator[None]:
    """A model that lives on the host, and is not changed, is on the device inside the block."""
    if not offloaded:
        yield
        return
    tensors = _tensors(module)
    kept = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.cuda(non_blocking=True)
    try:
        yield
    finally:
        for tensor, on_host in zip(tensors, kept, strict=True):
            tensor.data = on_host


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
