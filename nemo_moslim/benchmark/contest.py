"""Both sides in turns: the check that they compute the same, the peer's best batch size, the measured rounds."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_moslim.benchmark.peer_process import PeerGroup, Round
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.parallel.layout import is_rank_zero, world_size

BEST, DEFAULTS = "peer at its best", "peer at its defaults"
# absolute difference of losses, log-probabilities, rewards and probabilities on the same inputs
TOLERANCE_FP32 = 1e-4
TOLERANCE_BF16 = 5e-2  # 8 bits of mantissa: logits from 8 to 16 are 0.0625 apart


def tolerance(precision: str) -> float:
    """How far the two sides' numbers may be apart."""
    return TOLERANCE_FP32 if precision == "fp32" else TOLERANCE_BF16


class Contest:
    """All ranks of our side call it together; rank 0 has the peer's processes."""

    def __init__(
        self,
        config: BenchmarkConfig,
        work: Path,
        precision: str,
        together: int | None = None,
        own_variants: dict[str, Callable[[], Round]] | None = None,
    ):
        """
        Args:
            work: the folder that holds task.json.
            precision: of both sides: fp32, bf16 or fp8.
            together: rows of the peer's step, which its batches have to divide; None where any will do.
            own_variants: other ways of ours to do the same, each run in turn as well.

        Raises:
            ValueError: no batch size of the peer divides the step.
        """
        self.config, self.work, self.together = config, work, together
        self.tolerance = tolerance(precision)
        self.by_items = config.what == "rl_step"
        self.ours: list[Round] = []
        self.own_variants = own_variants or {}
        self.others: dict[str, list[Round]] = {name: [] for name in (*self.own_variants, BEST, DEFAULTS)}
        self.sweep: list[dict] = []
        self.variants: dict[str, dict] = {}
        self.differences: dict[str, float] = {}
        self.load_before = os.getloadavg()
        self._host_group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._candidates = [group for group in self._layouts() if self._sizes(group[0])]
        default = self._layouts()[0][0] * config.peer_default_batch_size
        if not self._candidates or together and together % default:
            raise ValueError(
                f"the peer's step has {together} rows: peer_batch_sizes={config.peer_batch_sizes} and "
                f"peer_default_batch_size={config.peer_default_batch_size} have to divide it"
            )
        self._groups: list[PeerGroup] = []
        self._playing: dict[str, PeerGroup] = {}
        if is_rank_zero():
            self._groups = [PeerGroup(config.peer_python, work, *layout) for layout in self._candidates]

    def _layouts(self) -> list[tuple[int, int]]:
        """Processes and threads that the peer may have: as many threads in all as our side, on a CPU also in one."""
        ranks, threads = world_size(), torch.get_num_threads()
        if torch.cuda.is_available():
            return [(ranks, threads)]
        return sorted({(1, ranks * threads), (ranks, threads)})

    def _sizes(self, processes: int) -> list[int]:
        sizes = self.config.peer_batch_sizes
        return [s for s in sizes if self.together is None or self.together % (s * processes) == 0]

    @property
    def versions(self) -> dict[str, str]:
        """Of the peer's packages."""
        return self._groups[0].versions

    def check(self, **arguments) -> dict | None:
        """The peer's numbers for `compare`; None on the other ranks."""
        return self._groups[0].ask(check=arguments)[0] if self._groups else None

    def compare(self, name: str, ours, theirs) -> None:
        """Keep the largest difference of two (nested lists of) numbers.

        Raises:
            ValueError: it is above what `tolerance` allows, or there are not as many of them.
        """
        ours, theirs = list(_flat(ours)), list(_flat(theirs))
        gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=False)]
        found = self.differences[name] = max(gaps, default=0.0)
        if len(ours) != len(theirs) or not all(gap <= self.tolerance for gap in gaps):  # NaN is not
            raise ValueError(
                f"the two sides do not compute the same {name}: {len(ours)} and {len(theirs)} numbers, largest "
                f"difference {found:.3g} (allowed {self.tolerance:g}); nothing was timed"
            )

    def begin(self) -> None:
        """Find the peer's best batch size, and prepare it and its defaults."""
        if is_rank_zero():
            self._find_best()
        self._wait()

    def _find_best(self) -> None:
        best = None
        for group in self._groups:
            for size in self._sizes(group.processes):
                variant = {"batch_size": size, "sorted": True}
                group.open(variant)
                group.round()
                rate = self.rate(group.round())
                group.end()
                layout = {"processes": group.processes, "threads": group.threads}
                self.sweep.append({**layout, "batch_size": size, "per_second": round(rate, 1)})
                print(f"peer, {group.processes} x {group.threads} threads, batch size {size}: {rate:,.1f} "
                      f"{self.unit} per second", flush=True)  # fmt: skip
                if best is None or rate > best[0]:
                    best = rate, group, variant
        defaults = {"batch_size": self.config.peer_default_batch_size, "sorted": False}
        plain = self._groups[0]
        if self.stays_open:
            plain = PeerGroup(self.config.peer_python, self.work, *self._layouts()[0])
            self._groups.append(plain)
        for name, group, variant in ((BEST, best[1], best[2]), (DEFAULTS, plain, defaults)):
            self.variants[name] = {**variant, "processes": group.processes, "threads": group.threads}
            self._playing[name] = group
            if self.stays_open:
                group.open(variant)

    def take(self, ours: Round) -> bool:
        """After our round, the others'; False once all rounds are over. The first one warms up and is not kept."""
        for name, run in self.own_variants.items():
            self.others[name].append(self._of_all_ranks(run()))
        self._wait()
        for name, group in self._playing.items():
            if self.stays_open:
                self.others[name].append(group.round())
            else:
                group.open(self._variant(name))
                self.others[name].append(group.round())
                group.end()
        self.ours.append(self._of_all_ranks(ours))
        self._wait()
        if len(self.ours) <= self.config.rounds:
            return True
        for rounds in (self.ours, *self.others.values()):
            del rounds[:1]
        return False

    def close(self) -> None:
        """End the peer's processes."""
        for group in self._groups:
            group.close()

    def _variant(self, name: str) -> dict:
        return {key: self.variants[name][key] for key in ("batch_size", "sorted")}

    @property
    def stays_open(self) -> bool:
        """Whether a variant is a training that goes on over all rounds; otherwise a process changes variants."""
        return self.config.what in ("rm", "rl_step")

    @property
    def unit(self) -> str:
        """What the rates count."""
        return "answers" if self.by_items else "tokens"

    def rate(self, one: Round, clock: str = "seconds") -> float:
        """What is compared: tokens per second; answers per second where the answers' lengths are the policy's.

        `clock` may be "cpu_seconds": a busy machine then makes less of a difference.
        """
        return (one.items if self.by_items else one.tokens) / getattr(one, clock)

    def _of_all_ranks(self, own: Round) -> Round:
        """This rank's round with the processor time of all of them."""
        total = torch.tensor(own.cpu_seconds, dtype=torch.float64)
        if self._host_group is not None:
            dist.all_reduce(total, group=self._host_group)
        return replace(own, cpu_seconds=total.item())

    def _wait(self) -> None:
        if self._host_group is not None:
            dist.barrier(self._host_group)


def _flat(values):
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    else:
        yield float(values)
