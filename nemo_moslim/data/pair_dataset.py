"""Preference pairs as batches for DPO and MODPO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_moslim.batches import PairBatch, SharedPromptTokens
from nemo_moslim.data.chat import ChatEncoder
from nemo_moslim.data.encoded_rows import EncodedRows, encode_rows
from nemo_moslim.data.reward_dataset import pad_rows
from nemo_moslim.data.shared_prompts import together


@dataclass(frozen=True)
class PairDataset:
    """P pairs, each two encoded rows. `ref_logprobs` come later, once for the whole data set."""

    rows: EncodedRows
    places: np.ndarray  # int64 [P, 2]: rows of the better and the worse answer
    margins: np.ndarray  # fp32 [P]
    ref_logprobs: np.ndarray  # fp32 [P, 2]: of the whole answers under the reference policy
    pad_id: int
    pad_multiple: int
    share_prompts: bool = False  # both answers of a pair are also put together, with their prompt once

    @classmethod
    def build(
        cls,
        pairs: Sequence[dict],
        margins: Sequence[float],
        encoder: ChatEncoder,
        max_length: int,
        long_rows: str,
        pad_multiple: int,
        origin: str,
        share_prompts: bool = False,
    ) -> "PairDataset":
        """Encode pairs ({"prompt", "chosen", "rejected"}); where one of the answers is dropped, so is the other.

        Raises:
            ValueError: a row too long; names file and row (two per pair). No pair left.
        """
        texts = (dict(prompt=p["prompt"], response=p[name]) for p in pairs for name in ("chosen", "rejected"))
        rows = encode_rows(texts, encoder, max_length, long_rows, origin)
        place = np.full((len(pairs), 2), -1)
        place[rows.kept // 2, rows.kept % 2] = np.arange(len(rows))
        whole = (place >= 0).all(1)
        if not whole.any():
            raise ValueError(f"{origin}: no pair to use, an answer of each is over model.max_length={max_length}")
        kept = place[whole]
        chosen_margins = np.asarray(margins, dtype=np.float32)[whole]
        no_logprobs = np.zeros(kept.shape, np.float32)
        return cls(rows, kept, chosen_margins, no_logprobs, encoder.pad_id, pad_multiple, share_prompts)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per pair, int64 [P]."""
        return self.rows.lengths[self.places].sum(1)

    @property
    def counted(self) -> int:
        """Pairs."""
        return len(self)

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Pairs as one padded micro-batch of twice as many rows; index -1 is a filler."""
        pairs = np.asarray(indices)
        filler = pairs < 0
        rows = np.where(filler[:, None], -1, self.places[pairs]).reshape(-1)
        tokens, lengths = pad_rows(self.rows, rows, self.pad_id, self.pad_multiple)
        prompts = torch.from_numpy(np.where(rows < 0, 1, self.rows.prompt_lengths[rows]).astype(np.int64))
        positions = torch.arange(max(int((lengths - prompts).max()), 1))
        return PairBatch(
            tokens=tokens,
            prompt_lengths=prompts,
            response_mask=positions < (lengths - prompts)[:, None],
            ref_logprobs=torch.from_numpy(self.ref_logprobs[pairs].reshape(-1)),
            margins=torch.from_numpy(np.where(filler, 0.0, self.margins[pairs]).astype(np.float32)),
            valid=torch.from_numpy(~filler),
            together=self._together(tokens.numpy(), prompts.numpy(), lengths.numpy()) if self.share_prompts else None,
        )

    def _together(self, tokens: np.ndarray, prompts: np.ndarray, lengths: np.ndarray) -> SharedPromptTokens:
        rows = list(zip(tokens, prompts, lengths, strict=True))
        starts, answers = [row[:p] for row, p, _ in rows], [row[p:n] for row, p, n in rows]
        return together(starts, answers, self.pad_id, self.pad_multiple)
