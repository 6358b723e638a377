"""Reward-model training that reads a prompt once for several answers: the same steps as with every row apart."""

import json

import numpy as np
import pytest
from training_client import metrics

ROWS = 24  # all of them in every step, so that rows of any order give the same step
STEPS = [f"batch.global_size={ROWS}", "batch.micro_size=6", "batch.bucket_batches=1", "trainer.max_steps=3",
         "trainer.validate_every=3", "trainer.checkpoint_every=3", "statistics.mode=exact"]  # fmt: skip
LAYOUTS = {
    "DP=2": [],
    "TP=2 with sequence parallelism": ["parallel.tensor=2", "parallel.sequence=true"],
}


@pytest.fixture(scope="module")
def runs(trainings, rating_dir, reward_arguments, tmp_path_factory):
    """Trainings on three answers to each of eight prompts: rows apart, together, and together in every layout."""
    folder = tmp_path_factory.mktemp("together")
    for file in ("train.jsonl", "validation.jsonl"):
        rows = [json.loads(line) for line in (rating_dir / file).read_text().splitlines()[:ROWS]]
        rows = [{**row, "prompt": rows[i % 8]["prompt"]} for i, row in enumerate(rows)]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name, *settings):
        return ["train_rm", [*reward_arguments, *STEPS, f"data={folder}", f"run_dir={folder / name}", *settings]]

    trainings.run("train_several", runs=[run("apart"), run("together", "answers_together=4")])
    trainings.run("train_several", 2, runs=[run(name, "answers_together=4", *LAYOUTS[name]) for name in LAYOUTS])
    return folder


@pytest.mark.parametrize("name", ["together", *LAYOUTS])
def test_training_is_that_of_rows_apart_in_every_layout(name, runs):
    rows, expected = metrics(runs / name), metrics(runs / "apart")
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-5)
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3)


def test_the_tokens_are_those_that_are_read(runs):
    apart, together = (metrics(runs / name)[0]["tokens"] for name in ("apart", "together"))
    prompts = [json.loads(line)["prompt"] for line in (runs / "train.jsonl").read_text().splitlines()]
    assert len(set(prompts)) == 8 and 0.5 * apart < together < 0.9 * apart
    assert json.loads((runs / "together" / "summary.json").read_text())["padding_share"] == 0


def test_exact_statistics_are_those_of_rows_apart(runs):
    from training_client import weights

    kept = [weights(runs / name / "checkpoints" / "step=000003-exact") for name in ("apart", "together")]
    for part in ("weight", "mean", "variance"):
        apart, together = (checkpoint[f"module.output_layer.statistics_{part}"] for checkpoint in kept)
        np.testing.assert_allclose(together.numpy(), apart.numpy(), rtol=1e-3)
