"""Bytes on one GPU by formula: parameters and their optimizer, activations, KV cache, logits. BF16 training.

Activations after Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (their
34 s b h per layer, Table 2, with each term kept where its tensor still exists), adapted to Transformer Engine's layers:
grouped-query attention, SwiGLU, RMSNorm fused into the linear that follows, flash attention (no S x S scores), no
dropout (no masks), mixtures of experts under even routing. Lengths are the padded ones.

Symbols: T tokens of a micro-batch, t tensor-parallel ranks, h hidden size, f feed-forward size, V vocabulary.
"""

from typing import NamedTuple

from nemo_moslim.planning.shape import Layout, ModelShape

BF16, FP32, FP64 = 2, 4, 8
ROUTER_BYTES = 2 * FP32 + FP32 + 1  # per token and expert: logits, softmax, chosen weights, map of the choice
# Per logit of a chunk (parallel/vocab_parallel.py). Forward: in fp32 itself and its exponential, and the next chunk in
# bf16 and fp32. Backward: log p in fp32 and the gradient in bf16, and likewise the next chunk's logits.
LOGPROB_FORWARD_BYTES = 3 * FP32 + BF16
LOGPROB_BACKWARD_BYTES = FP32 + BF16
LOGPROB_NEXT_BYTES = FP32 + BF16
# Per logit (rollout/sampling.py): gathered; in fp32; its exponential; per block of 64 the sum, the cumulative sum and a
# copy of it in fp64, and a comparison.
SAMPLING_BYTES = BF16 + 2 * FP32 + (3 * FP64 + 1) / 64


class Shard(NamedTuple):
    """Parameters on one rank, as counted on the real model (planning/shards.py)."""

    dense: int  # bf16, replicated over all data-parallel ranks
    expert: int  # bf16, of experts that are spread over ranks
    fp32: int  # the head of a reward model or critic
    whole: int  # parameters of the model that this rank's tensor and expert ranks hold together, each counted once

    @property
    def count(self) -> int:
        """All parameters on the rank."""
        return self.dense + self.expert + self.fp32


class State(NamedTuple):
    """Bytes that a trained model holds all the time."""

    weights: float
    gradients: float
    optimizer: float


def weight_bytes(shard: Shard) -> int:
    """Of a model that is not trained."""
    return BF16 * (shard.dense + shard.expert) + FP32 * shard.fp32


def state_bytes(shard: Shard, layout: Layout) -> State:
    """megatron-core's distributed optimizer (Rajbhandari et al. 2020, ZeRO stage 1), gradients reduced in fp32.

    Per bf16 parameter 2 bytes, a gradient of 4, and over the data-parallel ranks together an fp32 copy and two Adam
    moments, 12; an fp32 parameter needs no copy: 8. Padding of the buckets, under 1 KB per parameter tensor, is left
    out.
    """
    optimizer = 3 * FP32 * (shard.dense / layout.data + shard.expert / layout.expert_data)
    optimizer += 2 * FP32 * shard.fp32 / layout.data
    return State(weight_bytes(shard), FP32 * shard.count, optimizer)


def layer_activations(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Saved by one layer for its backward pass, nothing recomputed.

    Attention: the norm's input and output (2h + 2h, split by sequence parallelism), query, key and value after the
    rotary embedding, the attention's output, its fp32 log-sum-exp per head. Feed-forward part: again the norm's input
    and output, gate and up projections, their product.
    """
    t, sequence = layout.tensor, layout.sequence
    norms = 2 * (2 * BF16 * shape.hidden + FP32) / sequence
    query_key_value = BF16 * (shape.heads + 2 * shape.groups) * shape.head_size / t
    output = BF16 * shape.heads * shape.head_size / t
    return tokens * (norms + query_key_value + output + attention_statistics(shape, layout) + _ffn_saved(shape, layout))


def attention_statistics(shape: ModelShape, layout: Layout) -> float:
    """Per token: the log-sum-exp that flash attention saves, all that recomputing the core attention can spare."""
    return FP32 * shape.heads / layout.tensor


def _ffn_saved(shape: ModelShape, layout: Layout) -> float:
    """Per token, behind the norm."""
    t = layout.tensor
    if not shape.experts:
        return 3 * BF16 * shape.ffn / t
    # every choice of an expert sends a copy of the token, which the expert's tensor-parallel ranks all receive
    chosen = shape.experts_per_token * (BF16 * shape.hidden + 3 * BF16 * shape.expert_ffn / t + FP32)
    chosen *= layout.expert_copies
    router = ROUTER_BYTES * shape.experts / layout.sequence
    shared = 3 * BF16 * shape.shared_ffn / t
    gated_output = BF16 * shape.hidden / layout.sequence if shape.shared_ffn else 0
    return chosen + router + shared + gated_output


def stage_activations(shape: ModelShape, layout: Layout, tokens: int, stage: int, micro_batches: int) -> float:
    """Of a pipeline stage at its fullest, under the schedule of one forward and one backward pass in turn (1F1B).

    Stage i holds min(stages - i, micro-batches) micro-batches (Narayanan et al. 2021). Full recomputation keeps a
    layer's input and has one layer's activations at a time besides; selective recomputation spares what
    `attention_statistics` counts. The last stage adds the final norm's input and output and the fp32 copy that a head
    makes of it.
    """
    layers = shape.layers // layout.pipeline
    whole = layer_activations(shape, layout, tokens)
    kept, at_once = whole, 0.0
    if layout.recompute == "selective":
        kept -= tokens * attention_statistics(shape, layout)
    elif layout.recompute == "full":
        kept, at_once = BF16 * tokens * shape.hidden / layout.sequence, whole
    in_flight = min(layout.pipeline - stage, micro_batches)
    last = (2 * BF16 + FP32) * tokens * shape.hidden / layout.sequence if stage == layout.pipeline - 1 else 0.0
    return in_flight * layers * kept + at_once + last + backward_workspace(shape, layout, tokens)


def backward_workspace(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Gradients that exist at one time in the backward pass of a layer: of its feed-forward part and of its output."""
    return tokens * (_ffn_saved(shape, layout) + BF16 * shape.hidden)


def forward_workspace(shape: ModelShape, layout: Layout, tokens: int) -> float:
    """Tensors that exist at one time in a forward pass without gradients: residual and norm, both whole, and the larger
    of the attention's and the feed-forward part's."""
    attention = BF16 * (2 * shape.heads + 2 * shape.groups) * shape.head_size / layout.tensor
    return tokens * (2 * BF16 * shape.hidden + max(attention, _ffn_saved(shape, layout)))


def kv_cache_bytes(shape: ModelShape, layout: Layout, rows: int, length: int) -> float:
    """Keys and values of this rank's layers for `rows` running answers of up to `length` tokens, prompt included.

    The cache is repeated for the samples of a prompt, and cut when rows have ended, layer by layer: one layer exists
    twice then. With it comes the mask of the places behind shorter prompts: as it is kept, its complement, and what the
    attention adds to the scores.
    """
    layers = shape.layers // layout.pipeline + 1
    mask = 1 + 1 + BF16
    return (2 * BF16 * layers * (shape.groups / layout.tensor) * shape.head_size + mask) * rows * length


def sampling_bytes(shape: ModelShape, rows: int) -> float:
    """Of one decoding step's draw, over the whole vocabulary, which is gathered over the tensor-parallel ranks."""
    return SAMPLING_BYTES * rows * shape.vocab


def logprob_bytes(shape: ModelShape, layout: Layout, chunk: int, backward: bool) -> float:
    """Logits of a chunk of answer tokens and what is made of them.

    The backward pass sums the vocabulary layer's gradient in fp32; a chunk's, and the whole at the end, is in bf16.
    """
    rows = shape.vocab / layout.tensor
    if not backward:
        return LOGPROB_FORWARD_BYTES * chunk * rows
    weight = rows * shape.hidden
    last = max(LOGPROB_NEXT_BYTES * chunk * rows, BF16 * weight)
    return LOGPROB_BACKWARD_BYTES * chunk * rows + FP32 * weight + last
