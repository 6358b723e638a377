"""Parts of a decoder layer that are megatron-core's but for what costs time; `layer_spec.py` puts them in place.

Shapes: S sequence, B batch, N heads, G query groups, D head size, H hidden, F size of the feed-forward layer.
"""

import torch
from megatron.core.inference.contexts.static_context import StaticInferenceContext
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.nn import functional

from nemo_moslim.batches import SharedPrompts, context_positions
from nemo_moslim.models.layer_functions import rotate, swiglu, take
from nemo_moslim.models.packed_sequences import SharedPromptParams


class GatedMLP(MLP):
    """megatron-core's feed-forward layer; SwiGLU without a bias, fusion or clamp runs as one function."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        plain = (
            config.gated_linear_unit
            and config.activation_func is functional.silu
            and not (config.add_bias_linear or config.bias_activation_fusion or config.use_te_activation_func)
            and config.activation_func_clamp_value is None
            and config.glu_linear_offset == 0.0
        )
        if not plain or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale)
        intermediate, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(intermediate))


class PromptCache(StaticInferenceContext):
    """megatron-core's KV cache of rows whose prompts differ in length: all answers begin at one place of the cache."""

    gaps: Tensor | None = None  # int64 [B]: how many places between prompt and answer hold nothing; None: none, so far

    def angles(self, angles: Tensor, tokens: int) -> Tensor:
        """Of the rotary angles [length, 1, 1, D] those of the next tokens of each row, [tokens, 1 or B, 1, D]."""
        start = self.sequence_len_offset
        if self.gaps is None:
            return angles[start : start + tokens]
        places = torch.arange(start, start + tokens, device=self.gaps.device)
        return angles[places[:, None] - self.gaps, 0]


class EarlyRotation(SelfAttention):
    """megatron-core's self-attention; queries and keys are rotated before the keys go into the cache.

    megatron-core caches keys unrotated and rotates all of them again for every new token. Training rotates by `rotate`
    too, also over packed sequences, unless Transformer Engine's fused kernel is on (`apply_rope_fusion`).
    """

    _rotation: tuple[Tensor, Tensor] | None = None  # cos and sin [S, 1 or B, 1, D] of the forward pass that is running

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *,
        inference_context=None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **others,
    ) -> tuple[Tensor, Tensor | None]:
        if self._rotates_early(rotary_pos_emb, inference_context):
            angles = rotary_pos_emb
            if inference_context is not None:
                angles = inference_context.angles(angles, hidden_states.shape[0])
            elif isinstance(packed_seq_params, SharedPromptParams):
                angles = angles[packed_seq_params.packing.positions]
            elif packed_seq_params is not None:
                splits = self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1
                tokens, cp = splits * hidden_states.shape[0], self.pg_collection.cp
                angles = angles[context_positions(packed_seq_params.cu_seqlens_q, tokens, cp.rank(), cp.size())[1]]
            self._rotation = angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)
            rotary_pos_emb = None
        elif isinstance(packed_seq_params, SharedPromptParams):
            raise ValueError(
                "answers that share their prompts: this model's rotary embedding cannot read them together"
            )
        try:
            return super().forward(
                hidden_states, attention_mask, inference_context=inference_context, rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params, **others,
            )  # fmt: skip
        finally:
            self._rotation = None

    def _rotates_early(self, angles: Tensor | tuple | None, inference_context) -> bool:
        config = self.config
        usual = (
            isinstance(angles, Tensor)
            and angles.shape[-1] == self.hidden_size_per_attention_head
            and not (config.rotary_interleaved or config.no_rope_freq or config.flash_decode)
        )
        if inference_context is None:
            return usual and not config.apply_rope_fusion
        return usual and not self.training and isinstance(inference_context, PromptCache)

    def get_query_key_value_tensors(self, hidden_states: Tensor, key_value_states=None, split_qkv: bool = True):
        """Query [S, B, N, D], key and value [S, B, G, D]; the first two rotated where `forward` asked for it."""
        if self._rotation is None:
            return super().get_query_key_value_tensors(hidden_states, key_value_states, split_qkv)
        query, key, value = super().get_query_key_value_tensors(hidden_states, key_value_states)
        return rotate(query, *self._rotation), rotate(key, *self._rotation), value

    def attends_once(self, rotary_pos_emb: Tensor | tuple | None) -> bool:
        """`attend_once` does what `forward` would; not with context parallelism, whose ranks lack keys."""
        whole = self.config.context_parallel_size == 1
        takes = whole and getattr(self.core_attention, "takes_one_query", False)
        return takes and self._rotates_early(rotary_pos_emb, None)

    def attend_once(
        self,
        hidden_states: Tensor,
        rows: Tensor,
        places: Tensor,
        rotary_pos_emb: Tensor,
        shared: SharedPrompts | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and its bias at one place of each row, causal: [M, 1, H].

        Args:
            hidden_states: [S, B, H].
            rows: int64 [M], none of them twice.
            places: int64 [M].
            rotary_pos_emb: angles [S, 1, 1, D].
            shared: where answers share prompts in the one row that there is, and each is read at its end, in order.
        """
        if shared is not None:
            rotary_pos_emb = rotary_pos_emb[shared.positions]
        cos, sin = (f(rotary_pos_emb).to(hidden_states.dtype) for f in (torch.cos, torch.sin))
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        query = rotate(query[places, rows], cos[places, 0], sin[places, 0])[None]  # [1, M, N, D]
        key = rotate(key, cos, sin)
        if shared is not None:
            key, value = (take(x[:, 0], shared.places.clamp(min=0)).transpose(0, 1) for x in (key, value))
            hidden = shared.places < 0
        else:
            if len(rows) < hidden_states.shape[1]:
                key, value = key[:, rows], value[:, rows]
            hidden = torch.arange(len(key), device=key.device) > places[:, None]
        context = self.core_attention(query, key, value, hidden[:, None, None])
        return self.linear_proj(context.transpose(0, 1))

    def _allocate_memory(self, inference_max_sequence_length: int, batch_size: int, dim: int, dtype: torch.dtype):
        """The cache [S, B, G, D] as megatron-core indexes it, each sequence's keys side by side in memory."""
        groups = self.num_query_groups_per_partition
        shape = (batch_size, groups, inference_max_sequence_length, dim)
        return torch.empty(shape, dtype=dtype, device=torch.cuda.current_device()).permute(2, 0, 1, 3)
