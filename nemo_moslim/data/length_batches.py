"""Which rows make up which step: random, repeatable from the step's number alone, and little padding.

The training stream is one random permutation of the rows after another. A window of `bucket_batches` global batches is
cut from it, sorted by length into groups of near-equal lengths, and these are dealt at random into global batches.
Rows of one block, answers to the same prompt, say, follow each other in the stream and have the same length here.
A group holds `group_size` rows, one or more micro-batches: with micro_size x data-parallel ranks in a group, ranks run
rows of like length at the same time. A global batch depends on (seed, step, sizes) and not on the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np


def pad_length(length: int | np.ndarray, multiple: int) -> int | np.ndarray:
    """A length, or many, rounded up to a multiple."""
    return -(-length // multiple) * multiple


@dataclass
class TrainingBatches:
    """Global batches by step number. `lengths` [R]: tokens per row; `block_of` int64 [R], or None: all rows apart."""

    lengths: np.ndarray
    global_size: int
    micro_size: int
    group_size: int
    bucket_batches: int
    seed: int
    block_of: np.ndarray | None = None
    _window: tuple[int, list[np.ndarray]] | None = field(default=None, repr=False)

    def _stream(self, start: int, count: int) -> np.ndarray:
        """Rows at positions start..start+count of the endless stream of permutations, int64 [count]."""
        rows = len(self.lengths)
        first, last = start // rows, (start + count - 1) // rows
        epochs = [self._permutation(np.random.default_rng([self.seed, epoch])) for epoch in range(first, last + 1)]
        return np.concatenate(epochs)[start - first * rows :][:count]

    def _permutation(self, draw: np.random.Generator) -> np.ndarray:
        if self.block_of is None:
            return draw.permutation(len(self.lengths))
        return np.argsort(draw.permutation(self.block_of.max() + 1)[self.block_of], kind="stable")

    def step(self, number: int) -> np.ndarray:
        """Rows of a global batch as micro-batches in order of length, int64 [global_size / micro_size, micro_size]."""
        window = number // self.bucket_batches
        if self._window is None or self._window[0] != window:
            self._window = (window, self._deal(window))
        return self._window[1][number % self.bucket_batches]

    def _deal(self, window: int) -> list[np.ndarray]:
        size = self.global_size * self.bucket_batches
        rows = self._stream(window * size, size)
        groups = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(-1, self.group_size)
        order = np.random.default_rng([self.seed, window, 1]).permutation(len(groups))
        dealt = order.reshape(self.bucket_batches, -1)
        return [groups[np.sort(chosen)].reshape(-1, self.micro_size) for chosen in dealt]


def evaluation_batches(lengths: np.ndarray, global_size: int, micro_size: int) -> Iterator[np.ndarray]:
    """Every row once, in order of length; the first global batch, of the shortest, is filled up with -1.

    Yields int64 [global_size / micro_size, micro_size].
    """
    order = np.argsort(lengths, kind="stable")
    order = np.concatenate([np.full(-len(order) % global_size, -1, dtype=order.dtype), order])
    yield from order.reshape(-1, global_size // micro_size, micro_size)


def rank_share(micro_batches: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """The micro-batches of one data-parallel rank: at the same time, ranks run neighbours in length."""
    return micro_batches[rank::ranks]


def padding_share(
    lengths: np.ndarray, batches: Iterator[np.ndarray], multiple: int, packed_lengths: np.ndarray | None = None
) -> float:
    """Share of padding among all the tokens that these global batches [M, micro_size] would run.

    Args:
        packed_lengths: [R], given for rows that lie one after the other, padded at the end of a micro-batch: with the
            padding inside each.
    """
    used = padded = 0.0
    for batch in batches:
        for rows in batch:
            kept = rows[rows >= 0]
            used += lengths[kept].sum()
            if packed_lengths is None:
                padded += pad_length(int(lengths[kept].max(initial=1)), multiple) * len(rows)
            else:
                tokens = packed_lengths[kept].sum()  # a fraction where a row has its share of a prompt
                padded += max(pad_length(round(tokens), multiple), tokens)
    return 1 - used / padded
