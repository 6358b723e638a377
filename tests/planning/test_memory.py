import dataclasses

import pytest
import torch
from grids import grid
from live_bytes import LiveBytes

from nemo_moslim.parallel.vocab_parallel import vocab_parallel_logprobs
from nemo_moslim.planning import memory
from nemo_moslim.planning.memory import Shard, State
from nemo_moslim.planning.shape import Layout, ModelShape
from nemo_moslim.rollout.sampling import sample_tokens

DENSE = ModelShape(layers=4, hidden=8, heads=4, groups=2, head_size=2, ffn=16, vocab=32)
EXPERTS = dataclasses.replace(DENSE, experts=8, experts_per_token=2, expert_ffn=4, shared_ffn=6)
WHOLE = Layout(tensor=1, pipeline=1, expert=1, data=1, micro_size=1, recompute="none")
SPLIT = dataclasses.replace(WHOLE, tensor=2, pipeline=2)


def test_state_of_megatrons_distributed_optimizer():
    shard = Shard(dense=100, expert=40, fp32=8, whole=0)
    layout = dataclasses.replace(WHOLE, data=4, expert=2)  # dense parameters over 4 ranks, experts over 2
    # weights 2 x 140 + 4 x 8; gradients 4 x 148; fp32 copies and moments 12 x (100/4 + 40/2) + 8 x 8/4
    assert memory.state_bytes(shard, layout) == State(weights=312, gradients=592, optimizer=556)
    assert memory.weight_bytes(shard) == 312


def test_a_layers_activations_by_hand():
    # per token on one rank: norms 2 x (2 x 2 x 8 + 4), q k v 2 x 8 x 2, output 2 x 4 x 2, statistics 4 x 4, 3 x 2 x 16
    assert memory.layer_activations(DENSE, WHOLE, 10) == 10 * (72 + 32 + 16 + 16 + 96)
    assert memory.layer_activations(DENSE, SPLIT, 10) == 10 * (72 + 32 + 16 + 16 + 96) / 2


def test_a_layers_activations_hold_the_terms_of_korthikanti():
    """Their 34 h without the dropout masks' 2 h, with f in place of the 4 h of GELU's input and output: 16 h + 4 f; the
    gate adds 2 f. The norms' and the softmax's fp32 statistics, which they leave out, are taken off."""
    shape = ModelShape(layers=1, hidden=64, heads=8, groups=8, head_size=8, ffn=256, vocab=32)
    statistics = 2 * 4 + memory.attention_statistics(shape, WHOLE)
    assert memory.layer_activations(shape, WHOLE, 1) - statistics == 16 * 64 + 6 * 256


def test_activations_of_a_mixture_of_experts_by_hand():
    attention = 72 + 32 + 16 + 16
    chosen = 2 * (2 * 8 + 3 * 2 * 4 + 4)  # two experts, each with the token's copy, gate, up, product, its weight
    shared = 3 * 2 * 6 + 2 * 8  # and its output before the sigmoid gate
    router = 13 * 8
    assert memory.layer_activations(EXPERTS, WHOLE, 1) == attention + chosen + shared + router
    halves = (attention + shared + router) / 2 + 2 * (2 * 8 + 3 * 4 + 4)  # copies of tokens are gathered: not halved
    assert memory.layer_activations(EXPERTS, SPLIT, 1) == halves


def test_a_layer_saves_what_the_formula_says(trainings):
    """Of a layer without Transformer Engine on the CPU, in bf16; the formula is that of Transformer Engine's layers."""
    hidden, ffn, heads, size, rows = 256, 1344, 8, 32, 2  # feed-forward part as wide as in Qwen2-7B
    arguments = [f"model.hidden_size={hidden}", f"model.ffn_hidden_size={ffn}", f"model.num_attention_heads={heads}"]
    found = trainings.run("saved_by_a_layer", arguments=arguments, rows=rows, length=64).results()[0]
    known = {  # bytes per token that the local layer saves besides
        "silu of the gate, which the backward pass would else compute again": 2 * ffn,
        "cosines and sines of the rotary embedding, once for all rows": 2 * 2 * size / rows,
    }
    assert found["saved"] == found["formula"] + sum(known.values())
    assert found["saved"] == pytest.approx(1.24 * found["formula"], rel=0.005)  # docs/performance.md


@pytest.mark.parametrize(
    ("recompute", "kept", "at_once"), [("none", 1160, 0), ("selective", 1160 - 80, 0), ("full", 80, 1160)]
)
def test_a_stages_activations_by_recomputation(recompute, kept, at_once):
    layout = dataclasses.replace(SPLIT, recompute=recompute)
    workspace = 10 * (48 + 16)
    first = memory.stage_activations(DENSE, layout, tokens=10, stage=0, micro_batches=8)
    assert first == 2 * 2 * kept + at_once + workspace  # two micro-batches in flight, two layers
    last = memory.stage_activations(DENSE, layout, tokens=10, stage=1, micro_batches=8)
    assert last == 2 * kept + at_once + 8 * 10 * 8 / 2 + workspace  # final norm and the head's fp32 copy
    assert memory.stage_activations(DENSE, layout, 10, 0, micro_batches=1) == 2 * kept + at_once + workspace


def test_kv_cache_by_hand():
    # keys and values, 2 layers of the stage and one twice, 1 group of 2 on the rank; two bools and a number as a mask
    assert memory.kv_cache_bytes(DENSE, SPLIT, rows=5, length=7) == (2 * 2 * 3 * 1 * 2 + 4) * 5 * 7


def test_forward_workspace_by_hand():
    # residual and norm 2 x 2 x 8, then the larger of attention 2 x (8 + 4) x 2 = 48 and feed-forward part 96
    assert memory.forward_workspace(DENSE, WHOLE, tokens=10) == 10 * (32 + 96)
    assert memory.forward_workspace(DENSE, SPLIT, tokens=10) == 10 * (32 + 48)


def test_in_generation_every_tensor_parallel_rank_sends_all_tokens_to_the_experts():
    """Router 13 x 8, shared expert 3 x 2 x 6 of which a half on the rank, its output 2 x 8; per choice of an expert the
    token's copy 2 x 8, gate, up and product 3 x 2 x 4 of which a half, its weight 4: two choices, from two ranks."""
    chosen = 2 * (16 + 12 + 4)
    assert memory.forward_workspace(EXPERTS, SPLIT, tokens=10) == 10 * (32 + chosen + 104 / 2 + 18 + 16 / 2)
    generation = memory.forward_workspace(EXPERTS, SPLIT.in_generation(), tokens=10)
    assert generation == 10 * (32 + 2 * chosen + 104 + 18 + 16)
    assert SPLIT.in_generation().expert_copies == 2 and WHOLE.in_generation().expert_copies == 1
    assert memory.forward_workspace(DENSE, SPLIT.in_generation(), tokens=10) == 10 * (32 + 48)


def test_sampling_takes_what_the_formula_says():
    shape, rows = dataclasses.replace(DENSE, vocab=20_000), 16
    logits = torch.randn(rows, shape.vocab, dtype=torch.bfloat16)
    draws = torch.rand(rows, dtype=torch.float64)
    with LiveBytes(draws) as live:
        sample_tokens(logits.clone(), draws, temperature=1.0, top_p=1.0, top_k=0)
    assert live.peak <= memory.sampling_bytes(shape, rows) * 1.001
    assert live.peak == pytest.approx(memory.sampling_bytes(shape, rows), rel=0.02)


@pytest.mark.parametrize(("chunk", "hidden_size"), grid([(128, 64), (32, 256)], (128, 64)))
def test_log_probabilities_take_what_the_formula_says(chunk, hidden_size):
    shape = dataclasses.replace(DENSE, hidden=hidden_size, vocab=20_000)
    hidden = torch.randn(3 * chunk, hidden_size, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(shape.vocab, hidden_size, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, shape.vocab, (3 * chunk,))
    with LiveBytes(hidden, weight, targets) as forward:
        logprobs, entropy = vocab_parallel_logprobs(
            hidden, weight, targets, vocab_size=shape.vocab, temperature=1.0, chunk=chunk, group=None
        )
    with LiveBytes(hidden, weight, targets) as backward:
        (logprobs.sum() + entropy.sum()).backward()
    for live, is_backward in ((forward, False), (backward, True)):
        expected = memory.logprob_bytes(shape, WHOLE, chunk, is_backward)
        assert live.peak == pytest.approx(expected, rel=0.02)
