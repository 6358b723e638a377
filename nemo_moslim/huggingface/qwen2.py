"""Qwen2 weights between Hugging Face folders and megatron-core names, tensor by tensor.

megatron-core fuses what Hugging Face keeps apart: query, key and value rows lie together per query group
([q … q k v] for each group), and the gate and up projections are stacked (gate first). With Transformer Engine the
norms belong to the linear that follows them, under other names in memory; both name sets are known here.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

MODEL_TYPES = ("qwen2",)
SETTINGS_KEY = "moslim"  # in config.json of an exported reward model: heads, loss, statistics

_NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
_PLAIN = {
    **_NORMS,
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


class SafetensorsFolder:
    """Tensors of a Hugging Face folder by name, read one at a time.

    Raises:
        ValueError: no safetensors files, or a name that is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._files = json.loads(index.read_text())["weight_map"]
        elif (folder / "model.safetensors").is_file():
            with safe_open(folder / "model.safetensors", "pt") as opened:
                self._files = dict.fromkeys(opened.keys(), "model.safetensors")
        else:
            raise ValueError(
                f"{folder}: no model.safetensors; save the model with save_pretrained(safe_serialization=True)"
            )

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._files)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise ValueError(f"{self.folder}: tensor {name} is missing")
        with safe_open(self.folder / self._files[name], "pt") as opened:
            return opened.get_tensor(name)


def read_config(folder: Path) -> dict:
    """config.json of a Hugging Face folder.

    Raises:
        ValueError: a model type that this file does not convert.
    """
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"{folder}: model_type={config.get('model_type')!r} is not supported (one of {', '.join(MODEL_TYPES)})"
        )
    return config


def architecture_from_hf(config: dict) -> dict:
    """Arguments of a BackboneConfig from a Qwen2 config.json."""
    from nemo_moslim.models.backbone import padded_vocab_size

    return dict(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        rotary_base=config["rope_theta"],
        layernorm_epsilon=config["rms_norm_eps"],
        share_embeddings_and_output_weights=config.get("tie_word_embeddings", False),
        init_method_std=config.get("initializer_range", 0.02),
        vocab_size=padded_vocab_size(config["vocab_size"]),
        num_moe_experts=None,
    )


def architecture_to_hf(architecture: dict, max_length: int, vocab_size: int) -> dict:
    """Keyword arguments of transformers' Qwen2Config; the inverse of `architecture_from_hf`.

    Raises:
        ValueError: a mixture of experts, which is another Hugging Face class.
    """
    if architecture["num_moe_experts"]:
        raise ValueError("export of a mixture of experts to Hugging Face is not supported: export a dense model")
    return dict(
        num_hidden_layers=architecture["num_layers"],
        hidden_size=architecture["hidden_size"],
        intermediate_size=architecture["ffn_hidden_size"],
        num_attention_heads=architecture["num_attention_heads"],
        num_key_value_heads=architecture["num_query_groups"],
        rope_theta=architecture["rotary_base"],
        rms_norm_eps=architecture["layernorm_epsilon"],
        tie_word_embeddings=architecture["share_embeddings_and_output_weights"],
        initializer_range=architecture["init_method_std"],
        max_position_embeddings=max_length,
        vocab_size=vocab_size,
    )


def merge_qkv(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """[heads*D, ...], [groups*D, ...], [groups*D, ...] -> per group its queries, its key, its value, on axis 0."""
    rest = q.shape[1:]
    parts = [t.reshape(groups, -1, *rest) for t in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def split_qkv(fused: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `merge_qkv`."""
    rest = fused.shape[1:]
    size = fused.shape[0] // (heads + 2 * groups)
    per_group = fused.reshape(groups, -1, *rest)
    q, k, v = per_group.split([heads // groups * size, size, size], dim=1)
    return tuple(t.reshape(-1, *rest) for t in (q, k, v))


def pad_vocabulary(embedding: Tensor, rows: int) -> Tensor:
    """Zero rows up to the padded vocabulary."""
    return torch.cat([embedding, embedding.new_zeros(rows - embedding.shape[0], embedding.shape[1])])


def megatron_tensor(name: str, layer: int | None, read: Callable[[str], Tensor], architecture: dict) -> Tensor:
    """One whole megatron-core tensor (all tensor-parallel ranks') from Hugging Face tensors.

    Args:
        name: megatron-core parameter name; inside a layer, what follows `decoder.layers.<i>.`.
        layer: global layer number, None outside layers.
    """
    if layer is None:
        if name == "decoder.final_layernorm.weight":
            return read("model.norm.weight")
        tied = architecture["share_embeddings_and_output_weights"]
        source = {
            "embedding.word_embeddings.weight": "model.embed_tokens.weight",
            "output_layer.weight": "model.embed_tokens.weight" if tied else "lm_head.weight",
        }
        if name not in source:
            raise ValueError(f"no Hugging Face tensor is known for {name}")
        return pad_vocabulary(read(source[name]), architecture["vocab_size"])
    start = f"model.layers.{layer}."
    if name in _PLAIN:
        return read(start + _PLAIN[name])
    if fused := re.fullmatch(r"self_attention\.linear_qkv\.(weight|bias)", name):
        parts = [read(f"{start}self_attn.{part}_proj.{fused.group(1)}") for part in "qkv"]
        return merge_qkv(*parts, groups=architecture["num_query_groups"])
    if name == "mlp.linear_fc1.weight":
        return torch.cat([read(f"{start}mlp.gate_proj.weight"), read(f"{start}mlp.up_proj.weight")])
    raise ValueError(f"no Hugging Face tensor is known for layer tensor {name}")


def hf_tensors(name: str, layer: int | None, tensor: Tensor, architecture: dict, vocab_size: int) -> dict[str, Tensor]:
    """The Hugging Face tensors of one whole megatron-core tensor; the inverse of `megatron_tensor`."""
    if layer is None:
        outside = {
            "decoder.final_layernorm.weight": "model.norm.weight",
            "embedding.word_embeddings.weight": "model.embed_tokens.weight",
            "output_layer.weight": "lm_head.weight",
        }
        if name not in outside:
            raise ValueError(f"no Hugging Face tensor is known for {name}")
        return {outside[name]: tensor if "norm" in name else tensor[:vocab_size].clone()}
    start = f"model.layers.{layer}."
    if name in _PLAIN:
        return {start + _PLAIN[name]: tensor}
    if fused := re.fullmatch(r"self_attention\.linear_qkv\.(weight|bias)", name):
        parts = split_qkv(tensor, architecture["num_attention_heads"], architecture["num_query_groups"])
        return {
            f"{start}self_attn.{part}_proj.{fused.group(1)}": value.contiguous()
            for part, value in zip("qkv", parts, strict=True)
        }
    if name == "mlp.linear_fc1.weight":
        gate, up = tensor.chunk(2)
        return {f"{start}mlp.gate_proj.weight": gate.clone(), f"{start}mlp.up_proj.weight": up.clone()}
    raise ValueError(f"no Hugging Face tensor is known for layer tensor {name}")


def local_shard(whole: Tensor, name: str, parameter: Tensor, rank: int, ranks: int) -> Tensor:
    """The part of a whole tensor that one tensor-parallel rank holds."""
    if not getattr(parameter, "tensor_model_parallel", False) or ranks == 1:
        return whole
    axis = parameter.partition_dim
    if name == "mlp.linear_fc1.weight":
        return torch.cat([half.chunk(ranks)[rank] for half in whole.chunk(2)])
    return whole.chunk(ranks, dim=axis)[rank]


def load_backbone(module: torch.nn.Module, tensors: SafetensorsFolder, architecture: dict, skip_output: bool) -> None:
    """Fill this rank's megatron module, one tensor at a time.

    Args:
        skip_output: leave `output_layer` alone (a reward model's heads).

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    from megatron.core import parallel_state

    rank = parallel_state.get_tensor_model_parallel_rank()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    for full_name, parameter in module.named_parameters():
        name, layer = full_name, None
        if inside := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", full_name):
            layer = module.decoder.layers[int(inside.group(1))].layer_number - 1
            name = inside.group(2)
        if name.startswith("output_layer.") and skip_output:
            continue
        shard = local_shard(
            megatron_tensor(name, layer, tensors.__getitem__, architecture), name, parameter, rank, ranks
        )
        if shard.shape != parameter.shape:
            raise ValueError(
                f"{tensors.folder}: {full_name} has shape {list(shard.shape)}, the model {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(shard)
