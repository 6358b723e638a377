"""Packed training: the same scores, losses and gradients as padded, and the same training in every layout."""

import json

import numpy as np
import pytest
from grids import grid
from training_client import metrics

PACKED = ["batch.packing=true", "batch.global_size=8", "batch.micro_size=2", "trainer.max_steps=4",
          "trainer.validate_every=2", "trainer.checkpoint_every=4"]  # fmt: skip
LAYOUTS = {
    "one rank": (1, []),
    "PP=2": (2, ["parallel.pipeline=2"]),
    "DP=2": (2, []),
    "TP=2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "recomputed activations": (1, ["model.recompute=full"]),
}


def test_packed_rows_have_the_scores_losses_and_gradients_of_padded_ones(
    trainings, reward_run, rating_dir, sft_run, sft_dir
):
    arguments = dict(reward_run=str(reward_run), ratings=str(rating_dir), sft_run=str(sft_run), texts=str(sft_dir))
    (found,) = trainings.run("packed_against_padded", **arguments).results()
    assert found["reward_packs"] > 5 and found["text_packs"] > 5
    for name in ("reward", "text"):
        assert found[f"{name}_scores"] < 1e-5
        assert found[f"{name}_loss"] < 1e-6
        assert found[f"{name}_gradient"] < 1e-5


@pytest.fixture(scope="module")
def run_of(trainings, reward_arguments, tmp_path_factory):
    """Run directory of a packed reward-model training in a layout, made once."""
    folder = tmp_path_factory.mktemp("packed")

    def run(name):
        ranks, layout = LAYOUTS[name]
        if not (folder / name).exists():
            trainings.train("train_rm", *reward_arguments, *PACKED, *layout, f"run_dir={folder / name}", ranks=ranks)
        return folder / name

    return run


@pytest.mark.parametrize("name", grid(list(LAYOUTS)[1:], "TP=2 with sequence parallelism", "recomputed activations"))
def test_packed_training_is_the_same_in_every_layout(name, run_of):
    rows, expected = metrics(run_of(name)), metrics(run_of("one rank"))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-5)
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3)


def test_the_summary_tells_how_full_the_packs_are(run_of):
    summary = json.loads((run_of("one rank") / "summary.json").read_text())
    packing = summary["packing"]
    assert summary["rows"] == {"train": 203, "validation": 37, "cut": 0, "dropped": 0}
    assert 0.6 < packing["fill_rate"] <= 1 and 10 < packing["packs"] < 203  # rows of up to 50 tokens in packs of 64
    assert summary["padding_share"] < 0.1


def test_packed_text_trains_and_validates_like_padded(trainings, sft_run, sft_dir, tiny_model, tmp_path):
    """The first validation is of the same weights in both: no step has moved them."""
    still = ["optimizer.lr=1e-30", "optimizer.min_lr=0", "optimizer.weight_decay=0"]
    for name, packing in (("padded", []), ("packed", PACKED)):
        arguments = [f"model.init={sft_run}", f"data={sft_dir}", f"run_dir={tmp_path}/{name}", *tiny_model]
        arguments += ["trainer.max_steps=2", "trainer.validate_every=2", *still, *packing, "trainer.max_steps=2"]
        trainings.train("train_sft", *arguments)
    padded, packed = (metrics(tmp_path / name)[-1]["validation"] for name in ("padded", "packed"))
    assert packed["counted_tokens"] == padded["counted_tokens"] > 100
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)


@pytest.mark.exhaustive  # of rows: test_run_outcomes.py; that packed rows give their scores: above
def test_exact_statistics_of_packed_rows_are_those_of_padded_ones(trainings, reward_arguments, tmp_path):
    from training_client import weights

    for name, packing in (("padded", []), ("packed", PACKED)):
        still = ["optimizer.lr=1e-30", "optimizer.min_lr=0", "optimizer.weight_decay=0", "statistics.mode=exact"]
        arguments = [*reward_arguments, *packing, "trainer.max_steps=2", "trainer.validate_every=2", *still]
        trainings.train("train_rm", *arguments, f"run_dir={tmp_path}/{name}")
    padded, packed = (weights(tmp_path / name / "checkpoints" / "step=000002-exact") for name in ("padded", "packed"))
    for part in ("weight", "mean", "variance"):
        key = f"module.output_layer.statistics_{part}"
        assert packed[key].tolist() == pytest.approx(padded[key].tolist(), rel=1e-4)


ROWS = 24  # all of them in every step, so that packs of any make-up give the same step
PADDED = [f"batch.global_size={ROWS}", "batch.micro_size=8", "batch.bucket_batches=1"]
ONE_PACK = ["batch.packing=true", "model.max_length=2048", "batch.global_size=2", "batch.micro_size=2"]  # it, twice


def test_packed_rows_split_along_the_sequence_train_like_one_rank(
    trainings, rating_dir, sft_dir, reward_arguments, tmp_path
):
    folders = {"train_rm": rating_dir, "train_sft": sft_dir}
    for entry, folder in folders.items():
        (tmp_path / entry).mkdir()
        for file in ("train.jsonl", "validation.jsonl"):
            lines = (folder / file).read_text().splitlines(keepends=True)
            (tmp_path / entry / file).write_text("".join(lines[:ROWS]))

    def runs_of(name, *settings):
        steps = ["trainer.max_steps=2", "trainer.validate_every=2"]
        places = {entry: [f"data={tmp_path / entry}", f"run_dir={tmp_path / name / entry}"] for entry in folders}
        return [[entry, [*reward_arguments, *steps, *places[entry], *settings]] for entry in folders]

    alone = [*runs_of("padded", *PADDED), *runs_of("packed", *ONE_PACK)]
    (whole,) = trainings.run("train_with_scores", runs=alone).results()
    split = runs_of("split", *ONE_PACK, "parallel.context=2")
    both = trainings.run("train_with_scores", 2, runs=split, context=True).results()
    for place, entry in enumerate(folders):
        run = tmp_path / "split" / entry
        assert json.loads((run / "summary.json").read_text())["packing"]["packs"] == 1
        first, second = (rank[place] for rank in both)
        assert first and bool(second) == (entry == "train_sft")  # answers end in the fourth piece, on the first rank
        scores, rows = np.sort(first + second, 0), metrics(run)
        for name, expected in (("padded", 2 * whole[place]), ("packed", whole[2 + place])):
            np.testing.assert_allclose(scores, np.sort(expected, 0), rtol=1e-5, atol=1e-5)
            others = metrics(tmp_path / name / entry)
            for key in ("loss", "grad_norm"):
                assert rows[0][key] == pytest.approx(others[0][key], rel=1e-5)
            assert rows[1]["validation"] == pytest.approx(others[1]["validation"], rel=1e-3)
