"""The functions that tests/gpu runs on a GPU, here on the CPU platform: one process, one after the other, as there."""

import numpy as np
import pytest

PROMPTS = [[5, 17, 40, 8], [3, 3, 60], [100, 2, 7, 7, 31, 12, 80]]


@pytest.fixture(scope="module")
def found(trainings, sft_run, reward_run, rating_dir, sft_dir, tokenizer_dir, tiny_model, tmp_path_factory) -> dict:
    """What each call returned, by the name of its function."""
    again = str(tmp_path_factory.mktemp("sft_again"))
    ratings, reward = str(rating_dir / "validation.jsonl"), str(reward_run)
    arguments = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={again}", *tiny_model]
    arguments += ["trainer.max_steps=2", "trainer.validate_every=2"]
    calls = [
        ("scores", dict(run=reward, data=ratings, precision="fp32", transformer_engine=False)),
        ("packed_scores", dict(run=reward, data=ratings)),
        ("train", dict(entry="train_sft", arguments=arguments)),
        ("greedy_answers", dict(run=again, prompts=PROMPTS, transformer_engine=True)),
        ("reward_passes", dict(run=reward, data=ratings)),
        ("policy_passes", dict(run=str(sft_run), data=str(sft_dir / "train.jsonl"))),
        ("fp8_refusal", dict(recipe="delayed", sizes={})),
    ]
    results = trainings.run("gpu_probes", calls=calls).results()[0]
    return {name: result for (name, _), result in zip(calls, results, strict=True)}


def test_scores_and_trainings(found):
    assert np.array(found["scores"]["scores"]).shape == (37, 12) and found["scores"]["head"] == ["torch.float32"]
    padded, packed = (np.array(found["packed_scores"][name]) for name in ("padded", "packed"))
    assert padded.shape == (24, 12) and np.abs(padded - packed).max() < 0.05
    assert "gloo" in found["train"]["backend"] and "needs a GPU" in found["fp8_refusal"]


def test_generation_is_a_pass_over_the_whole_sequence(found):
    generated, again, best = (np.array(found["greedy_answers"][name]) for name in ("logprobs", "again", "best"))
    assert generated.shape == (3, 16) and np.abs(generated - again).max() < 1e-4 and (best - again).max() < 1e-4


def test_passes_repeat_and_packed_ones_are_like_padded_ones(found):
    passes = found["reward_passes"] | found["policy_passes"]
    assert list(passes) == ["padded", "packed", "text, padded", "text, packed", "policy", "log-probabilities"]
    for made in passes.values():
        assert made["waited"] is None and made["second"] == pytest.approx(made["first"], rel=1e-5)
    for kind in ("", "text, "):
        padded, packed = (passes[f"{kind}{name}"]["first"] for name in ("padded", "packed"))
        assert min(padded) > 0 and packed == pytest.approx(padded, rel=0.03)
    assert passes["policy"]["first"][1] > 0 > passes["log-probabilities"]["first"][0]
