"""Floating-point operations of a transformer, counted from its sizes: what a model FLOP utilisation (MFU) divides by.

Only matrix products count, two operations per multiplication and addition; norms, activations, softmax and rotary
embeddings do not, nor does what recomputation repeats (PaLM, appendix B; Korthikanti et al. 2022, appendix A).
Sizes come under megatron-core's names.
"""

from collections.abc import Mapping


def layer_weights(sizes: Mapping[str, int | None]) -> int:
    """Weights of one layer's matrices that a token meets: query, key, value, output, and the gated feed-forward."""
    hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_query_groups"]
    head_size = sizes.get("kv_channels") or hidden // heads
    attention = hidden * head_size * (heads + 2 * groups) + heads * head_size * hidden
    if not sizes.get("num_moe_experts"):
        return attention + 3 * hidden * sizes["ffn_hidden_size"]
    width = sizes["moe_router_topk"] * sizes["moe_ffn_hidden_size"] + (
        sizes.get("moe_shared_expert_intermediate_size") or 0
    )
    return attention + 3 * hidden * width + hidden * sizes["num_moe_experts"]  # the router's matrix


def causal_pairs(length: int) -> int:
    """(query, key) pairs of a row under the causal mask."""
    return length * (length + 1) // 2


def layers_flops(sizes: Mapping[str, int | None], tokens: int, pairs: int) -> int:
    """Operations of one forward pass through all layers, over rows of `tokens` and `pairs` (`causal_pairs`) in all."""
    head_size = sizes.get("kv_channels") or sizes["hidden_size"] // sizes["num_attention_heads"]
    attention = 4 * sizes["num_attention_heads"] * head_size * pairs  # scores, and their sum over values
    return sizes["num_layers"] * (2 * layer_weights(sizes) * tokens + attention)


def feed_forward_flops(sizes: Mapping[str, int | None], positions: int) -> int:
    """Operations of one dense layer's feed-forward: the last one's is left out where it is not read
    (models/read_positions.py)."""
    return 2 * 3 * sizes["hidden_size"] * sizes["ffn_hidden_size"] * positions


def forward_flops(sizes: Mapping[str, int | None], length: int, outputs: int) -> int:
    """Operations of one forward pass over a row of `length` tokens with causal attention.

    Args:
        outputs: width of the last layer at every position (vocabulary, classes); 0 where it is left out.
    """
    return layers_flops(sizes, length, causal_pairs(length)) + 2 * sizes["hidden_size"] * outputs * length


def training_flops(sizes: Mapping[str, int | None], length: int, outputs: int) -> int:
    """Forward and backward: the backward pass makes two products for every one of the forward pass."""
    return 3 * forward_flops(sizes, length, outputs)


# Dense matrix units in bf16, operations per second: NVIDIA's data sheets give the double, with sparsity. In this order.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def peak_flops(device: str, precision: str = "bf16") -> float | None:
    """Peak of a GPU, by the name that CUDA gives; None for one that is not in the table. FP8 ("fp8", "fp8 delayed", …)
    has the double of bf16."""
    peak = next((peak for name, peak in PEAK_BF16.items() if name in device), None)
    return peak * 2 if peak is not None and precision.startswith("fp8") else peak
