"""A step of training against plain loops: the loss is a mean over the global batch, and so is its gradient."""

import json

import numpy as np
import pytest
from training_client import metrics, weights

ONE_STEP = ["trainer.max_steps=1", "trainer.validate_every=1", "trainer.checkpoint_every=1"]
BATCH = dict(global_size=16, micro_size=8, buckets=4)
DIMENSIONS = ("helpfulness", "honesty", "harmless")  # two levels each here: class weights need a row of every level


@pytest.fixture(scope="module")
def two_levels(rating_dir, tmp_path_factory):
    """The ratings with every level above 2 counted as 2."""
    folder = tmp_path_factory.mktemp("two_levels")
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (rating_dir / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["labels"] = {name: min(level, 2) for name, level in row["labels"].items()}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def first_step(trainings, reward_arguments, sft_run, two_levels, tmp_path_factory):
    """A run of one step on two data-parallel ranks with class weights, and the same step by loops."""
    run_dir = tmp_path_factory.mktemp("first_step")
    options = ["preferences=datatype2", "class_weights=inverse", f"data={two_levels}"]
    trainings.train("train_rm", *reward_arguments, *ONE_STEP, f"run_dir={run_dir}", *options, ranks=2)
    job = trainings.run("naive_reward_step", run_dir=str(run_dir), init=str(sft_run), data=str(two_levels), **BATCH)
    return run_dir, job.results()[0]


def test_reward_loss_and_gradient_are_means_over_the_labels_of_the_global_batch(first_step):
    run_dir, naive = first_step
    row = metrics(run_dir)[0]
    assert row["loss"] == pytest.approx(naive["loss"], rel=1e-5)
    assert row["grad_norm"] == pytest.approx(naive["grad_norm"], rel=1e-5)


def test_moving_statistics_after_one_step_are_those_of_its_labelled_rows(first_step):
    run_dir, naive = first_step
    state = weights(run_dir / "checkpoints" / "step=000001")
    levels = 2
    for offset, name in zip((0, 2, 4), DIMENSIONS, strict=True):
        p = np.array([r["probabilities"][offset : offset + levels] for r in naive["rows"] if name in r["labels"]])
        mean, variance, weight = (
            state[f"module.output_layer.statistics_{part}"][offset : offset + levels].numpy()
            for part in ("mean", "variance", "weight")
        )
        np.testing.assert_allclose(mean, p.mean(0), rtol=1e-5)
        np.testing.assert_allclose(variance, p.var(0), rtol=1e-3)
        np.testing.assert_allclose(weight, 0.01, rtol=1e-5)


def test_sft_loss_and_gradient_are_means_over_the_answers_tokens(trainings, sft_run, sft_dir, tiny_model, tmp_path):
    arguments = [f"model.init={sft_run}", f"data={sft_dir}", f"run_dir={tmp_path}", *tiny_model, *ONE_STEP]
    trainings.train("train_sft", *arguments, "parallel.pipeline=2", ranks=2)
    probe = dict(run_dir=str(tmp_path), init=str(sft_run), data=str(sft_dir))
    naive = trainings.run("naive_sft_step", **probe, **BATCH).results()[0]
    row = metrics(tmp_path)[0]
    assert row["counted_tokens"] == naive["count"]
    assert row["loss"] == pytest.approx(naive["loss"], rel=1e-5)
    assert row["grad_norm"] == pytest.approx(naive["grad_norm"], rel=1e-5)


def test_reward_model_takes_the_backbone_and_starts_its_heads_afresh(trainings, reward_arguments, sft_run, tmp_path):
    still = ["optimizer.lr=1e-30", "optimizer.min_lr=0", "optimizer.weight_decay=0"]
    for seed in (1, 2):
        run_dir = f"run_dir={tmp_path}/{seed}"
        trainings.train("train_rm", *reward_arguments, *ONE_STEP, *still, run_dir, f"trainer.seed={seed}")
    language = weights(sft_run / "checkpoints" / "step=000020")
    first, second = (weights(tmp_path / str(seed) / "checkpoints" / "step=000001") for seed in (1, 2))
    backbone = [name for name in first if name.startswith("module.") and "output_layer" not in name]
    assert len(backbone) > 8 and not any("output_layer" in name for name in language if name.startswith("module."))
    for name in backbone:
        np.testing.assert_array_equal(first[name].numpy(), language[name].numpy(), err_msg=name)
    heads = [state["module.output_layer.weight"] for state in (first, second)]
    assert [tuple(head.shape) for head in heads] == [(12, 32)] * 2
    assert (heads[0] != heads[1]).all()
    assert float(heads[0].std()) == pytest.approx(0.02, rel=0.15)


def test_gradients_are_clipped_to_a_norm_over_all_tensor_parallel_ranks(trainings, reward_arguments, tmp_path):
    """Adam's first moment after one step is (1 - beta1) times the clipped gradient."""
    options = ["parallel.tensor=2", "optimizer.clip_grad=0.01", "optimizer.beta1=0.9", "optimizer.distributed=false"]
    trainings.train("train_rm", *reward_arguments, *ONE_STEP, f"run_dir={tmp_path}", *options, ranks=2)
    assert metrics(tmp_path)[0]["grad_norm"] > 1.0  # as it was before it was clipped
    state = weights(tmp_path / "checkpoints" / "step=000001")
    moments = [value.double() for name, value in state.items() if name.startswith("optimizer.") and "exp_avg." in name]
    assert len(moments) == 10  # embedding, head, last norm, and seven of the stacked layers
    assert sum(m.square().sum() for m in moments).sqrt() / 0.1 == pytest.approx(0.01, rel=1e-4)
