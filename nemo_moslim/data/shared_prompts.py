"""Answers to the same prompt in one sequence, so that a model reads their prompt once.

The idea is that of prefix grouping (Liu et al. 2025, Prefix Grouper): an answer attends to its prompt and to itself, at
the positions that it would have alone, so that every hidden state of an answer is what it is in a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_moslim.batches import RewardBatch, SharedPrompts, SharedPromptTokens
from nemo_moslim.data.length_batches import pad_length
from nemo_moslim.data.reward_dataset import RewardDataset


def together(
    prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int, multiple: int
) -> SharedPromptTokens:
    """Rows of prompt and answer one after the other; neighbours with equal prompts share theirs.

    Args:
        prompts: int [B] x [tokens], none of them empty.
        answers: int [B] x [tokens].
        multiple: of which the number of tokens is made one, by padding at the end.
    """
    tokens, positions, pieces, groups = [], [], [], [0]
    prompt_end, starts, number, total = 0, [], 0, 0

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
            add(prompt, 0, 0)
            previous, prompt_end, number = prompt, total, 0
        number += 1
        prompt_ends.append(prompt_end)
        starts.append(total)
        add(answer, len(prompt), number)
    groups.append(total)
    if padding := pad_length(total, multiple) - total:
        add(np.full(padding, pad_id), 0, 0)
        groups.append(total)
    sizes = np.array([len(answer) for answer in answers])
    place, start, end = np.arange(max(sizes.max(), 1))[None], np.array(starts)[:, None], np.array(prompt_ends)[:, None]
    before = np.where(place == 0, end - 1, start + np.minimum(place, sizes[:, None]) - 1)
    packing = SharedPrompts(
        cu_seqlens=torch.tensor(groups, dtype=torch.int32),
        longest=max(padding, *(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))),
        positions=torch.from_numpy(np.concatenate(positions)),
        pieces=torch.from_numpy(np.concatenate(pieces)),
    )
    row = torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None]
    return SharedPromptTokens(row, packing, torch.from_numpy(before), torch.from_numpy(np.array(starts) + sizes - 1))


@dataclass(frozen=True)
class PromptGroups:
    """A reward model's data set whose neighbours with equal prompts are read together: what the rest takes for a row is
    a prompt with its answers."""

    base: RewardDataset
    groups: list[np.ndarray]  # int64 rows of `base` each
    largest: int  # rows of the largest group

    @classmethod
    def of(cls, base: RewardDataset) -> "PromptGroups | None":
        """Groups of up to as many rows as prompts have on average; None where that is one.

        A prompt with far more rows than others must not make the micro-batches of all others small.
        """
        prompts = [base.rows.row(i)[:length].tobytes() for i, length in enumerate(base.rows.prompt_lengths)]
        changes = [i for i in range(1, len(prompts)) if prompts[i] != prompts[i - 1]]
        largest = round(len(base) / (len(changes) + 1))
        if largest == 1:
            return None
        groups = np.split(np.arange(len(base)), changes)
        return cls(base, [g[i : i + largest] for g in groups for i in range(0, len(g), largest)], largest)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per group, int64 [G]."""
        lengths, prompts = self.base.lengths, self.base.rows.prompt_lengths
        return np.array([lengths[g].sum() - (len(g) - 1) * prompts[g[0]] for g in self.groups])

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """Rows of these groups, int64; without the fillers (-1)."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(self.groups[i] for i in indices if i >= 0)])

    def batch(self, indices: np.ndarray) -> RewardBatch:
        """Groups as one micro-batch; fillers alone give one filler row."""
        base, chosen = self.base, self.rows_of(indices)
        if not len(chosen):
            return base.batch(np.array([-1]))
        whole, lengths = [base.rows.row(i) for i in chosen], base.rows.prompt_lengths[chosen]
        prompts = [row[:length] for row, length in zip(whole, lengths, strict=True)]
        answers = [row[length:] for row, length in zip(whole, lengths, strict=True)]
        shared = together(prompts, answers, base.pad_id, base.pad_multiple)
        return RewardBatch(shared.tokens, shared.ends, base.targets[chosen], base.label_mask[chosen], shared.packing)
