"""config.json of a Hugging Face folder and the architecture of a BackboneConfig, each from the other."""

import json
from pathlib import Path

from nemo_moslim.families import FAMILIES, family_of_hf
from nemo_moslim.parallel.vocab_parallel import padded_vocab_size

SETTINGS_KEY = "moslim"  # in config.json of an exported reward model: heads, loss, statistics
ASKED_KEY = "moslim_asked"  # in config.json of an exported policy: the preferences that it was trained to follow

_SIZES = {  # of a BackboneConfig -> of every config.json
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "rotary_base": "rope_theta",
    "layernorm_epsilon": "rms_norm_eps",
    "init_method_std": "initializer_range",
}
_EXPERTS = {
    "num_moe_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
}
_SHARED_EXPERT = {"moe_shared_expert_intermediate_size": "shared_expert_intermediate_size"}
_ROPE_SCALING = {
    "scale_factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "old_context_len": "original_max_position_embeddings",
}
_ONLY = {  # keys that change what a model computes, with the one value that the layers here compute
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": True,
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def read_config(folder: Path) -> dict:
    """config.json of a Hugging Face folder.

    Raises:
        ValueError: a model that no family here describes; names the key, its value and the ones that can be read.
    """
    config = json.loads((folder / "config.json").read_text())
    try:
        architecture_from_hf(config)
    except KeyError as error:
        raise ValueError(f"{folder}/config.json lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: {error}") from None
    return config


def architecture_from_hf(config: dict) -> dict:
    """Arguments of a BackboneConfig from a config.json.

    Raises:
        ValueError: a model that no family here describes.
        KeyError: a size is missing.
    """
    scaling = config.get("rope_scaling")
    name = family_of_hf(config.get("model_type"), scaling is not None)
    family = FAMILIES[name]
    for key, only in _ONLY.items():
        if config.get(key, only) != only:
            raise ValueError(f"{key}={config[key]!r} is not supported: expected {only!r}")
    architecture = dict(
        family=name,
        **{ours: config[theirs] for ours, theirs in _SIZES.items()},
        kv_channels=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        share_embeddings_and_output_weights=config.get("tie_word_embeddings", False),
        vocab_size=padded_vocab_size(config["vocab_size"]),
        num_moe_experts=None,
    )
    if family.experts:
        architecture |= {ours: config[theirs] for ours, theirs in _EXPERTS.items()}
        architecture["moe_router_pre_softmax"] = not config["norm_topk_prob"]
    if family.shared_expert:
        architecture |= {ours: config[theirs] for ours, theirs in _SHARED_EXPERT.items()}
    if family.rope_scaling:
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind != "llama3":
            raise ValueError(f"rope_scaling of type {kind!r} is not supported: expected 'llama3'")
        architecture |= {ours: scaling[theirs] for ours, theirs in _ROPE_SCALING.items()}
    return architecture


def architecture_to_hf(architecture: dict, max_length: int, vocab_size: int) -> dict:
    """Keyword arguments of the family's configuration class in transformers; the inverse of `architecture_from_hf`.

    Raises:
        ValueError: a mixture of experts in a family that has none at Hugging Face.
    """
    family = FAMILIES[architecture["family"]]
    if architecture["num_moe_experts"] and not family.experts:
        mixtures = ", ".join(name for name, other in FAMILIES.items() if other.experts)
        raise ValueError(
            f"model.family={architecture['family']} with experts has no Hugging Face class: a mixture of experts that "
            f"is to be exported needs model.family={mixtures}"
        )
    settings = {theirs: architecture[ours] for ours, theirs in _SIZES.items()}
    settings |= dict(
        tie_word_embeddings=architecture["share_embeddings_and_output_weights"],
        max_position_embeddings=max_length,
        vocab_size=vocab_size,
    )
    if family.head_size:
        settings["head_dim"] = architecture["kv_channels"]
    if family.experts:
        settings |= {theirs: architecture[ours] for ours, theirs in _EXPERTS.items()}
        settings["norm_topk_prob"] = not architecture["moe_router_pre_softmax"]
    if family.shared_expert:
        settings |= {theirs: architecture[ours] for ours, theirs in _SHARED_EXPERT.items()}
    if family.rope_scaling:
        scaling = {theirs: architecture[ours] for ours, theirs in _ROPE_SCALING.items()}
        settings["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return settings
