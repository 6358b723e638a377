"""Model FLOPs utilisation (Chowdhery et al. 2022): what the model needs by what the GPU could do in that time."""

import statistics
from collections.abc import Mapping

import torch

from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.functional.flops import feed_forward_flops, layers_flops, peak_flops
from nemo_moslim.parallel.layout import world_size

PASSES = {"rm": 3, "logprob": 1, "scoring": 1}  # a forward pass is 1, with its backward pass 3


def round_flops(what: str, sizes: Mapping[str, int | None], turn: Round, leaves_out: bool) -> int:
    """Operations of a turn of one model, counted as `functional/flops.py` says; the heads' are left out.

    Args:
        what: a key of PASSES.
        sizes: the architecture under megatron-core's names, with `vocab_size` where what=logprob.
        leaves_out: the last layer's feed-forward runs only where it is read (models/read_positions.py).
    """
    forward = layers_flops(sizes, turn.tokens, turn.pairs)
    if leaves_out:
        forward -= feed_forward_flops(sizes, turn.tokens - turn.read)
    if what == "logprob":
        forward += 2 * sizes["hidden_size"] * sizes["vocab_size"] * turn.read
    return PASSES[what] * forward


def model_flops_utilization(
    what: str,
    sizes: Mapping[str, int | None],
    rounds: list[Round],
    precision: str,
    leaves_out: bool = False,
    models: int = 1,
) -> float | None:
    """Median over the rounds; None without a known GPU, or where time goes by answers and not by passes.

    Args:
        models: how many models of this size run over the rows, one after the other.
    """
    peak = peak_flops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else None
    if peak is None or what not in PASSES:
        return None
    rates = [models * round_flops(what, sizes, turn, leaves_out) / turn.seconds for turn in rounds]
    return statistics.median(rates) / (peak * world_size())
