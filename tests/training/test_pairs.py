"""DPO and MODPO on NeMo's Trainer: against loops, in every layout, resumed, and used like any policy."""

import json
import random

import numpy as np
import pytest
import torch
from grids import grid
from made_rows import sentence, write_rows
from training_client import metrics, weights

LAYOUTS = {
    "one rank": (1, []),
    "TP=2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "PP=2": (2, ["parallel.pipeline=2"]),
    "DP=2": (2, []),
}
LOSSES = {
    "dpo": ["loss=dpo", "beta=0.3"],
    "modpo": ["loss=modpo", "beta=0.3", "weights={helpfulness:0.5,honesty:0.3,harmless:0.2}", "margin_scale=2"],
}
ORACLES = {
    "dpo": dict(beta=0.3, weight=1.0, others={}),
    "modpo": dict(beta=0.3, weight=0.5, others={"honesty": 0.6, "harmless": 0.4}),
}


@pytest.fixture(scope="module")
def pair_dir(tmp_path_factory):
    """53 training and 11 validation pairs: no multiples of a batch."""
    source, folder = random.Random(4), tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 53), ("validation", 11)):
        rows = []
        for _ in range(count):
            margins = {"honesty": source.uniform(-1, 1), "harmless": source.uniform(-1, 1)}
            texts = {"chosen": f"good {sentence(source, 2, 8)}", "rejected": f"bad {sentence(source, 2, 8)}"}
            rows.append({"prompt": sentence(source, 2, 5), **texts, "objective": "helpfulness", "margins": margins})
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def arguments(sft_run, pair_dir, tiny_model):
    steps = ["trainer.max_steps=6", "trainer.validate_every=2", "trainer.checkpoint_every=2", "logprob_chunk=16"]
    sizes = ["batch.global_size=8", "batch.micro_size=4"]
    return [f"model.init={sft_run}", f"data={pair_dir}", *tiny_model, *sizes, *steps]


@pytest.fixture(scope="module")
def run_of(trainings, arguments, tmp_path_factory):
    """Run directory of six steps with a loss in a layout, made once."""
    folder = tmp_path_factory.mktemp("pair_runs")

    def run(loss, layout="one rank"):
        run_dir, (ranks, split) = folder / f"{loss} {layout}", LAYOUTS[layout]
        if not run_dir.exists():
            trainings.train("train_dpo", *arguments, *LOSSES[loss], *split, f"run_dir={run_dir}", ranks=ranks)
        return run_dir

    return run


@pytest.fixture(scope="module")
def naive_step(run_of, trainings, sft_run, pair_dir):
    """The first step of a loss by loops."""
    made = {}

    def naive(loss):
        if loss not in made:
            sizes = dict(global_size=8, micro_size=4, buckets=4)
            places = dict(run_dir=str(run_of(loss)), init=str(sft_run), data=str(pair_dir))
            (made[loss],) = trainings.run("naive_pair_step", **places, **sizes, **ORACLES[loss]).results()
        return made[loss]

    return naive


def assert_same_reference(run, naive):
    """Log-probabilities of the initial policy, kept once for the whole run."""
    with np.load(run / "reference_logprobs.npz") as kept:
        np.testing.assert_allclose(kept["train"], naive["logprobs"], rtol=1e-5, atol=1e-4)
        assert kept["validation"].shape == (11, 2) and (kept["validation"] < 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_step_equals_loops(loss, run_of, naive_step):
    run, naive = run_of(loss), naive_step(loss)
    row = metrics(run)[0]
    assert row["loss"] == pytest.approx(naive["loss"], rel=1e-5)
    assert row["grad_norm"] == pytest.approx(naive["grad_norm"], rel=1e-4)
    assert_same_reference(run, naive)


@pytest.mark.parametrize("layout", grid([name for name in LAYOUTS if name != "one rank"], "PP=2"))
def test_every_layout_trains_like_one_rank(layout, run_of, naive_step):
    assert_same_reference(run_of("modpo", layout), naive_step("modpo"))
    rows, expected = metrics(run_of("modpo", layout)), metrics(run_of("modpo"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, other in zip(rows, expected, strict=True):
        for key in ("loss", "grad_norm", "margin"):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), (row["step"], key)
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3, abs=1e-5)


def test_the_loss_falls_and_the_summary_counts_the_reference(run_of):
    rows = metrics(run_of("dpo"))
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-5) and rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["loss"] < 0.6 and rows[-1]["pair_accuracy"] > 0.5
    summary = json.loads((run_of("dpo") / "summary.json").read_text())
    seconds = summary["seconds"]
    assert seconds["reference"] > 0 and set(seconds) == {"training", "validation", "reference"}
    assert summary["device_seconds"] == pytest.approx(sum(seconds.values()), abs=0.01)


@pytest.mark.exhaustive  # of a reward model: test_resume.py; of a policy: test_policy_layouts.py
def test_bf16_trains_like_fp32_up_to_its_rounding(run_of, trainings, arguments, tmp_path):
    trainings.train("train_dpo", *arguments, *LOSSES["dpo"], "precision=bf16", f"run_dir={tmp_path}")
    for row, other in zip(metrics(tmp_path), metrics(run_of("dpo")), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.05), row["step"]


def test_killed_and_started_again_it_ends_the_same(run_of, trainings, arguments, tmp_path):
    """The reference stays that of the initial policy."""
    command = [*arguments, *LOSSES["modpo"], f"run_dir={tmp_path}"]
    stopped = trainings.start("train", entry="train_dpo", arguments=command, fault={"moment": "writing", "step": 4})
    assert trainings.wait(stopped)[0] != 0 and (tmp_path / "checkpoints" / "step=000002").is_dir()
    trainings.train("train_dpo", *command)
    straight = run_of("modpo")
    assert metrics(tmp_path) == metrics(straight)
    mine, theirs = (weights(run / "checkpoints" / "step=000006") for run in (tmp_path, straight))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_policy_answers_and_is_exported(run_of, trainings, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"prompt": "red apple"}\n')
    run = run_of("modpo", "PP=2")
    trainings.train("generate", f"policy={run}", f"input={tmp_path}/questions.jsonl", f"output={tmp_path}/a.jsonl",
                    "generation.max_new_tokens=4")  # fmt: skip
    assert json.loads((tmp_path / "a.jsonl").read_text())["response"]
    trainings.train("export_hf", f"run={run}", f"output={tmp_path}/export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_mistakes_are_told_in_one_line(run_of, trainings, arguments, rating_dir, tmp_path):
    rest = [argument for argument in arguments if not argument.startswith("model.init=")]
    cases = [
        ([*rest, "loss=dpo"], "model.init=None: expected the policy to start from"),
        ([*arguments, "loss=modpo"], "weights=None: expected weights for loss=modpo"),
        ([*arguments, "weights={helpfulness:1}"], "expected weights for loss=modpo and null for loss=dpo"),
        ([*arguments, "loss=modpo", "weights={honesty:1}"], "its weight must be above 0"),
        ([*arguments, f"data={rating_dir}"], "chosen is missing"),
        ([*arguments, "beta=0"], "beta=0.0: expected a number above 0"),
        ([*arguments, "precision=bf16", f"run_dir={run_of('dpo')}"], "of other data, model.init or precision"),
    ]
    arguments = [[f"run_dir={tmp_path}/run", *case] for case, _ in cases]
    job = trainings.run("call_with_errors", entry="train_dpo", cases=arguments)
    for (_, expected), found in zip(cases, job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
