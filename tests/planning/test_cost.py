import dataclasses

import pytest

from nemo_moslim.planning import cost
from nemo_moslim.planning.cost import Rates, StageSeconds
from nemo_moslim.planning.memory import Shard
from nemo_moslim.planning.settings import AssumedConfig, GpuConfig
from nemo_moslim.planning.shape import Layout, ModelShape

RATES = Rates(flops=1000.0, memory=100.0, nvlink=50.0, network=5.0, host=2.0, launch=0.0, latency=0.0, node=8)
DENSE = ModelShape(layers=4, hidden=8, heads=4, groups=2, head_size=2, ffn=16, vocab=32)
EXPERTS = dataclasses.replace(DENSE, experts=8, experts_per_token=2, expert_ffn=4, shared_ffn=6)
WHOLE = Layout(tensor=1, pipeline=1, expert=1, data=1, micro_size=1, recompute="none")
SPLIT = dataclasses.replace(WHOLE, tensor=2, pipeline=2)


def test_rates_are_shares_of_the_peak():
    gpu = GpuConfig("made", 80, 2.0, 3000, 400, 50, 60, 8, 2000)
    rates = Rates.of(gpu, AssumedConfig(0.5, 0.5, 0.25, 0.5, 0.1, 300, 20, 6))
    assert rates == Rates(1e12, 1.5e12, 1e11, 2.5e10, 6e9, pytest.approx(3e-4), pytest.approx(2e-5), 8)


@pytest.mark.parametrize(
    ("ranks", "stride", "bandwidth"),
    [
        (8, 1, 50),  # one node
        (4, 2, 50),
        (2, 8, 5),  # one GPU in each node: its own port
        (16, 1, 40),  # all eight ports of a node
        (64, 1, 40),
        (8, 4, 10),  # two GPUs of the group in each node
        (4, 16, 5),  # in every other node
    ],
)
def test_a_ring_across_nodes_uses_the_ports_of_its_members(ranks, stride, bandwidth):
    assert RATES.ring(ranks, stride) == bandwidth


def test_collectives_by_hand():
    assert cost.all_gather_seconds(size=800, ranks=4, bandwidth=50) == 12  # 3/4 of it over the wire
    near = cost.all_to_all_seconds(size=800, ranks=8, stride=1, rates=RATES)
    assert near == pytest.approx(7 * 100 / 50)  # seven parts of 100 by NVLink
    far = cost.all_to_all_seconds(size=800, ranks=4, stride=4, rates=RATES)
    assert far == pytest.approx(200 / 50 + 2 * 200 / 5)


def test_flops_of_a_layer_are_two_per_weight_and_token_and_causal_attention():
    # q and output 8 x 8 each, k and v 8 x 4 each: 192; gate, up, down 3 x 8 x 16: 384; attention 2 x 10 x 8
    assert DENSE.attention_parameters == 192 and DENSE.ffn_parameters == 384
    assert cost.layer_flops(DENSE, tokens=5, length=10) == 5 * (2 * 576 + 160)
    # two experts of 3 x 8 x 4 and the shared one of 3 x 8 x 6, router 8 x 8, gate 8
    assert EXPERTS.ffn_parameters == 2 * 96 + 144 + 64 + 8


def test_causal_attention_against_a_count_of_pairs():
    length, pairs = 100, sum(range(1, 101))
    scores_and_values = 2 * 2 * pairs * DENSE.heads * DENSE.head_size
    assert cost.attention_flops(DENSE, length) * length == pytest.approx(scores_and_values, rel=0.011)


def test_tensor_parallel_traffic_by_hand():
    assert cost.tensor_seconds(DENSE, WHOLE, RATES, tokens=5) == 0
    # two all-reduces of 2 x 5 x 8 bytes, each twice half of it
    assert cost.tensor_seconds(DENSE, SPLIT, RATES, tokens=5) == pytest.approx(2 * 80 / 50)
    # attention, shared expert, and the copies for two experts
    assert cost.tensor_seconds(EXPERTS, SPLIT, RATES, tokens=5) == pytest.approx(4 * 80 / 50)


def test_expert_parallel_traffic_by_hand():
    layout = dataclasses.replace(WHOLE, expert=4, data=4)
    assert cost.expert_seconds(DENSE, layout, RATES, tokens=5) == 0
    # to the experts and back: 2 copies of 5 tokens of 16 bytes, 3/4 of them to other ranks
    assert cost.expert_seconds(EXPERTS, layout, RATES, tokens=5) == pytest.approx(2 * 160 * 3 / 4 / 50)


def test_in_generation_experts_compute_and_gather_what_every_tensor_parallel_rank_sends():
    layout = dataclasses.replace(SPLIT, pipeline=1).in_generation()
    # attention, shared expert, and two copies for each of two experts
    assert cost.tensor_seconds(EXPERTS, layout, RATES, tokens=5) == pytest.approx(6 * 80 / 50)
    chosen = 2 * 3 * 8 * 4  # weights of two experts
    assert EXPERTS.chosen_parameters == chosen and DENSE.chosen_parameters == 0
    fast_memory = dataclasses.replace(RATES, memory=1e9, nvlink=1e12)
    training, generation = (
        cost.decode_seconds(EXPERTS, place, fast_memory, rows=3, length=7)
        for place in (dataclasses.replace(SPLIT, pipeline=1), layout)
    )
    assert generation - training == pytest.approx(4 * 3 * 2 * chosen / 2000)  # 4 layers, two ranks' rate
    wide = dataclasses.replace(RATES, nvlink=1e12)
    reading = [cost.stage_seconds(EXPERTS, place, wide, 5, 10, predicted=0).forward for place in (SPLIT, layout)]
    assert reading[1] - 2 * reading[0] == pytest.approx(4 * 5 * 2 * chosen / 2000)  # of 4 layers, not of 2
    spread = dataclasses.replace(SPLIT, expert=4, data=4)
    halves, whole = (cost.expert_seconds(EXPERTS, place, RATES, 5) for place in (spread, spread.in_generation()))
    assert whole == pytest.approx(2 * halves)


def test_a_stage_by_hand():
    layout = dataclasses.replace(WHOLE, pipeline=2)
    layer = 5 * (1152 + 160) / 1000
    vocabulary = 2 * 3 * 8 * 32 / 1000
    stage = cost.stage_seconds(DENSE, layout, RATES, tokens=5, length=10, predicted=3)
    assert stage.forward == pytest.approx(2 * layer + vocabulary)
    assert stage.backward == pytest.approx(4 * layer + 3 * vocabulary)
    assert stage.transfer == pytest.approx(2 * 5 * 8 / 50)


def test_recomputation_costs_a_forward_pass_or_its_attention():
    def backward(recompute):
        layout = dataclasses.replace(WHOLE, tensor=2, recompute=recompute)
        return cost.stage_seconds(DENSE, layout, RATES, tokens=5, length=10, predicted=0).backward

    compute, traffic = 5 * (1152 + 160) / 2000, cost.tensor_seconds(DENSE, SPLIT, RATES, 5)
    assert backward("none") == pytest.approx(4 * (2 * compute + 1.5 * traffic))
    assert backward("selective") - backward("none") == pytest.approx(4 * 5 * 160 / 2000)
    assert backward("full") - backward("none") == pytest.approx(4 * (compute + traffic))


def test_no_pass_of_a_layer_is_shorter_than_its_launches():
    slow = dataclasses.replace(RATES, launch=100.0)
    stage = cost.stage_seconds(DENSE, WHOLE, slow, tokens=5, length=10, predicted=0)
    assert (stage.forward, stage.backward) == (400, 400)
    full = dataclasses.replace(WHOLE, recompute="full")
    assert cost.stage_seconds(DENSE, full, slow, tokens=5, length=10, predicted=0).backward == 800


def test_the_bubble_is_stages_less_one_micro_batches():
    stage = StageSeconds(forward=1.0, backward=2.0, transfer=0.25)
    assert stage.all_micro_batches(stages=1, micro_batches=6, backward=True) == 6 * 3
    assert stage.all_micro_batches(stages=4, micro_batches=6, backward=True) == 9 * 3.5
    assert stage.all_micro_batches(stages=4, micro_batches=6, backward=False) == 9 * 1.25


def test_gradients_and_parameters_travel_once_per_update():
    layout = dataclasses.replace(WHOLE, data=4, expert=2)
    shard = Shard(dense=90, expert=40, fp32=10, whole=0)
    # fp32 gradients: 3/4 of 400 bytes over all ranks, half of the experts' 160; bf16 parameters: half of it
    assert cost.gradient_seconds(shard, layout, RATES) == pytest.approx(((300 + 80) / 50, (150 + 40) / 50))


def test_overlap_hides_what_one_micro_batch_covers():
    stage = StageSeconds(forward=1.0, backward=2.0, transfer=0.0)
    assert cost.update_seconds(stage, (5.0, 0.5), stages=1, m=4, overlap=False) == 12 + 5.5
    assert cost.update_seconds(stage, (5.0, 0.5), stages=1, m=4, overlap=True) == 12 + 3.0


def test_decoding_reads_weights_and_cache_or_computes():
    slow_memory = dataclasses.replace(RATES, memory=1.0)
    # weights 2 x 576 and cache 2 x 2 x 2 x 2 x (3 rows x 7 tokens) per layer; vocabulary 2 x 8 x 32
    reading = 4 * (2 * 576 + 16 * 21) + 512
    assert cost.decode_seconds(DENSE, WHOLE, slow_memory, rows=3, length=7) == pytest.approx(reading)
    fast_memory = dataclasses.replace(RATES, memory=1e9)
    computing = 4 * 3 * (2 * 576 + 4 * 7 * 8) / 1000
    assert cost.decode_seconds(DENSE, WHOLE, fast_memory, rows=3, length=7) == pytest.approx(computing)


def test_decoding_reads_the_experts_that_rows_hit():
    slow_memory = dataclasses.replace(RATES, memory=1.0, flops=1e9, nvlink=1e12)

    def weights(rows, expert):
        layout = dataclasses.replace(WHOLE, expert=expert, data=expert)
        seconds = cost.decode_seconds(EXPERTS, layout, slow_memory, rows=rows, length=0) - 512
        return seconds / 4 / 2

    always = EXPERTS.attention_parameters + EXPERTS.ffn_parameters - 2 * 96
    assert weights(rows=1, expert=1) == pytest.approx(always + 2 * 96)  # one token takes two experts
    assert weights(rows=10_000, expert=1) == pytest.approx(always + 8 * 96)
    assert weights(rows=10_000, expert=4) == pytest.approx(always + 2 * 96)


def test_decoding_exchanges_within_layers_and_between_stages():
    quick = dataclasses.replace(RATES, memory=1e12, flops=1e12)
    late = dataclasses.replace(quick, latency=0.5)

    def seconds(shape, layout, rates=quick):
        return cost.decode_seconds(shape, layout, rates, rows=3, length=7)

    assert seconds(DENSE, WHOLE, late) == pytest.approx(0, abs=1e-6)
    tensor = dataclasses.replace(WHOLE, tensor=2)
    # two all-reduces of 3 rows of 16 bytes in each of 4 layers, half of it each way
    assert seconds(DENSE, tensor) == pytest.approx(4 * 2 * 48 / 50)
    assert seconds(DENSE, tensor, late) - seconds(DENSE, tensor) == pytest.approx(4 * 2 * 0.5)
    pipeline = dataclasses.replace(WHOLE, pipeline=4)
    assert seconds(DENSE, pipeline) == pytest.approx(3 * 48 / 50)
    assert seconds(DENSE, pipeline, late) - seconds(DENSE, pipeline) == pytest.approx((3 + 1) * 0.5)  # and the token
    expert = dataclasses.replace(WHOLE, expert=4, data=4)
    assert seconds(EXPERTS, expert) == pytest.approx(4 * 2 * 96 * 3 / 4 / 50)  # two copies of 3 rows of 16 bytes
    assert seconds(EXPERTS, expert, late) - seconds(EXPERTS, expert) == pytest.approx(4 * 2 * 0.5)
    launched = dataclasses.replace(late, launch=3.0)  # a layer's messages travel while the next kernels are launched
    assert seconds(DENSE, tensor, launched) == pytest.approx(4 * 3.0)
