"""Training on one GPU: NCCL, FP8 beside BF16, a step of every algorithm, and passes in which the host never waits."""

import json
from pathlib import Path

import pytest
from gpu_process import call


def rows(run_dir):
    """Training steps of metrics.jsonl."""
    return [row for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if row["step"]]


def test_the_reward_model_trains_under_nccl(gpu_reward):
    assert "nccl" in gpu_reward["backend"]
    losses = [row["loss"] for row in rows(Path(gpu_reward["run"]))]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_trains_near_bf16(recipe, gpu_reward, gpu_sft, gpu_sizes, rating_dir, gpu_arguments, tmp_path):
    if reason := call("fp8_refusal", recipe=recipe, sizes=gpu_sizes):
        pytest.skip(f"not on this device: {reason}")
    arguments = [f"model.init={gpu_sft}", f"data={rating_dir}", f"run_dir={tmp_path}", "precision=fp8"]
    call("train", entry="train_rm", arguments=[*gpu_arguments, *arguments, f"fp8_recipe={recipe}"])
    mine, bf16 = ([row["loss"] for row in rows(Path(folder))] for folder in (tmp_path, gpu_reward["run"]))
    assert len(mine) == 20 and mine != bf16
    assert mine[0] == pytest.approx(bf16[0], rel=0.03)
    assert sum(mine[-5:]) == pytest.approx(sum(bf16[-5:]), rel=0.10)
    assert mine[-1] < mine[0]


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "online_dpo"])
def test_a_step_of_policy_training(algorithm, gpu_sft, gpu_reward, prompt_dir, tmp_path):
    arguments = [
        f"algorithm={algorithm}", f"policy={gpu_sft}", f"reward={gpu_reward['run']}", f"data={prompt_dir}",
        f"run_dir={tmp_path}", "precision=bf16", "generation.max_new_tokens=16", "max_length=90", "batch.prompts=8",
        "batch.micro_size=4", "batch.score_size=4", "trainer.max_steps=1", "trainer.validate_every=1",
        "trainer.validation_prompts=8", "trainer.tensorboard=false", "optimizer.warmup_steps=0", "offload=true",
    ]  # fmt: skip
    assert "nccl" in call("train", entry="train_policy", arguments=arguments)["backend"]
    (row,) = rows(tmp_path)
    assert row["first_ratio_deviation"] < 0.01  # the same micro-batches give the old log-probabilities
    assert (
        row["mismatch_max"] < 0.5 and abs(row["kl"]) < 1e-3
    )  # generator and trainer in bf16; the policy is its reference
    assert row["grad_norm"] > 0 and row["memory_gigabytes"] > 0


@pytest.fixture(scope="module")
def passes(gpu_reward, gpu_sft, rating_dir, sft_dir) -> dict:
    """`reward_passes` and `policy_passes`, by name."""
    reward = call("reward_passes", run=gpu_reward["run"], data=str(rating_dir / "train.jsonl"))
    return reward | call("policy_passes", run=gpu_sft, data=str(sft_dir / "train.jsonl"))


@pytest.mark.parametrize("name", ["padded", "packed", "text, padded", "text, packed", "policy", "log-probabilities"])
def test_in_forward_and_backward_passes_the_host_never_waits_for_the_gpu(name, passes):
    found = passes[name]
    assert found["waited"] is None, found["waited"]
    assert found["second"] == pytest.approx(found["first"], rel=0.01)


@pytest.mark.parametrize("kind", ["", "text, "])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(kind, passes):
    padded, packed = (passes[f"{kind}{name}"]["first"] for name in ("padded", "packed"))
    assert packed == pytest.approx(padded, rel=0.03)
