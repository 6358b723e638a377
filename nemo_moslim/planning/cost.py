"""Seconds by formula: computation, collectives, pipeline bubble, decoding. An estimate to rank layouts by.

Every rate is a peak value times an assumed share (conf/plan.yaml). Left out: the optimizer's arithmetic, data loading,
checkpoints, validation, padding, imbalance between ranks and between experts.

Symbols: T tokens of a micro-batch, t tensor-parallel ranks, h hidden size, m micro-batches, p pipeline stages.
"""

from dataclasses import dataclass

from nemo_moslim.planning.memory import BF16, FP32, Shard
from nemo_moslim.planning.settings import AssumedConfig, GpuConfig
from nemo_moslim.planning.shape import Layout, ModelShape

GIGA, TERA, MICRO = 1e9, 1e12, 1e-6


@dataclass(frozen=True)
class Rates:
    """What one GPU achieves: FLOP/s and bytes/s (per direction)."""

    flops: float
    memory: float
    nvlink: float
    network: float
    host: float
    launch: float  # seconds: of one layer's kernels
    latency: float  # seconds: of a small message between GPUs
    node: int  # GPUs

    @classmethod
    def of(cls, gpu: GpuConfig, assumed: AssumedConfig) -> "Rates":
        """Peak values times assumed shares."""
        return cls(
            flops=gpu.bf16_teraflops * TERA * assumed.compute,
            memory=gpu.memory_gigabytes_per_second * GIGA * assumed.memory,
            nvlink=gpu.nvlink_gigabytes_per_second * GIGA * assumed.nvlink,
            network=gpu.network_gigabytes_per_second * GIGA * assumed.network,
            host=gpu.host_gigabytes_per_second * GIGA * assumed.host,
            launch=assumed.launch_microseconds * MICRO,
            latency=assumed.latency_microseconds * MICRO,
            node=gpu.gpus_per_node,
        )

    def ring(self, ranks: int, stride: int) -> float:
        """Bytes/s of a ring over `ranks` GPUs, `stride` apart in the launch.

        Within a node it is NVLink's; across nodes the ring enters and leaves a node by the network ports of all its
        members there at once.
        """
        if ranks * stride <= self.node:
            return self.nvlink
        return min(self.nvlink, self.network * max(1, self.node // stride))


def all_gather_seconds(size: float, ranks: int, bandwidth: float) -> float:
    """A ring's all-gather to (or reduce-scatter of) `size` bytes in all; an all-reduce takes both."""
    return (ranks - 1) / ranks * size / bandwidth


def all_to_all_seconds(size: float, ranks: int, stride: int, rates: Rates) -> float:
    """Each rank sends `size` bytes, evenly to all ranks, itself included; peers in the node are reached by NVLink."""
    near = min(ranks, max(1, rates.node // stride))
    return size / ranks * ((near - 1) / rates.nvlink + (ranks - near) / rates.network)


def layer_flops(shape: ModelShape, tokens: float, length: float) -> float:
    """Forward pass of one layer: 2 per weight and token, and causal attention over rows of `length`, 2 length N D."""
    linear = 2 * (shape.attention_parameters + shape.ffn_parameters)
    return tokens * (linear + attention_flops(shape, length))


def repeated_flops(shape: ModelShape, layout: Layout, tokens: float) -> float:
    """What the experts of one layer compute once more for every copy of a token beyond the first."""
    return 2 * tokens * (layout.expert_copies - 1) * shape.chosen_parameters


def attention_flops(shape: ModelShape, length: float) -> float:
    """Per token: scores and their product with the values over half of the row on average."""
    return 2 * length * shape.heads * shape.head_size


def tensor_seconds(shape: ModelShape, layout: Layout, rates: Rates, tokens: float) -> float:
    """Collectives of tensor parallelism in one layer's forward pass (Shoeybi et al. 2019; Korthikanti et al. 2022).

    An all-reduce of T h each after attention and feed-forward part (under sequence parallelism an all-gather and a
    reduce-scatter: the same bytes). Experts: every rank of theirs gathers the tokens that were sent to them, in
    generation once from each tensor-parallel rank.
    """
    if layout.tensor == 1:
        return 0.0
    chosen = shape.experts_per_token * layout.expert_copies
    copies = 1 + (chosen + (1 if shape.shared_ffn else 0) if shape.experts else 1)
    size = BF16 * tokens * shape.hidden * copies
    return 2 * all_gather_seconds(size, layout.tensor, rates.ring(layout.tensor, 1))


def expert_seconds(shape: ModelShape, layout: Layout, rates: Rates, tokens: float) -> float:
    """Two all-to-alls in one layer's forward pass: the chosen copies of the tokens to the experts, and back."""
    if not shape.experts or layout.expert == 1:
        return 0.0
    size = BF16 * shape.hidden * shape.experts_per_token * tokens / layout.sequence
    return 2 * all_to_all_seconds(size, layout.expert, layout.tensor, rates)


@dataclass(frozen=True)
class StageSeconds:
    """One micro-batch on one pipeline stage."""

    forward: float
    backward: float
    transfer: float  # of the hidden states to the next stage

    def all_micro_batches(self, stages: int, micro_batches: int, backward: bool) -> float:
        """With the bubble: (m + p - 1) passes of a stage (Narayanan et al. 2021)."""
        transfer = self.transfer if stages > 1 else 0.0
        once = self.forward + transfer + (self.backward + transfer if backward else 0.0)
        return (micro_batches + stages - 1) * once


def stage_seconds(
    shape: ModelShape, layout: Layout, rates: Rates, tokens: float, length: float, predicted: float
) -> StageSeconds:
    """Of the slowest stage, the last. A layer takes no less than the launches of its kernels.

    Args:
        tokens: of one micro-batch.
        length: of its rows.
        predicted: tokens of it whose vocabulary is computed; the logits are computed once more in the backward pass.
    """
    layers, per_gpu = shape.layers // layout.pipeline, layout.tensor * rates.flops
    compute = (layer_flops(shape, tokens, length) + repeated_flops(shape, layout, tokens)) / per_gpu
    tensor = tensor_seconds(shape, layout, rates, tokens)
    communication = tensor + expert_seconds(shape, layout, rates, tokens)
    forward = max(compute + communication, rates.launch)
    again = {
        "none": 0.0,
        "selective": tokens * attention_flops(shape, length) / per_gpu,
        "full": forward,
    }[layout.recompute]
    regather = tensor / 2  # sequence parallelism saves a linear's input split, and gathers it for the weight's gradient
    vocabulary = 2 * predicted * shape.hidden * shape.vocab / per_gpu
    hidden = BF16 * tokens * shape.hidden / layout.sequence
    return StageSeconds(
        forward=layers * forward + vocabulary,
        backward=layers * (max(2 * compute + communication + regather, rates.launch) + again) + 3 * vocabulary,
        transfer=hidden / rates.ring(layout.pipeline, layout.tensor * layout.data),
    )


def gradient_seconds(shard: Shard, layout: Layout, rates: Rates) -> tuple[float, float]:
    """Reduce-scatter of the fp32 gradients, and all-gather of the bf16 parameters, once per update."""
    both = []
    for width in (FP32, BF16):
        dense = width * (shard.dense + shard.fp32)
        seconds = all_gather_seconds(dense, layout.data, rates.ring(layout.data, layout.tensor))
        stride = layout.tensor * layout.expert
        bandwidth = rates.ring(layout.expert_data, stride)
        both.append(seconds + all_gather_seconds(width * shard.expert, layout.expert_data, bandwidth))
    return both[0], both[1]


def update_seconds(stage: StageSeconds, gradients: tuple[float, float], stages: int, m: int, overlap: bool) -> float:
    """One optimizer step. With overlap the gradients travel behind one micro-batch's backward pass and the parameters
    behind one forward pass; what is longer than that shows."""
    reduce, gather = gradients
    if overlap:
        reduce, gather = max(0.0, reduce - stage.backward), max(0.0, gather - stage.forward)
    return stage.all_micro_batches(stages, m, backward=True) + reduce + gather


def decode_seconds(shape: ModelShape, layout: Layout, rates: Rates, rows: float, length: float) -> float:
    """One token for `rows` answers, whose cache holds `length` tokens each: all stages, one after the other.

    A layer reads its weights (of the experts, those that the rows of all expert-parallel ranks hit) and its cache, or
    computes, whichever takes longer, then exchanges what tensor and expert parallelism need, and takes no less than the
    launches of its kernels. Between stages go the hidden states, and the token that is drawn goes back to all of them.
    """
    t, stages = layout.tensor, layout.pipeline
    weights = shape.attention_parameters + shape.ffn_parameters
    if shape.experts:
        hit = 1 - (1 - shape.experts_per_token / shape.experts) ** (rows * layout.expert)
        chosen = 3 * shape.hidden * shape.expert_ffn
        weights += chosen * (shape.experts / layout.expert * hit - shape.experts_per_token)
    cache = 2 * BF16 * shape.groups * shape.head_size * rows * length
    reading = (BF16 * weights + cache) / t / rates.memory
    computing = rows * (2 * (shape.attention_parameters + shape.ffn_parameters) + 2 * attention_flops(shape, length))
    computing += repeated_flops(shape, layout, rows)
    messages = 2 * (t > 1) + 2 * bool(shape.experts and layout.expert > 1)
    exchange = tensor_seconds(shape, layout, rates, rows) + expert_seconds(shape, layout, rates, rows)
    busy = max(reading, computing / (t * rates.flops)) + exchange + messages * rates.latency
    vocabulary = BF16 * shape.hidden * shape.vocab / t / rates.memory
    hop = rates.latency + BF16 * rows * shape.hidden / rates.ring(stages, t * layout.data)
    between = (stages - 1) * hop + rates.latency if stages > 1 else 0.0
    return shape.layers * max(busy, rates.launch) + vocabulary + between
