"""Model FLOPs utilisation (Chowdhery et al. 2022): what the model needs by what the GPU could do in that time."""

import statistics

import torch

from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.functional.flops import layer_weights, peak_flops
from nemo_moslim.parallel.layout import world_size

PASSES = {"rm": 3, "logprob": 1, "scoring": 1}  # a forward pass is 1, with its backward pass 3


def forward_flops_per_token(architecture: dict) -> float:
    """Of the matrix products with the weights that a token meets: 2 per weight, in a mixture those of its own experts.

    Attention over the sequence is left out.
    """
    return 2.0 * architecture["num_layers"] * layer_weights(architecture)


def model_flops_utilization(what: str, architecture: dict, rounds: list[Round]) -> float | None:
    """Median over the rounds; None without a known GPU, or where time goes by answers and not by passes."""
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak is None or what not in PASSES:
        return None
    flops = PASSES[what] * forward_flops_per_token(architecture)
    return statistics.median(r.tokens / r.seconds for r in rounds) * flops / (peak * world_size())
