"""A model that is read at few positions: its last feed-forward layer runs at these alone.

A reward model is read at the token that ends each answer, a policy at the tokens before those of the answer. The last
layer's attention needs every position; what follows it does not, so that nothing else changes.

Shapes: S sequence, B batch, H hidden, M positions that are read.
"""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class ReadableLayer(TransformerLayer):
    """megatron-core's decoder layer; with `read` set, what follows its attention runs at those positions alone."""

    read: tuple[Tensor, Tensor] | None = None  # rows and places, int64 [M] each

    def _forward_mlp(self, hidden_states: Tensor, *args) -> Tensor:
        """[S, B, H] -> [S, B, H], or [M, 1, H] where `read` is set."""
        if self.read is not None:
            rows, places = self.read
            hidden_states = hidden_states[places, rows][:, None]
        return super()._forward_mlp(hidden_states, *args)


def core_model(model: torch.nn.Module) -> torch.nn.Module:
    """megatron-core's model inside NeMo's and the wrappers of precision and data parallelism."""
    while hasattr(model, "module"):
        model = model.module
    return model


@contextlib.contextmanager
def reading(model: torch.nn.Module, rows: Tensor, places: Tensor) -> Iterator[bool]:
    """Inside, the last pipeline stage's hidden states are [M, 1, H], those of these rows and places; yields True.

    Yields False, and changes nothing, where that is not the last stage, or where it cannot be: with sequence
    parallelism (positions lie on other ranks), full recomputation (the layer runs again in the backward pass), FP8 (its
    matrices need multiples of 16 rows), experts (whose balance is measured over all tokens), and a batch that is all
    filler (kernels need not take matrices without rows).
    """
    core = core_model(model)
    config, layer = core.config, core.decoder.layers[-1]
    early = (
        core.post_process
        and len(rows) > 0
        and not (
            config.sequence_parallel or config.recompute_granularity == "full" or config.fp8 or config.num_moe_experts
        )
    )
    if not early:
        yield False
        return
    layer.read = rows, places
    try:
        yield True
    finally:
        layer.read = None
