"""Where the time of our side goes: a round under torch's profiler, by operator."""

import os
from contextlib import ExitStack

from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.evaluation.operators import profiler, shares
from nemo_moslim.parallel.layout import is_rank_zero


class ProfiledRounds:
    """Takes the place of a Contest: one round to warm up, one timed, one under the profiler, on rank 0."""

    def __init__(self, *_contest):
        self.load_before = os.getloadavg()
        self._timed: list[Round] = []
        self._stack = ExitStack()
        self.operators: list[dict] = []

    def check(self, **arguments) -> None:
        """There is no peer to ask."""

    def compare(self, name: str, ours, theirs) -> None:
        """There is nothing to compare with."""

    def begin(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to end."""

    @property
    def seconds(self) -> float:
        """Of the round that was timed without the profiler."""
        return self._timed[1].seconds

    def take(self, ours: Round) -> bool:
        """False after the third round."""
        self._timed.append(ours)
        if len(self._timed) == 2 and is_rank_zero():
            self._profiler = self._stack.enter_context(profiler())
        if len(self._timed) < 3:
            return True
        self._stack.close()
        if is_rank_zero():
            self.operators = shares(self._profiler.key_averages())
        return False
