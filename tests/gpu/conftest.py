"""Tests that need a GPU, one device each; skipped with the reason where there is none."""

import importlib.util
from pathlib import Path

import pytest
from gpu_process import call


def missing() -> str | None:
    """Why these tests cannot run here, or None."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is False"
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed"
    return None


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu_sizes() -> dict[str, int]:
    """Of every model here but the mixture's experts: for FP8 and fused attention.

    Four layers: fp8_recipe=tensorwise leaves the first and the last in bf16.
    """
    return dict(num_layers=4, hidden_size=128, ffn_hidden_size=256, num_attention_heads=4, num_query_groups=2)


@pytest.fixture(scope="session")
def gpu_arguments(tiny_model, gpu_sizes) -> list[str]:
    """Of every training here: 20 steps, with weights that tell rows apart."""
    return [*tiny_model, *(f"model.{name}={size}" for name, size in gpu_sizes.items()), "model.init_std=0.05"]


@pytest.fixture(scope="session")
def gpu_sft(tokenizer_dir, sft_dir, gpu_arguments, tmp_path_factory) -> str:
    """A language model trained on the GPU in bf16."""
    run_dir = tmp_path_factory.mktemp("gpu_sft")
    arguments = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={run_dir}", "precision=bf16"]
    call("train", entry="train_sft", arguments=[*gpu_arguments, *arguments])
    return str(run_dir)


@pytest.fixture(scope="session")
def gpu_reward(gpu_sft, rating_dir, gpu_arguments, tmp_path_factory) -> dict:
    """A reward model trained on the GPU in bf16 from that language model: its run, and what the process saw."""
    run_dir = tmp_path_factory.mktemp("gpu_reward")
    arguments = [f"model.init={gpu_sft}", f"data={rating_dir}", f"run_dir={run_dir}", "precision=bf16"]
    seen = call("train", entry="train_rm", arguments=[*gpu_arguments, *arguments, "statistics.std_floor=1e-7"])
    return {"run": str(run_dir), **seen}
