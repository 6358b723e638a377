"""Transformer Engine's layers against megatron-core's local ones, from the same checkpoint."""

import numpy as np
import pytest
from gpu_process import call

PROMPTS = [[5, 17, 40, 8], [3, 3, 60], [9] * 21, [100, 2, 7, 7, 31, 12, 80], [44]]


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("bf16", 0.02), ("fp32", 0.005)],  # fp32: Transformer Engine multiplies in TF32
)
def test_both_specs_score_alike(gpu_reward, rating_dir, precision, tolerance):
    data = str(rating_dir / "validation.jsonl")
    found = {
        engine: call("scores", run=gpu_reward["run"], data=data, precision=precision, transformer_engine=engine)
        for engine in (True, False)
    }
    assert any(name.startswith("TE") for name in found[True]["classes"])
    assert not any(name.startswith("TE") for name in found[False]["classes"])
    mine, local = (np.array(found[engine]["scores"]) for engine in (True, False))
    assert local.std(0).max() > 0.03  # the rows are told apart at all
    assert np.abs(mine - local).max() < tolerance


@pytest.fixture(scope="module")
def mixture_reward(tokenizer_dir, rating_dir, gpu_arguments, tmp_path_factory) -> str:
    """A reward model on a mixture of four experts and a gated one that every token takes, trained from scratch."""
    run_dir = tmp_path_factory.mktemp("gpu_mixture")
    experts = [
        "model.family=qwen2_moe", "model.num_experts=4", "model.experts_per_token=2", "model.expert_hidden_size=128",
        "model.shared_expert_hidden_size=128", f"tokenizer={tokenizer_dir}", f"data={rating_dir}",
    ]  # fmt: skip
    arguments = [*gpu_arguments, *experts, f"run_dir={run_dir}", "precision=bf16", "statistics.std_floor=1e-7"]
    call("train", entry="train_rm", arguments=arguments)
    return str(run_dir)


def test_both_specs_score_a_mixture_alike(mixture_reward, rating_dir):
    """In fp32: in bf16 a token between two experts may go to either."""
    settings = dict(run=mixture_reward, data=str(rating_dir / "validation.jsonl"), precision="fp32")
    found = {engine: call("scores", **settings, transformer_engine=engine) for engine in (True, False)}
    assert any(name.startswith("TE") for name in found[True]["classes"])
    assert not any(name.startswith("TE") for name in found[False]["classes"])
    mine, local = (np.array(found[engine]["scores"]) for engine in (True, False))
    assert local.std(0).max() > 0.01  # the rows are told apart at all
    assert np.abs(mine - local).max() < 0.01


def test_packed_rows_score_as_padded_ones(gpu_reward, rating_dir):
    found = call("packed_scores", run=gpu_reward["run"], data=str(rating_dir / "validation.jsonl"))
    padded, packed = (np.array(found[name]) for name in ("padded", "packed"))
    assert len(padded) == 24 and padded.std(0).max() > 0.1  # the rows are told apart
    assert np.abs(padded - packed).max() < 0.05


@pytest.mark.parametrize("ranks", [2, 4])
def test_packed_rows_are_split_along_the_sequence_as_by_transformer_engine(ranks):
    found = call("context_places", cu_seqlens=[0, 8 * ranks, 10 * ranks, 22 * ranks], ranks=ranks)
    assert found["mine"] == found["theirs"]


def test_head_and_statistics_stay_fp32_in_bf16(gpu_reward, rating_dir):
    from training_client import weights

    from nemo_moslim.run_folder import list_checkpoints

    data = str(rating_dir / "validation.jsonl")
    opened = call("scores", run=gpu_reward["run"], data=data, precision="bf16", transformer_engine=True)
    assert opened["head"] == ["torch.float32"] and opened["backbone"] == "torch.bfloat16"
    state = weights(list_checkpoints(gpu_reward["run"])[-1])
    head = {name: str(value.dtype) for name, value in state.items() if name.startswith("module.output_layer.")}
    assert len(head) == 4 and set(head.values()) == {"torch.float32"}


def test_generation_on_the_kv_cache_is_a_pass_over_the_whole_sequence(gpu_sft):
    found = call("greedy_answers", run=gpu_sft, prompts=PROMPTS, transformer_engine=True)
    generated, again, best = (np.array(found[name]) for name in ("logprobs", "again", "best"))
    assert np.abs(generated - again).max() < 0.02
    assert (best - again).max() < 0.02  # each token is the most likely one, up to rounding
    assert again.std() > 0.1


def test_generation_on_the_gpu_is_that_on_the_cpu(gpu_sft):
    settings = dict(run=gpu_sft, prompts=PROMPTS, transformer_engine=False)
    on_gpu, on_cpu = call("greedy_answers", **settings), call("greedy_answers", **settings, cpu=True)
    assert on_gpu["tokens"] == on_cpu["tokens"]
    np.testing.assert_allclose(on_gpu["logprobs"], on_cpu["logprobs"], atol=1e-3)
