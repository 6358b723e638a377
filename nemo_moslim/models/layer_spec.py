"""One decoder layer specification for every platform, chosen when the model is built, never when it is saved.

`decoder_layer_spec` is what a model's config records (`GPTConfig.transformer_layer_spec`): a checkpoint written on a
CPU builds Transformer Engine's layers on a GPU, and back. Importing this file imports megatron-core (seconds).

Shapes: S sequence (Sq queries, Sk keys), B batch, N heads, G query groups, D head size, H hidden; N, G per TP rank.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE, get_gpt_decoder_block_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from nemo_moslim.batches import SharedPrompts
from nemo_moslim.models.layer_functions import rms_norm, take
from nemo_moslim.models.local_layers import EarlyRotation, GatedMLP
from nemo_moslim.models.packed_sequences import SharedPromptParams
from nemo_moslim.models.read_positions import ReadableLayer

_CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


def has_transformer_engine() -> bool:
    """Transformer Engine's layers can be used here."""
    return HAVE_TE and torch.cuda.is_available()


def shares_prompts() -> bool:
    """Answers can be read together with their prompt once (`SharedPrompts`): not by Transformer Engine's attention."""
    return not has_transformer_engine()


def decoder_layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec:
    """The decoder block of this pipeline stage, dense or mixture of experts (also mixed: `moe_layer_freq`).

    With Transformer Engine and CUDA: megatron-core's Transformer Engine layers. Otherwise megatron-core's local layers
    with `RMSNorm` and `SDPACoreAttention` from this file, the final norm included, and `GatedMLP`. Both have
    `ReadableLayer` as their layer and `EarlyRotation` as its self-attention.

    Distributed checkpoints interchange: Transformer Engine fuses each norm into the linear that follows, where its
    weight is `self_attention.linear_qkv.layer_norm_weight` (and `mlp.linear_fc1.layer_norm_weight` in dense layers);
    the local spec's `sharded_state_dict_keys_map` renames `input_layernorm.weight` and `pre_mlp_layernorm.weight` to
    those on the way to disk and back. In a mixture-of-experts layer Transformer Engine keeps `pre_mlp_layernorm` as a
    module of its own; megatron-core 0.15's local spec renames it all the same, so that entry is removed here.

    Args:
        config: needs RMSNorm where Transformer Engine is absent. A true `moe_shared_expert_gate` attribute gives the
            shared expert its sigmoid gate (Qwen2-MoE).
        vp_stage: virtual pipeline stage, None or 0 where the schedule is not interleaved.

    Raises:
        ValueError: the config asks for what the layers without Transformer Engine cannot do.
    """
    transformer_engine = has_transformer_engine()
    if not transformer_engine:
        _check_local(config)
    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=transformer_engine, normalization=config.normalization, vp_stage=vp_stage
    )
    for layer in block.layer_specs:  # layers of one kind share one spec: the edits are idempotent
        layer.module = ReadableLayer
        layer.submodules.self_attention.module = EarlyRotation
        if not transformer_engine:
            _use_local_modules(layer)
        if layer.submodules.mlp.module is MoELayer:
            gate = bool(getattr(config, "moe_shared_expert_gate", False))
            layer.submodules.mlp.submodules.shared_experts.params["gate"] = gate
    norm = block.layer_norm if transformer_engine else SeparateRMSNorm
    submodules = TransformerBlockSubmodules(layer_specs=block.layer_specs, layer_norm=norm)
    return ModuleSpec(module=TransformerBlock, submodules=submodules)


def _use_local_modules(layer: ModuleSpec) -> None:
    submodules = layer.submodules
    attention = submodules.self_attention.submodules
    attention.core_attention = SDPACoreAttention
    for name in ("q_layernorm", "k_layernorm"):
        if getattr(attention, name) is not IdentityOp:
            setattr(attention, name, SeparateRMSNorm)
    submodules.input_layernorm = RMSNorm
    submodules.pre_mlp_layernorm = RMSNorm
    if submodules.mlp.module is MLP:
        submodules.mlp.module = GatedMLP
    if submodules.mlp.module is MoELayer:
        submodules.pre_mlp_layernorm = SeparateRMSNorm
        submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)


def _check_local(config: TransformerConfig) -> None:
    """Raises ValueError for settings that only Transformer Engine's layers implement."""
    wanted = (
        ("normalization", "RMSNorm"),
        ("layernorm_zero_centered_gamma", False),
        ("multi_latent_attention", False),
        ("context_parallel_size", 1),
        ("fp8", None),
        ("window_size", None),
        ("softmax_type", "vanilla"),
        ("moe_grouped_gemm", False),
    )
    for name, expected in wanted:
        got = getattr(config, name)
        if got != expected:
            raise ValueError(
                f"model config {name}: expected {expected!r} without Transformer Engine and CUDA, got {got!r}. "
                "Change the setting, or run on a GPU in a container that has Transformer Engine."
            )


class RMSNorm(torch.nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32, answered in x's dtype.

    `weight` [H] has `config.params_dtype` and carries the `sequence_parallel` mark, by which megatron-core sums its
    gradient over tensor-parallel ranks (torch's own norms lack the mark, and megatron-core refuses them).
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SeparateRMSNorm(RMSNorm):
    """An `RMSNorm` that Transformer Engine's spec has as a module too (not fused into a linear).

    Transformer Engine's norm is written with an `_extra_state` (empty without FP8) and asks for it when it loads: so
    this one writes an empty one and ignores what it finds, like megatron-core's own parallel linears.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__(config, hidden_size, eps, **unused)
        self._register_load_state_dict_pre_hook(_default_extra_state)

    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state: Any) -> None:
        pass


def _default_extra_state(state_dict: dict[str, Any], prefix: str, *_unused: Any) -> None:
    state_dict.setdefault(f"{prefix}_extra_state")


class SDPACoreAttention(MegatronModule):
    """Core attention on `torch.nn.functional.scaled_dot_product_attention`: fused, without an S x S score matrix.

    A drop-in for megatron-core's `DotProductAttention`; grouped keys and values are repeated in memory under a mask
    alone. Masks:

    - None, with a causal attention type: query i of Sq attends to keys 0..Sk-Sq+i. That is plain causal attention in
      training and prefill, and the right thing in a decoding step (Sq = 1) or a step of several tokens on a KV cache.
    - Boolean, True where attention is forbidden, broadcastable to [B, N, Sq, Sk]: used as it is, so it must hold the
      causal part itself. Exception: one row per sequence ([B, 1, 1, Sk] with Sq > 1) forbids keys (padding), and the
      causal rule is added. A query that may attend to nothing gets zeros.
    """

    takes_one_query = True  # per sequence, under a mask [B, 1, 1, Sk]

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = max(1, layer_number)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attention of `query` [Sq, B, N, D] over `key` and `value` [Sk, B, G, D], G dividing N.

        Packed sequences come as [T, N, D] and [T, G, D], T tokens of all of them, each causal in itself.

        Returns:
            [Sq, B, N * D] or [T, N * D], in the dtype of `query`.

        Raises:
            ValueError: an attention bias, which needs Transformer Engine.
        """
        if attention_bias is not None:
            raise ValueError(
                "attention without Transformer Engine: expected no bias, got an attention bias. "
                "Run in a container that has Transformer Engine."
            )
        if isinstance(packed_seq_params, SharedPromptParams):
            shared = packed_seq_params.packing
            share = self._by_rows if shared.blocks else self._by_prompts
            return share(query, key, value, shared)
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params.cu_seqlens_q)
        sq, batch, heads, _ = query.shape
        if sq == 1:  # the heads of a group are as many queries to its keys
            return self._one_token(query, key, value, attention_mask)
        # With a KV cache megatron-core passes no_mask; a decoder that was built causal stays so.
        causal = self.attn_mask_type in _CAUSAL or attn_mask_type in _CAUSAL
        allowed, is_causal = _allowed_keys(attention_mask, sq, key.size(0), causal, query.device)
        if allowed is not None and key.size(2) != heads:  # else CUDA may hold all scores: its kernel for masks is older
            key, value = (x.repeat_interleave(heads // x.size(2), dim=2) for x in (key, value))
        key, value = (_side_by_side(x.permute(1, 2, 0, 3)) for x in (key, value))  # [B, G, Sk, D]
        context = self._kernel(query.permute(1, 2, 0, 3), key, value, allowed, is_causal)
        return context.permute(2, 0, 1, 3).reshape(sq, batch, -1)

    def _one_token(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        """One query per sequence, of the last position: it may attend to every key that the mask does not forbid."""
        _, batch, heads, size = query.shape
        groups, dropout = key.size(2), self.dropout if self.training else 0.0
        allowed = None if attention_mask is None else attention_mask.logical_not()
        if allowed is not None and allowed.size(1) > 1:
            allowed = allowed.unflatten(1, (groups, -1))[..., 0, :]  # [B, N, 1, Sk] -> [B, G, N / G, Sk]
        with self._dropout_rng(dropout):
            context = functional.scaled_dot_product_attention(
                query.reshape(batch, groups, -1, size),  # [B, G, N / G, D]
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=allowed,
                dropout_p=dropout,
                scale=self.softmax_scale,
            )
        return context.reshape(1, batch, heads * size)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Sequence by sequence; `cu_seqlens` [n + 1] tells where each starts, and the end of the last."""
        sequences = _split(cu_seqlens.diff().tolist(), query, key, value)
        return torch.cat([self._sequence(q, k, v) for q, k, v in sequences]).flatten(1)

    def _by_rows(self, query: Tensor, key: Tensor, value: Tensor, shared: SharedPrompts) -> Tensor:
        """Answers with their prompts as rows of their own, block by block of like length."""
        contexts = []
        for places in shared.blocks:
            q, k, v = (take(x, places).transpose(1, 2) for x in (query, key, value))  # [b, N or G, l, D]
            context = self._kernel(q, _side_by_side(k), _side_by_side(v), None, is_causal=True)
            contexts.append(context.transpose(1, 2).flatten(0, 1))
        return torch.cat(contexts).index_select(0, shared.back).flatten(1)

    def _by_prompts(self, query: Tensor, key: Tensor, value: Tensor, shared: SharedPrompts) -> Tensor:
        """Prompt by prompt, each with its answers, which see the prompt and themselves."""
        contexts, sizes = [], shared.cu_seqlens.diff().tolist()
        for (q, k, v), pieces in zip(_split(sizes, query, key, value), shared.pieces.split(sizes), strict=True):
            prompt = int((pieces == 0).sum())
            contexts.append(self._sequence(q[:, :prompt], k[:, :prompt], v[:, :prompt]))
            if prompt < len(pieces):
                own = pieces[prompt:, None]
                seen = (pieces == 0) | ((pieces == own) & _lower(len(own), len(pieces), pieces.device))
                contexts.append(self._sequence(q[:, prompt:], k, v, seen))
        return torch.cat(contexts).flatten(1)

    def _sequence(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """One sequence, [N, Sq, D] and [G, Sk, D], causal or by a mask: [Sq, N, D]."""
        return self._kernel(query[None], key[None], value[None], allowed, allowed is None)[0].transpose(0, 1)

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, is_causal: bool) -> Tensor:
        """torch's attention of [B, N, Sq, D] over [B, G, Sk, D], causal or by a mask, or neither: [B, N, Sq, D]."""
        dropout = self.dropout if self.training else 0.0
        with self._dropout_rng(dropout):
            return functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=allowed,
                dropout_p=dropout,
                is_causal=is_causal,
                scale=self.softmax_scale,
                enable_gqa=key.size(1) != query.size(1),
            )

    def _dropout_rng(self, dropout: float) -> Any:
        """Dropout differs between tensor-parallel ranks, which hold different heads."""
        if dropout == 0.0 or self.config.sequence_parallel:
            return contextlib.nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


def _allowed_keys(
    attention_mask: Tensor | None, sq: int, sk: int, causal: bool, device: torch.device
) -> tuple[Tensor | None, bool]:
    """The mask (True where attention is allowed) and the `is_causal` flag for torch; at most one of them is set."""
    if attention_mask is None and (sq == sk or not causal):
        return None, causal
    if attention_mask is None:
        return _lower(sq, sk, device), False
    allowed = attention_mask.logical_not()
    return _lower(sq, sk, device) & allowed if causal and attention_mask.size(-2) == 1 else allowed, False


def _side_by_side(x: Tensor) -> Tensor:
    """Keys or values [B, G, Sk, D] as the kernel likes them: on a CPU it is a tenth faster where a head's lie so."""
    return x.contiguous() if x.device.type == "cpu" else x


def _split(sizes: list[int], *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Sequences of [T, N, D] tensors, [N, S, D] each."""
    return zip(*(x.transpose(0, 1).split(sizes, dim=1) for x in tensors), strict=True)


def _lower(sq: int, sk: int, device: torch.device) -> Tensor:
    """bool [Sq, Sk]: query i, of the last Sq positions, and the keys that it may attend to."""
    return torch.ones(sq, sk, dtype=torch.bool, device=device).tril(sk - sq)
