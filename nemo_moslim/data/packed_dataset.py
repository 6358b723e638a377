"""A data set whose rows are packed: what the rest takes for a row is a pack of them (data/packing.py)."""

from dataclasses import dataclass

import numpy as np

from nemo_moslim.batches import RewardBatch, TokenBatch
from nemo_moslim.data.encoded_rows import EncodedRows
from nemo_moslim.data.packing import Packs, pack_rows
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.data.sft_dataset import SFTDataset


@dataclass(frozen=True)
class PackedDataset:
    """P packs of the rows of `base`."""

    base: RewardDataset | SFTDataset
    packs: Packs

    @classmethod
    def build(
        cls, base: RewardDataset | SFTDataset, max_length: int, seed: int, sequence_multiple: int = 1
    ) -> "PackedDataset":
        """Pack all rows, each padded to a multiple of `sequence_multiple`, into up to `max_length` tokens."""
        return cls(base, pack_rows(base.lengths, max_length, seed, sequence_multiple))

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per pack, int64 [P]."""
        return self.packs.lengths

    @property
    def rows(self) -> EncodedRows:
        """The rows before they were packed."""
        return self.base.rows

    @property
    def counted(self) -> int:
        """What the loss counts in all rows."""
        return self.base.counted

    @property
    def pad_multiple(self) -> int:
        """The number that the tokens of a micro-batch are a multiple of."""
        return self.base.pad_multiple

    def batch(self, indices: np.ndarray) -> RewardBatch | TokenBatch:
        """Packs as one micro-batch, all their rows one after the other; index -1 is a filler."""
        rows = [self.packs.pack(index) if index >= 0 else np.array([-1]) for index in indices]
        return self.base.packed_batch(np.concatenate(rows), self.packs.multiple)
