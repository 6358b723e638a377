"""Where the time of a run goes: torch's profiler, by operator."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def profiler() -> profile:
    """Of the processor and, where there is one, of the GPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    return profile(activities=activities)


def profiled(run: Callable[[], object]) -> list[dict]:
    """`shares` of one run."""
    with profiler() as profiling:
        run()
        torch.cuda.synchronize()
    return shares(profiling.key_averages())


def shares(events) -> list[dict]:
    """Operators by their own time (on a GPU: their kernels'), largest first: name, calls, share of the whole."""
    name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    whole = sum(getattr(event, name) for event in events)
    if not whole:  # the profiler saw nothing of the GPU
        return []
    rows = [
        {"operator": event.key, "calls": event.count, "share": round(getattr(event, name) / whole, 4)}
        for event in sorted(events, key=lambda e: -getattr(e, name))
    ]
    return [row for row in rows if row["share"] > 0]
