"""Answers to the same prompt in one sequence, so that a model reads their prompt once.

The idea is that of prefix grouping (Liu et al. 2025, Prefix Grouper): an answer attends to its prompt and to itself, at
the positions that it would have alone, so that every hidden state of an answer is what it is in a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from nemo_moslim.batches import RewardBatch, SharedPrompts, SharedPromptTokens
from nemo_moslim.data.encoded_rows import EncodedRows
from nemo_moslim.data.length_batches import pad_length
from nemo_moslim.data.reward_dataset import RewardDataset

# What attention costs on a CPU, in scores of a query with a key: measured; 1,000 to 8,000 scores a call did alike.
CALL_COST = 2000  # of a call of the kernel, beside its scores
ROW_COST = 1.3  # of a score that is computed row by row, by one that is computed prompt by prompt: rows are copied


def together(
    prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int, multiple: int
) -> SharedPromptTokens:
    """Rows of prompt and answer one after the other; neighbours with equal prompts share theirs.

    Args:
        prompts: int [B] x [tokens], none of them empty.
        answers: int [B] x [tokens].
        multiple: of which the number of tokens is made one, by padding at the end.
    """
    tokens, positions, pieces, groups, places = [], [], [], [0], []
    prompt_place, starts, number, total = np.arange(0), [], 0, 0

    def add(part: np.ndarray, first: int, piece: int) -> None:
        nonlocal total
        tokens.append(part)
        positions.append(np.arange(first, first + len(part)))
        pieces.append(np.full(len(part), piece))
        total += len(part)

    prompt_ends, previous = [], None
    for prompt, answer in zip(prompts, answers, strict=True):
        if previous is None or not np.array_equal(prompt, previous):
            if previous is not None:
                groups.append(total)
            prompt_place = total + np.arange(len(prompt))
            add(prompt, 0, 0)
            previous, number = prompt, 0
        number += 1
        prompt_ends.append(prompt_place[-1] + 1)
        starts.append(total)
        places.append(np.concatenate([prompt_place, total + np.arange(len(answer))]))
        add(answer, len(prompt), number)
    groups.append(total)
    if padding := pad_length(total, multiple) - total:
        add(np.full(padding, pad_id), 0, 0)
        groups.append(total)
    sizes = np.array([len(answer) for answer in answers])
    place, start, end = np.arange(max(sizes.max(), 1))[None], np.array(starts)[:, None], np.array(prompt_ends)[:, None]
    before = np.where(place == 0, end - 1, start + np.minimum(place, sizes[:, None]) - 1)
    numbers = np.concatenate(pieces)
    packing = SharedPrompts(
        cu_seqlens=torch.tensor(groups, dtype=torch.int32),
        longest=max(padding, *map(len, places)),
        positions=torch.from_numpy(np.concatenate(positions)),
        pieces=torch.from_numpy(numbers),
        places=_padded(places, -1),
        **_attention_blocks(places, [numbers[a:b] for a, b in pairwise(groups)]),
    )
    row = torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None]
    return SharedPromptTokens(row, packing, torch.from_numpy(before), torch.from_numpy(np.array(starts) + sizes - 1))


def _padded(rows: list[np.ndarray], filler: int) -> torch.Tensor:
    """int64 [B, L]."""
    found = np.full((len(rows), max(map(len, rows))), filler)
    for line, row in zip(found, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(found)


def _attention_blocks(places: list[np.ndarray], groups: list[np.ndarray]) -> dict:
    """`blocks` and `back` of `SharedPrompts`: rows of like length side by side, or none where that is more work than
    to go prompt by prompt.

    By rows a prompt is attended to once for each answer, but answers do not meet each other, and the kernel leaves out
    what is not causal; by prompts it computes all scores of all answers with each other, and masks them.

    Args:
        places: int64 [B] x [tokens], of each row.
        groups: int64 [G] x [tokens], `SharedPrompts.pieces` of each prompt with its answers.
    """
    blocks = [[]]
    for row in sorted(places, key=len):
        longer = [*blocks[-1], row]
        if sum(_scores(len(row)) - _scores(len(other)) for other in longer) <= CALL_COST:
            blocks[-1] = longer
        else:
            blocks.append([row])
    by_rows = sum(CALL_COST + ROW_COST * len(block) * _scores(len(block[-1])) for block in blocks)
    by_prompts = sum(2 * CALL_COST + _scores((n == 0).sum()) + (n > 0).sum() * len(n) for n in groups)
    if by_rows > by_prompts:
        return dict(blocks=(), back=None)
    back, start = np.zeros(sum(map(len, groups)), dtype=np.int64), 0
    for block in blocks:
        for row in block:
            back[row] = start + np.arange(len(row))
            start += len(block[-1])
    return dict(blocks=tuple(_padded(block, 0) for block in blocks), back=torch.from_numpy(back))


def _scores(tokens: int) -> float:
    """Of causal attention among so many tokens."""
    return tokens**2 / 2


@dataclass(frozen=True)
class AnswersTogether:
    """A reward model's data set in whose micro-batches neighbours with equal prompts share them."""

    base: RewardDataset
    block_of: np.ndarray  # int64 [R]: the block of each row; rows of a block have one prompt

    @classmethod
    def build(cls, base: RewardDataset, largest: int) -> "AnswersTogether":
        """Blocks of up to `largest` rows; of a prompt with more of them those of like length."""
        blocks, seen, found = {}, {}, np.zeros(len(base), dtype=np.int64)
        for row in np.argsort(base.lengths, kind="stable"):
            prompt = base.rows.row(row)[: base.rows.prompt_lengths[row]].tobytes()
            seen[prompt] = seen.get(prompt, -1) + 1
            found[row] = blocks.setdefault((prompt, seen[prompt] // largest), len(blocks))
        return cls(base, found)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return int(self.block_of.max()) + 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that are read for each row, fp64 [R]: the mean over its block, which has its prompt once."""
        rows, prompts, sizes = self.base.lengths, self.base.rows.prompt_lengths, np.bincount(self.block_of)
        answers = np.bincount(self.block_of, rows - prompts)
        return ((answers + np.bincount(self.block_of, prompts) / sizes) / sizes)[self.block_of]

    @property
    def rows(self) -> EncodedRows:
        """All rows, each with its prompt."""
        return self.base.rows

    @property
    def counted(self) -> int:
        """What the loss counts in all rows."""
        return self.base.counted

    @property
    def pad_multiple(self) -> int:
        """The number that the tokens of a micro-batch are a multiple of."""
        return self.base.pad_multiple

    def batch(self, indices: np.ndarray) -> RewardBatch:
        """Rows as one micro-batch; index -1 is a filler that labels nothing."""
        rows, filler = self.base.rows, np.array([self.base.pad_id], dtype=np.int32)
        whole = [rows.row(i) if i >= 0 else filler for i in indices]
        lengths = [rows.prompt_lengths[i] if i >= 0 else 1 for i in indices]
        prompts = [row[:length] for row, length in zip(whole, lengths, strict=True)]
        answers = [row[length:] for row, length in zip(whole, lengths, strict=True)]
        shared = together(prompts, answers, self.base.pad_id, self.base.pad_multiple)
        return RewardBatch(shared.tokens, shared.ends, *self.base.labels(indices), shared.packing)
