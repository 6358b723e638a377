"""Rated answers as batches for the reward model. The reward model reads prompts without preference tags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import Packing, RewardBatch
from nemo_moslim.data.chat import ChatEncoder
from nemo_moslim.data.encoded_rows import EncodedRows, encode_rows
from nemo_moslim.data.length_batches import pad_length
from nemo_moslim.functional.classification import encode_labels
from nemo_moslim.preferences import PreferenceSchema


@dataclass(frozen=True)
class RewardDataset:
    """R encoded rows with their labels."""

    rows: EncodedRows
    targets: Tensor  # fp32 [R, C]
    label_mask: Tensor  # bool [R, N]
    sources: list[str | None]  # [R]
    pad_id: int
    pad_multiple: int
    counts_rows: bool = False  # by the loss: joint and aligned count rows, per_head (row, head) pairs

    @classmethod
    def build(
        cls,
        ratings: Sequence[dict],
        schema: PreferenceSchema,
        encoder: ChatEncoder,
        max_length: int,
        long_rows: str,
        pad_multiple: int,
        origin: str,
    ) -> "RewardDataset":
        """Encode rating rows ({"prompt", "response", "labels", "source"?}).

        Raises:
            ValueError: a label that the schema does not know, or a row too long; names file and row.
        """
        rows = encode_rows(ratings, encoder, max_length, long_rows, origin)
        levels = [d.levels for d in schema.dimensions]
        kept = [ratings[i] for i in rows.kept]
        targets, label_mask = encode_labels([row["labels"] for row in kept], schema.names, levels)
        sources = [row.get("source") for row in kept]
        return cls(rows, targets, label_mask, sources, encoder.pad_id, pad_multiple)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [R]."""
        return self.rows.lengths

    @property
    def counted(self) -> int:
        """What the loss counts: labelled (row, head) pairs, or rows with a label."""
        return int((self.label_mask.any(1) if self.counts_rows else self.label_mask).sum())

    def batch(self, indices: np.ndarray) -> RewardBatch:
        """Rows as one padded micro-batch; index -1 is a filler that labels nothing."""
        indices = np.asarray(indices)
        tokens, lengths = pad_rows(self.rows, indices, self.pad_id, self.pad_multiple)
        return RewardBatch(tokens, lengths - 1, *self.labels(indices))

    def packed_batch(self, indices: np.ndarray, sequence_multiple: int = 1) -> RewardBatch:
        """Rows one after the other in one row of tokens, see `join_rows`; index -1 is a filler that labels nothing."""
        tokens, lengths, packing = join_rows(self.rows, indices, self.pad_id, self.pad_multiple, sequence_multiple)
        last_index = packing.cu_seqlens[: len(lengths)] + lengths - 1
        return RewardBatch(tokens, last_index, *self.labels(indices), packing)

    def labels(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """`targets` and `label_mask` of these rows; index -1 is a filler."""
        filler = torch.from_numpy(indices < 0)[:, None]
        return self.targets[indices].masked_fill(filler, 0.0), self.label_mask[indices] & ~filler

    def class_counts(self) -> Tensor:
        """Label mass per class, fp32 [C]."""
        return self.targets.sum(0)


def pad_rows(rows: EncodedRows, indices: np.ndarray, pad_id: int, multiple: int) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, S] padded on the right, and lengths int64 [B]. Index -1 gives a row of one pad token."""
    lengths = np.where(indices < 0, 1, rows.lengths[indices])
    tokens = np.full((len(indices), pad_length(int(lengths.max()), multiple)), pad_id, dtype=np.int64)
    for place, index in enumerate(indices):
        if index >= 0:
            tokens[place, : lengths[place]] = rows.row(index)
    return torch.from_numpy(tokens), torch.from_numpy(lengths.astype(np.int64))


def join_rows(
    rows: EncodedRows, indices: np.ndarray, pad_id: int, multiple: int, sequence_multiple: int = 1
) -> tuple[Tensor, Tensor, Packing]:
    """Tokens int64 [1, S] of rows one after the other, and the rows' lengths int64 [B].

    Each row is padded to a multiple of `sequence_multiple`, all of them at the end to one of `multiple`, which is a
    multiple of the former. Index -1 gives one pad token.
    """
    lengths = np.where(indices < 0, 1, rows.lengths[indices]).astype(np.int64)
    sequences = pad_length(lengths, sequence_multiple)
    if padding := pad_length(int(sequences.sum()), multiple) - int(sequences.sum()):
        sequences = np.append(sequences, padding)
    ends = np.concatenate([[0], np.cumsum(sequences)]).astype(np.int32)
    tokens = np.full(ends[-1], pad_id, dtype=np.int64)
    for start, index in zip(ends, indices, strict=False):
        if index >= 0:
            tokens[start : start + rows.lengths[index]] = rows.row(index)
    packing = Packing(torch.from_numpy(ends), int(sequences.max()))
    return torch.from_numpy(tokens)[None], torch.from_numpy(lengths), packing


def class_weights(counts: Tensor, levels: Sequence[int], kind: str, head_kind: str = "none") -> Tensor | None:
    """Weight per class from label counts [C]; None where every weight is one.

    ``kind`` weighs the levels of a head by 1/count or 1/sqrt(count) (mean 1 over each head's labels), ``head_kind`` the
    heads by the same of their number of labels (mean 1 over all labels), so that a rarely labelled head is not drowned.

    Raises:
        ValueError: a class, or a head, whose weight would be infinite since no row is labelled with it.
    """
    if kind == head_kind == "none":
        return None
    heads = counts.split(list(levels))
    of_heads = torch.stack([head.sum() for head in heads])
    if (kind != "none" and (counts == 0).any()) or (of_heads == 0).any():
        raise ValueError(
            f"class_weights={kind}, head_weights={head_kind}: a level has no training row (counts {counts.tolist()}); "
            "use class_weights=none head_weights=none, or fewer levels"
        )
    per_head = _balanced(of_heads, head_kind)
    return torch.cat([weight * _balanced(head, kind) for weight, head in zip(per_head, heads, strict=True)])


def _balanced(counts: Tensor, kind: str) -> Tensor:
    """1, 1/count or 1/sqrt(count), scaled to a mean of 1 over the counted things."""
    raw = {"none": torch.ones_like, "inverse": torch.reciprocal, "inverse_sqrt": torch.rsqrt}[kind](counts)
    return raw * counts.sum() / (raw * counts).sum()
