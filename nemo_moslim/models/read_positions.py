"""A model that is read at few positions: its last layer runs at these alone.

A reward model is read at the token that ends each answer, a policy at the tokens before those of the answer, and in
generation at each prompt's last one. The last layer's attention needs the keys and values of every position; what
follows it does not, nor do its queries, so that nothing else changes.

Shapes: S sequence, B batch, H hidden, M positions that are read.
"""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_moslim.batches import AnswerBatch
from nemo_moslim.models.packed_sequences import packed_sequences


class ReadableLayer(TransformerLayer):
    """megatron-core's decoder layer; with `read` set, what follows its attention runs at those positions alone.

    With `one_each` every row, or every answer of those that share prompts, is read once: then, where the attention can
    (`EarlyRotation.attends_once`), it has one query too.
    """

    read: tuple[Tensor, Tensor] | None = None  # rows and places, int64 [M] each
    one_each: bool = False

    def _forward_attention(
        self, hidden_states: Tensor, *args, rotary_pos_emb: Tensor | None = None, packed_seq_params=None, **others
    ):
        """Hidden states [S, B, H] after the attention, or [M, 1, H] where `read` is set; no context."""
        others |= dict(rotary_pos_emb=rotary_pos_emb, packed_seq_params=packed_seq_params)
        if self.read is None:
            return super()._forward_attention(hidden_states, *args, **others)
        rows, places = self.read
        if not (self.one_each and self.self_attention.attends_once(rotary_pos_emb)):
            attended, _ = super()._forward_attention(hidden_states, *args, **others)
            return attended[places, rows][:, None], None
        normed = self.input_layernorm(hidden_states)
        shared = packed_seq_params and packed_seq_params.packing
        attended = self.self_attention.attend_once(normed, rows, places, rotary_pos_emb, shared)
        with self.bias_dropout_add_exec_handler():
            add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
            return add(attended, hidden_states[places, rows][:, None], self.hidden_dropout), None


def core_model(model: torch.nn.Module) -> torch.nn.Module:
    """megatron-core's model inside NeMo's and the wrappers of precision and data parallelism."""
    while hasattr(model, "module"):
        model = model.module
    return model


def before_answers(batch: AnswerBatch) -> tuple[Tensor, dict, Tensor, Tensor]:
    """What a model is given of these answers, and where it is read: at what comes before each of their tokens.

    Returns:
        Tokens int64 [B, S] and the keyword arguments that say how they are packed, then rows and places, int64 [M]: of
        each answer token (`response_mask`, row by row) the position that predicts it.
    """
    rows, places = batch.answer_rows, batch.answer_places
    if batch.together is None:
        return batch.tokens, {}, rows, batch.prompt_lengths[rows] + places - 1
    before = batch.together.before[rows, places]
    return batch.together.tokens, packed_sequences(batch.together.packing), torch.zeros_like(rows), before


@contextlib.contextmanager
def reading(model: torch.nn.Module, rows: Tensor, places: Tensor, one_each: bool = False) -> Iterator[bool]:
    """Inside, the last pipeline stage's hidden states are [M, 1, H], those of these rows and places; yields True.

    `one_each` promises that no row is named twice or, where answers share prompts, that each is read once, in order.

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
    with read_at(layer, rows, places, one_each):
        yield True


@contextlib.contextmanager
def read_at(layer: ReadableLayer, rows: Tensor, places: Tensor, one_each: bool = False) -> Iterator[None]:
    """Inside, this layer's hidden states are [M, 1, H], those of these rows and places."""
    layer.read, layer.one_each = (rows, places), one_each
    try:
        yield
    finally:
        layer.read = None
