"""Instructions and answers as batches for the language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import TokenBatch
from nemo_moslim.data.chat import ChatEncoder
from nemo_moslim.data.encoded_rows import EncodedRows, encode_rows
from nemo_moslim.data.reward_dataset import join_rows, pad_rows


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
        indices = np.asarray(indices)
        tokens, lengths = pad_rows(self.rows, indices, self.pad_id, self.pad_multiple)
        position, first = torch.arange(tokens.shape[1]), self._first_counted(indices)
        mask = counted_positions(position, first[:, None], lengths[:, None])
        return TokenBatch(tokens=tokens, labels=tokens.roll(-1, dims=1), loss_mask=mask)

    def packed_batch(self, indices: np.ndarray, sequence_multiple: int = 1) -> TokenBatch:
        """Rows one after the other in one row of tokens, see `join_rows`; index -1 is a filler without loss."""
        tokens, lengths, packing = join_rows(self.rows, indices, self.pad_id, self.pad_multiple, sequence_multiple)
        sizes, first = packing.cu_seqlens.diff()[: len(lengths)], self._first_counted(indices)
        position = torch.cat([torch.arange(n) for n in sizes])
        mask = torch.zeros(tokens.shape)
        spread = (x.repeat_interleave(sizes) for x in (first, lengths))
        mask[0, : len(position)] = counted_positions(position, *spread)
        # the label after a sequence's last token is the next sequence's first: it does not count
        return TokenBatch(tokens, tokens.roll(-1, dims=1), mask, packing)

    def _first_counted(self, indices: np.ndarray) -> Tensor:
        """int64 [B]: the first token of each row that the loss counts."""
        if self.loss_on == "all":
            return torch.ones(len(indices), dtype=torch.int64)
        return torch.from_numpy(np.where(indices < 0, 1, self.rows.prompt_lengths[indices]).astype(np.int64))


def counted_positions(position: Tensor, first: Tensor, length: Tensor) -> Tensor:
    """fp32: 1 at positions whose next token counts, from the token `first` to the last of the sequence."""
    # position t predicts token t + 1, so an answer that starts at `first` is learnt from position first - 1 on
    return ((position >= first - 1) & (position < length - 1)).float()
