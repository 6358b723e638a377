"""Instructions and answers as batches for the language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_moslim.batches import TokenBatch
from nemo_moslim.data.chat import ChatEncoder
from nemo_moslim.data.encoded_rows import EncodedRows, encode_rows
from nemo_moslim.data.reward_dataset import pad_rows


@dataclass(frozen=True)
class SFTDataset:
    """R encoded rows; the loss counts answers (with their EOS) or, with loss_on="all", every token but the first."""

    rows: EncodedRows
    loss_on: str
    pad_id: int
    pad_multiple: int

    @classmethod
    def build(
        cls,
        examples: Sequence[dict],
        encoder: ChatEncoder,
        loss_on: str,
        max_length: int,
        long_rows: str,
        pad_multiple: int,
        origin: str,
    ) -> "SFTDataset":
        """Encode rows {"prompt", "response"}.

        Raises:
            ValueError: a row too long; names file and row.
        """
        rows = encode_rows(examples, encoder, max_length, long_rows, origin)
        return cls(rows, loss_on, encoder.pad_id, pad_multiple)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [R]."""
        return self.rows.lengths

    @property
    def counted(self) -> int:
        """Tokens that the loss counts."""
        before = self.rows.prompt_lengths if self.loss_on == "answers" else np.ones_like(self.lengths)
        return int((self.lengths - before).sum())

    def batch(self, indices: np.ndarray) -> TokenBatch:
        """Rows as one padded micro-batch; index -1 is a filler without loss."""
        real = np.asarray(indices)
        tokens, lengths = pad_rows(self.rows, real, self.pad_id, self.pad_multiple)
        prompt = torch.from_numpy(np.where(real < 0, 1, self.rows.prompt_lengths[real]).astype(np.int64))
        first = prompt if self.loss_on == "answers" else torch.ones_like(prompt)
        position = torch.arange(tokens.shape[1])
        # position t predicts token t + 1, so an answer that starts at `first` is learnt from position first - 1 on
        counted = (position >= first[:, None] - 1) & (position < lengths[:, None] - 1)
        return TokenBatch(tokens=tokens, labels=tokens.roll(-1, dims=1), loss_mask=counted.float())
