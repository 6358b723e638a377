"""Rank 0 hands out the work, the other ranks follow: one broadcast a batch, on the host."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from nemo_moslim.parallel.layout import is_rank_zero, world_size

IDLE_SECONDS = 30.0  # between the broadcasts of an idle service; gloo gives up after half an hour without one
STOP = "stop"
SCORE = "score"


class Ranks:
    """All ranks of this launch; made on every one of them."""

    def __init__(self):
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None

    def share(self, work: Any) -> Any:
        """Rank 0's `work`, on every rank; the others pass None."""
        if self._group is None:
            return work
        box = [work if is_rank_zero() else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def follow(self, do: dict[str, Callable]) -> None:
        """On the other ranks: `do[name](*work)` whatever (name, *work) rank 0 shares, until it stops."""
        while (work := self.share(None)) != STOP:
            if work is not None:  # a sign of life
                do[work[0]](*work[1:])
