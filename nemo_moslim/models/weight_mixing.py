"""Weighted sums of whole models: of several policies (Rewarded Soups) or of several steps of one training."""

from collections.abc import Callable, Sequence

import torch


@torch.no_grad()
def mix(module: torch.nn.Module, loads: Sequence[Callable[[torch.nn.Module], None]], weights: Sequence[float]) -> None:
    """Fill this rank's part of a model with the weighted sum of what the loaders put into it, summed in fp32.

    One after the other, so that memory holds two copies of a shard whatever their number; a weight of 0 is not read.
    Buffers are mixed like parameters.
    """
    tensors = [t for t in module.state_dict().values() if torch.is_tensor(t) and t.is_floating_point()]
    total = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in tensors]
    for load, weight in zip(loads, weights, strict=True):
        if weight == 0:
            continue
        load(module)
        for summed, tensor in zip(total, tensors, strict=True):
            summed.add_(tensor, alpha=weight)
    for summed, tensor in zip(total, tensors, strict=True):
        tensor.copy_(summed)
