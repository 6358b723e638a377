import pytest

from nemo_moslim.functional.flops import forward_flops, layer_weights, peak_flops, training_flops

SMALL = dict(
    num_layers=2, hidden_size=6, ffn_hidden_size=10, num_attention_heads=3, num_query_groups=1, num_moe_experts=None
)
QWEN2_7B = dict(
    num_layers=28, hidden_size=3584, ffn_hidden_size=18944, num_attention_heads=28, num_query_groups=4,
    num_moe_experts=None,
)  # fmt: skip


def test_weights_of_a_layer_by_hand():
    # query 6x6, key 6x2, value 6x2, output 6x6, gate, up and down 6x10 each
    assert layer_weights(SMALL) == 36 + 12 + 12 + 36 + 3 * 60
    assert layer_weights(SMALL | {"kv_channels": 4}) == 6 * 12 + 2 * 6 * 4 + 12 * 6 + 180


def test_a_token_meets_its_own_experts_the_shared_one_and_the_router():
    mixture = SMALL | dict(num_moe_experts=8, moe_router_topk=2, moe_ffn_hidden_size=5)
    assert layer_weights(mixture) == 96 + 3 * 6 * (2 * 5) + 6 * 8
    assert layer_weights(mixture | {"moe_shared_expert_intermediate_size": 7}) == 96 + 3 * 6 * 17 + 48


def test_operations_equal_a_count_over_tokens_and_layers():
    length, outputs, count = 5, 4, 0
    for _ in range(SMALL["num_layers"]):
        for query in range(length):
            count += 2 * layer_weights(SMALL)
            for _ in range(query + 1):  # keys that it may attend to
                count += 3 * (2 * 2 + 2 * 2)  # three heads of size 2: a score, and a weighted value
    count += length * 2 * SMALL["hidden_size"] * outputs
    assert forward_flops(SMALL, length, outputs) == count
    assert training_flops(SMALL, length, outputs) == 3 * count


def test_long_rows_are_about_six_operations_a_weight_and_token():
    weights = 28 * layer_weights(QWEN2_7B)
    assert weights == pytest.approx(6.5e9, rel=0.01)  # of 7.6e9 less two embeddings of 0.54e9
    assert training_flops(QWEN2_7B, 4096, 0) / 4096 == pytest.approx(6 * weights, rel=0.08)
    assert training_flops(QWEN2_7B, 4096, 0) / 4096 > 6 * weights


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_flops(name) == peak
    assert peak_flops(name, "fp8 delayed") == (peak and 2 * peak)
