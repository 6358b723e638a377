"""Rows packed into sequences of a fixed number of tokens, so that hardly any padding is run.

Best-fit decreasing (Johnson 1973) over a histogram of free space (Krell et al. 2021, arXiv:2107.02027): rows of one
length are interchangeable, and so are packs with as many free tokens, hence both are moved many at a time. A million
rows take less than a second (docs/performance.md).
"""

from dataclasses import dataclass

import numpy as np

from nemo_moslim.data.length_batches import pad_length


@dataclass(frozen=True)
class Packs:
    """P packs of R rows. Pack i holds the rows `rows[offsets[i]:offsets[i + 1]]`."""

    rows: np.ndarray  # int64 [R]: every row once
    offsets: np.ndarray  # int64 [P + 1]
    lengths: np.ndarray  # int64 [P]: tokens per pack
    padded_lengths: np.ndarray  # int64 [P]: the same, every row padded to a multiple of `multiple`
    capacity: int
    multiple: int

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, index: int) -> np.ndarray:
        """Rows of one pack, int64."""
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    @property
    def fill_rate(self) -> float:
        """Share of the packs' tokens that rows take, without what each is padded by."""
        return float(self.lengths.sum() / (len(self) * self.capacity))


def pack_rows(lengths: np.ndarray, capacity: int, seed: int, multiple: int = 1) -> Packs:
    """Pack rows of these lengths (int64 [R], tokens); which rows of a length meet which others is drawn from the seed.

    Args:
        multiple: a row takes the room of the next multiple of it; to one `capacity` is rounded up.

    Raises:
        ValueError: no rows, an empty one, or one longer than `capacity`.
    """
    if not len(lengths) or lengths.min() < 1 or lengths.max() > capacity:
        found = f"{lengths.min()} to {lengths.max()}" if len(lengths) else "none"
        raise ValueError(f"packing: expected rows of 1 to {capacity} tokens (model.max_length), got {found}")
    padded, capacity = pad_length(lengths, multiple), pad_length(capacity, multiple)
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(-padded[order], kind="stable")]
    starts = np.flatnonzero(np.diff(padded[order], prepend=-1))
    pack_of = np.empty(len(lengths), dtype=np.int64)
    space = _FreeSpace(capacity)
    for rows in np.split(order, starts[1:]):
        space.place(rows, int(padded[rows[0]]), pack_of)
    rows = np.lexsort((np.arange(len(lengths)), pack_of))
    offsets = np.searchsorted(pack_of[rows], np.arange(space.packs + 1))
    sums = (np.add.reduceat(x[rows], offsets[:-1]) for x in (lengths, padded))
    return Packs(rows, offsets, *sums, capacity, multiple)


class _FreeSpace:
    """The packs opened so far, by the number of their free tokens."""

    def __init__(self, capacity: int):
        self.capacity, self.packs = capacity, 0
        self._by_space: dict[int, list[np.ndarray]] = {}  # free tokens -> numbers of packs
        self._open = np.zeros(capacity + 1, dtype=bool)  # free tokens -> whether there are any

    def place(self, rows: np.ndarray, length: int, pack_of: np.ndarray) -> None:
        """Put rows of one length where the least is left over, and what remains into new packs."""
        # a pack that takes rows is left with less than `length`: the list of those with room only gets shorter
        for space in length + np.flatnonzero(self._open[length:]):
            if not len(rows):
                return
            rows = self._fill(self._take(int(space)), int(space), rows, length, pack_of)
        if len(rows):
            needed = -(-len(rows) // (self.capacity // length))
            new = np.arange(self.packs, self.packs + needed)
            self.packs += needed
            self._fill(new, self.capacity, rows, length, pack_of)

    def _fill(self, packs: np.ndarray, space: int, rows: np.ndarray, length: int, pack_of: np.ndarray) -> np.ndarray:
        """Fill packs with `space` free tokens one after the other; the rows that are left over."""
        each = space // length
        placed = np.repeat(packs, each)[: len(rows)]
        pack_of[rows[: len(placed)]] = placed
        full, rest = divmod(len(placed), each)
        self._put(packs[:full], space - each * length)
        if rest:
            self._put(packs[full : full + 1], space - rest * length)
        self._put(packs[full + bool(rest) :], space)
        return rows[len(placed) :]

    def _take(self, space: int) -> np.ndarray:
        self._open[space] = False
        return np.concatenate(self._by_space.pop(space))

    def _put(self, packs: np.ndarray, space: int) -> None:
        if len(packs) and space:
            self._by_space.setdefault(space, []).append(packs)
            self._open[space] = True
