"""Tensor conversions between megatron-core and Hugging Face, without NeMo."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nemo_moslim.huggingface.export import ShardWriter
from nemo_moslim.huggingface.qwen2 import (
    SafetensorsFolder,
    architecture_from_hf,
    architecture_to_hf,
    hf_tensors,
    local_shard,
    megatron_tensor,
    merge_qkv,
    split_qkv,
)

ARCHITECTURE = dict(num_attention_heads=4, num_query_groups=2, share_embeddings_and_output_weights=False, vocab_size=8)


def test_merge_qkv_by_hand():
    """Two groups, two query heads each, head size 1: q0 q1 k0 v0 | q2 q3 k1 v1."""
    q, k, v = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11]), torch.tensor([20.0, 21])
    assert merge_qkv(q, k, v, groups=2).tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_split_qkv_inverts_merge(groups, per_group, size, bias):
    heads, rest = groups * per_group, () if bias else (5,)
    q, k, v = (torch.randn(n * size, *rest) for n in (heads, groups, groups))
    for got, want in zip(split_qkv(merge_qkv(q, k, v, groups), heads, groups), (q, k, v), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("self_attention.linear_qkv.weight", 3, (16, 6)),
        ("self_attention.linear_qkv.bias", 3, (16,)),
        ("self_attention.linear_proj.weight", 0, (6, 8)),
        ("self_attention.linear_qkv.layer_norm_weight", 0, (6,)),
        ("input_layernorm.weight", 0, (6,)),
        ("pre_mlp_layernorm.weight", 2, (6,)),
        ("mlp.linear_fc1.layer_norm_weight", 2, (6,)),
        ("mlp.linear_fc1.weight", 1, (10, 6)),
        ("mlp.linear_fc2.weight", 1, (6, 5)),
        ("decoder.final_layernorm.weight", None, (6,)),
        ("embedding.word_embeddings.weight", None, (8, 6)),
        ("output_layer.weight", None, (8, 6)),
    ],
)
def test_tensors_there_and_back(name, layer, shape):
    whole = torch.randn(shape)
    exported = hf_tensors(name, layer, whole, ARCHITECTURE, vocab_size=8)
    assert torch.equal(megatron_tensor(name, layer, exported.__getitem__, ARCHITECTURE), whole)


def test_vocabulary_padding_is_cut_and_made_again():
    whole = torch.randn(8, 6)
    exported = hf_tensors("embedding.word_embeddings.weight", None, whole, ARCHITECTURE, vocab_size=5)
    assert exported["model.embed_tokens.weight"].shape == (5, 6)
    again = megatron_tensor("embedding.word_embeddings.weight", None, exported.__getitem__, ARCHITECTURE)
    assert torch.equal(again[:5], whole[:5])
    assert torch.equal(again[5:], torch.zeros(3, 6))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="mlp.router.weight"):
        hf_tensors("mlp.router.weight", 0, torch.zeros(1), ARCHITECTURE, 8)
    with pytest.raises(ValueError, match="no_such"):
        megatron_tensor("no_such", None, {}.__getitem__, ARCHITECTURE)


def test_shards_of_gate_and_up_are_cut_apart():
    """Rank 1 of 2 holds the second half of the gate and the second half of up."""
    parameter = torch.empty(4, 3)
    parameter.tensor_model_parallel, parameter.partition_dim = True, 0
    whole = torch.arange(8.0)[:, None].expand(8, 3)
    assert local_shard(whole, "mlp.linear_fc1.weight", parameter, 1, 2)[:, 0].tolist() == [2, 3, 6, 7]
    assert local_shard(whole, "self_attention.linear_qkv.weight", parameter, 1, 2)[:, 0].tolist() == [4, 5, 6, 7]
    parameter.partition_dim = 1
    assert local_shard(torch.arange(6.0)[None], "mlp.linear_fc2.weight", parameter, 0, 2).tolist() == [[0, 1, 2]]


def test_architecture_there_and_back():
    hf = dict(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
        rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, initializer_range=0.01, vocab_size=130,
        max_position_embeddings=77,
    )  # fmt: skip
    assert architecture_from_hf(hf)["vocab_size"] == 256
    assert architecture_to_hf(architecture_from_hf(hf), max_length=77, vocab_size=130) == hf


def test_shards_and_their_index(tmp_path):
    tensors = {f"t{i}": torch.full((1024, 256), float(i)) for i in range(5)}  # 1 MiB each
    writer = ShardWriter(tmp_path, max_gigabytes=2 / 1024)
    for name, tensor in tensors.items():
        writer.add({name: tensor})
    writer.close()
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 2**20
    folder = SafetensorsFolder(tmp_path)
    assert folder.names() == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(folder[name], tensor)
    with pytest.raises(ValueError, match="t9 is missing"):
        folder["t9"]


def test_one_small_file_needs_no_index(tmp_path):
    writer = ShardWriter(tmp_path, max_gigabytes=1)
    writer.add({"a": torch.ones(2)})
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1, 1]


def test_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        SafetensorsFolder(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert SafetensorsFolder(tmp_path).names() == {"a"}
