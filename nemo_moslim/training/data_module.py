"""Feeds NeMo's Trainer: micro-batches of this data-parallel rank, from the step that training has reached."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader, IterableDataset

from nemo_moslim.config import BatchConfig
from nemo_moslim.data.length_batches import TrainingBatches, evaluation_batches, rank_share
from nemo_moslim.data.shared_prompts import AnswersTogether


class StepSampler(MegatronDataSampler):
    """Gives NeMo its batch sizes; which rows come is decided in data/length_batches.py."""

    def transform_dataloader(self, dataloader: DataLoader, consumed_samples: int = 0) -> DataLoader:
        return dataloader


class _MicroBatches(IterableDataset):
    def __init__(self, make_iterator):
        self._make_iterator = make_iterator

    def __iter__(self) -> Iterator[Any]:
        return self._make_iterator()


class StepDataModule(pl.LightningDataModule):
    """Training and validation micro-batches of one dataset each (RewardDataset or SFTDataset, or what is made of them).

    The rows of step s depend on (seed, s) alone, so a resumed run continues where it stopped with no state of its own.
    """

    def __init__(self, train, validation, batch: BatchConfig, max_length: int, seed: int):
        super().__init__()
        self.train, self.validation, self.batch_config = train, validation, batch
        self.seq_length, self.micro_batch_size, self.global_batch_size = max_length, batch.micro_size, batch.global_size
        self.data_sampler = StepSampler(
            seq_len=max_length, micro_batch_size=batch.micro_size, global_batch_size=batch.global_size, output_log=False
        )
        group_size = batch.group_size or batch.micro_size
        sizes = (batch.global_size, batch.micro_size, group_size, batch.bucket_batches)
        block_of = train.block_of if isinstance(train, AnswersTogether) else None
        self.plan = TrainingBatches(train.lengths, *sizes, seed, block_of)

    def validation_micro_batches(self, data_ranks: int) -> int:
        """Micro-batches of one validation pass on one rank; Lightning counts a loader's items, not global batches."""
        global_batches = -(-len(self.validation) // self.global_batch_size)
        return global_batches * self.global_batch_size // (self.micro_batch_size * data_ranks)

    def step_tokens(self, step: int) -> int:
        """Tokens of a training global batch over all ranks, without padding."""
        return round(self.train.lengths[self.plan.step(step)].sum())

    def _share(self, micro_batches: np.ndarray) -> np.ndarray:
        from megatron.core import parallel_state

        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        return rank_share(micro_batches, rank, ranks)

    def _training_micro_batches(self) -> Iterator[Any]:
        for step in range(self.trainer.global_step, self.trainer.max_steps):
            for rows in self._share(self.plan.step(step)):
                yield self.train.batch(rows)

    def _validation_micro_batches(self) -> Iterator[Any]:
        for batch in evaluation_batches(self.validation.lengths, self.global_batch_size, self.micro_batch_size):
            for rows in self._share(batch):
                yield self.validation.batch(rows)

    def train_dataloader(self) -> DataLoader:
        self.data_sampler.init_global_step = self.trainer.global_step
        self.data_sampler.init_consumed_samples = self.trainer.global_step * self.global_batch_size
        return DataLoader(_MicroBatches(self._training_micro_batches), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_MicroBatches(self._validation_micro_batches), batch_size=None)
