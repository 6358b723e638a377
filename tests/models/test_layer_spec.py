"""The decoder's layers: attention and norm against naive loops, whole models against transformers and each other."""

import json
import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_spec_worker import KINDS, LONG, READS
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from training_client import ROOT

from nemo_moslim.data import shared_prompts
from nemo_moslim.models.layer_spec import RMSNorm, SDPACoreAttention, decoder_layer_spec
from nemo_moslim.models.packed_sequences import packed_sequences


def attention(heads: int, groups: int, size: int, mask_type=AttnMaskType.causal, **fields) -> SDPACoreAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * size,
        num_attention_heads=heads,
        num_query_groups=groups,
        attention_dropout=fields.pop("attention_dropout", 0.0),
    )
    return SDPACoreAttention(config, 1, mask_type, "self", **fields)


def naive(query, key, value, forbidden, scale):
    """Loops over batch, head and query; forbidden [B, Sq, Sk]; a query with no key allowed gives zeros."""
    sq, batch, heads, size = query.shape
    repeat = heads // key.size(2)
    rows = []
    for q in range(sq):
        for b in range(batch):
            for h in range(heads):
                keys = [k for k in range(key.size(0)) if not forbidden[b, q, k]]
                if not keys:
                    rows.append(query.new_zeros(size))
                    continue
                scores = torch.stack([(query[q, b, h] * key[k, b, h // repeat]).sum() * scale for k in keys])
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                rows.append(sum(w * value[k, b, h // repeat] for w, k in zip(weights, keys, strict=True)))
    return torch.stack(rows).reshape(sq, batch, heads * size)


def causal(batch: int, sq: int, sk: int) -> torch.Tensor:
    return torch.tensor([[[k > sk - sq + q for k in range(sk)] for q in range(sq)]] * batch)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3)), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (4, 2)]),
)
def test_answers_see_their_prompt_and_themselves(groups, heads):
    """Values and gradients, row by row and prompt by prompt; prompts of these lengths, each with answers of those."""
    sizes = [prompt + sum(answers) for prompt, answers in groups]
    numbers = [[0] * prompt + [i + 1 for i, a in enumerate(answers) for _ in range(a)] for prompt, answers in groups]
    pieces = [number for of_group in numbers for number in of_group]
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    total, forbidden = sum(sizes), torch.ones(1, sum(sizes), sum(sizes), dtype=torch.bool)
    for q in range(total):
        for k in range(q + 1):
            forbidden[0, q, k] = group[q] != group[k] or pieces[k] not in (0, pieces[q])
    draw = torch.Generator().manual_seed(total)
    inputs = [torch.randn(total, n, 8, generator=draw, requires_grad=True) for n in (heads[0], heads[1], heads[1])]
    expected = naive(*(x[:, None] for x in inputs), forbidden, 8**-0.5)[:, 0]
    weights = torch.randn(expected.shape, generator=draw)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    rows = [(np.full(prompt, i), np.zeros(size)) for i, (prompt, answers) in enumerate(groups) for size in answers]
    for cost, by_rows in ((0, True), (math.inf, False)):
        with mock.patch.object(shared_prompts, "ROW_COST", cost):
            packing = shared_prompts.together(*zip(*rows, strict=True), pad_id=0, multiple=1).packing
        assert packing.pieces.tolist() == pieces and bool(packing.blocks) == by_rows
        params = packed_sequences(packing)["packed_seq_params"]
        found = attention(*heads, 8)(*inputs, None, packed_seq_params=params)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for mine, naives in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(mine, naives, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),  # batch
    st.integers(1, 5),  # queries
    st.integers(0, 3),  # keys in the cache
    st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1)]),
    st.sampled_from(["none", "square", "padding"]),
    st.integers(0, 10**6),
)
def test_attention_equals_the_loop(batch, sq, cached, heads_groups, mask, seed):
    heads, groups = heads_groups
    torch.manual_seed(seed)
    sk, size = sq + cached, 4
    tensors = [torch.randn(n, batch, h, size, requires_grad=True) for n, h in ((sq, heads), (sk, groups), (sk, groups))]
    forbidden, given_mask = causal(batch, sq, sk), None
    if mask == "square":
        forbidden = torch.rand(batch, sq, sk) < 0.5
        given_mask = forbidden[:, None]
        # one row with several queries is a padding mask by contract; a square one of a single query is itself
    elif mask == "padding":
        padding = torch.rand(batch, sk) < 0.4
        forbidden = forbidden | padding[:, None] if sq > 1 else padding[:, None]
        given_mask = padding[:, None, None]
    got = attention(heads, groups, size)(*tensors, given_mask)
    expected = naive(*tensors, forbidden, 1 / math.sqrt(size))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((got * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum() + 0 * sum(t.sum() for t in tensors), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_by_hand():
    """Scale 1; query 1 against keys 0 and ln 3: weights 1/4 and 3/4 of values 8 and 16 give 14; the first sees 8."""
    query = torch.ones(2, 1, 1, 1)
    key = torch.tensor([0.0, math.log(3.0)]).reshape(2, 1, 1, 1)
    value = torch.tensor([8.0, 16.0]).reshape(2, 1, 1, 1)
    got = attention(1, 1, 1)(query, key, value, None)
    torch.testing.assert_close(got.flatten(), torch.tensor([8.0, 14.0]))
    both = attention(1, 1, 1, AttnMaskType.no_mask)(query, key, value, None)
    torch.testing.assert_close(both.flatten(), torch.tensor([14.0, 14.0]))
    doubled = attention(1, 1, 1, softmax_scale=2.0)(query, key, value, None)  # weights 1/10 and 9/10
    torch.testing.assert_close(doubled.flatten(), torch.tensor([8.0, 15.2]))


@pytest.mark.parametrize("rows", [1, 4])
def test_one_token_reads_a_mask_per_sequence_or_per_head(rows):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 4, 3), torch.randn(5, 2, 2, 3), torch.randn(5, 2, 2, 3)
    mask = torch.rand(2, rows, 1, 5) < 0.4
    got = attention(4, 2, 3)(query, key, value, mask)
    for head in range(4):
        forbidden = mask[:, head % rows]
        expected = naive(query, key, value, forbidden, 1 / math.sqrt(3)).view(2, 4, 3)[:, head]
        torch.testing.assert_close(got.view(2, 4, 3)[:, head], expected, rtol=1e-5, atol=1e-6)


def test_attention_drops_only_in_training():
    core = attention(2, 2, 4, attention_dropout=0.5)
    core.config.sequence_parallel = True  # no generator per rank, hence no process groups needed here
    torch.manual_seed(0)
    query, key, value = (torch.randn(6, 2, 2, 4) for _ in range(3))
    expected = attention(2, 2, 4)(query, key, value, None)
    torch.testing.assert_close(core.eval()(query, key, value, None), expected)
    assert not torch.allclose(core.train()(query, key, value, None), expected, atol=1e-2)


def test_attention_refuses_a_bias():
    x = torch.zeros(2, 1, 1, 1)
    with pytest.raises(ValueError, match="expected no bias, got an attention bias"):
        attention(1, 1, 1)(x, x, x, None, attention_bias=x)


def test_norm_equals_the_loop_and_marks_its_weight():
    config = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=True)
    norm = RMSNorm(config, hidden_size=5, eps=0.1)
    torch.manual_seed(0)
    norm.weight.data = torch.randn(5)
    x = torch.randn(3, 5)
    expected = []
    for row in x.tolist():
        root = math.sqrt(sum(u * u for u in row) / 5 + 0.1)
        expected.append([w * v / root for w, v in zip(norm.weight.tolist(), row, strict=True)])
    torch.testing.assert_close(norm(x), torch.tensor(expected))
    assert norm.weight.sequence_parallel is True


def test_norm_has_fp32_statistics_in_bf16():
    norm = RMSNorm(SimpleNamespace(params_dtype=torch.bfloat16, sequence_parallel=False), hidden_size=4096)
    x = torch.cat([torch.full((1, 1), 64.0), torch.full((1, 4095), 0.25)], 1).bfloat16()
    got = norm(x)
    # mean of squares (4096 + 255.9375) / 4096; a running sum in bf16 stops at 4096, for an answer of 64
    expected = 64 / math.sqrt((4096 + 4095 * 0.0625) / 4096)
    assert norm.weight.dtype == got.dtype == torch.bfloat16
    assert got[0, 0].item() == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize(
    ("field", "value"), [("normalization", "LayerNorm"), ("context_parallel_size", 2), ("fp8", "hybrid")]
)
def test_spec_names_what_it_cannot_do(field, value):
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2, normalization="RMSNorm")
    setattr(config, field, value)
    with pytest.raises(ValueError, match=f"model config {field}: expected .* got {value!r}"):
        decoder_layer_spec(config)


@pytest.fixture(scope="module")
def models(trainings) -> dict:
    worker = str(ROOT / "tests" / "distributed" / "layer_spec_worker.py")
    output = trainings.run("run_script", path=worker, arguments=[]).output()
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.mark.parametrize("check", ["transformers", "transformers_full_mask", "transformers_padding_mask"])
def test_model_equals_transformers_qwen2(models, check):
    assert models["transformers_scale"] > 1.0
    assert models[check] < 1e-5 * models["transformers_scale"]


def test_model_has_the_gradients_of_transformers_qwen2(models):
    assert models["transformers_gradient"] < 1e-5


def test_kv_cache_in_steps_of_one_and_several_equals_one_forward(models):
    assert models["cache"] < 1e-5 * models["cache_scale"]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_unequal_lengths_are_answered_as_each_alone(models, kind):
    """Read at once, repeated for two answers, one of them dropped: logits of prompts and of two tokens after them."""
    assert models[f"{kind}_unequal_scale"] > 1.0
    assert models[f"{kind}_unequal"] < 1e-5 * models[f"{kind}_unequal_scale"]


@pytest.mark.parametrize("phase", ["training", "prompts"])
def test_no_tensor_has_a_query_and_a_key_dimension(models, phase):
    """A mask of bools would be the smallest one; hidden states of all tokens have to be there."""
    assert 4 * 2 * LONG * 32 < models[f"largest_in_{phase}"] < LONG**2


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["dense", "dense with norms of queries and keys"])
def test_a_model_read_early_has_the_same_states_and_gradients(models, kind, name):
    got = {k: models[f"{kind}_{name}_{k}"] for k in ("early", "attended_once", "states", "gradient")}
    assert got["early"] == 1.0 and got["attended_once"] == float(READS[name][2])
    assert got["states"] < 1e-5 and got["gradient"] < 1e-5


def test_recomputation_is_not_read_early(models):
    assert models["read_recomputed"] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_interchange_with_transformer_engines_names(models, kind):
    assert models[f"{kind}_keys"] > 10
    assert models[f"{kind}_keys_differ"] == 0
    assert models[f"{kind}_to_fused"] < 1e-5
    assert models[f"{kind}_from_fused"] < 1e-5
