"""The same data, seed and initial checkpoint give the same training in every layout."""

import itertools
import re
import shutil

import pytest
import torch
from grids import grid
from training_client import metrics, weights

LAYOUTS = {
    "TP=2": (2, ["parallel.tensor=2"]),
    "PP=2": (2, ["parallel.pipeline=2"]),
    "DP=2": (2, []),
    "DP=2, whole optimizer": (2, ["optimizer.distributed=false"]),
    "DP=2, communication overlapped": (2, ["optimizer.overlap=true"]),
    "PP=2, rows of one length": (2, ["parallel.pipeline=2", "batch.fixed_length=true"]),
    "TP=2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "TP=2 x PP=2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
}


AT_THE_END = "trainer.validate_every=10"  # a validation that is the best so far writes a checkpoint
SIX_STEPS = ["trainer.max_steps=6", "trainer.validate_every=6", "trainer.checkpoint_every=6"]


@pytest.fixture(scope="module")
def one_rank(trainings, reward_arguments, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_rank")
    trainings.train("train_rm", *reward_arguments, AT_THE_END, "trainer.checkpoint_every=10", f"run_dir={run_dir}")
    return metrics(run_dir)


@pytest.fixture(scope="module")
def run_of_layout(trainings, reward_arguments, tmp_path_factory):
    """Run directory of a layout's training, made once."""
    made = {}

    def run(name):
        if name not in made:
            ranks, layout = LAYOUTS[name]
            made[name] = tmp_path_factory.mktemp("layout")
            trainings.train("train_rm", *reward_arguments, AT_THE_END, f"run_dir={made[name]}", *layout, ranks=ranks)
        return made[name]

    return run


def assert_same_training(rows, expected):
    """First step to 1e-5, validation after the last step to 1e-3, both relative."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-5)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3)


@pytest.mark.parametrize(
    "name",
    grid(
        LAYOUTS, "TP=2 x PP=2", "DP=2", "DP=2, communication overlapped",
    ),
)  # fmt: skip
def test_every_layout_trains_like_one_rank(name, one_rank, run_of_layout):
    assert_same_training(metrics(run_of_layout(name)), one_rank)


def test_overlapped_communication_saves_the_same_weights(run_of_layout):
    """Gathered parameters may be on their way when a checkpoint is written."""
    for step in (5, 10):
        mine, plain = (
            weights(run_of_layout(name) / "checkpoints" / f"step={step:06d}")
            for name in ("DP=2, communication overlapped", "DP=2")
        )
        assert mine.keys() == plain.keys()
        for name in (name for name in plain if name.startswith("module.")):
            torch.testing.assert_close(mine[name], plain[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", grid(["DP=2", "PP=2"], "DP=2"))
def test_a_checkpoint_continues_on_another_layout(name, run_of_layout, trainings, reward_arguments, tmp_path):
    written = run_of_layout("TP=2 x PP=2")
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(written / "checkpoints" / "step=000005", tmp_path / "checkpoints" / "step=000005")
    ranks, layout = LAYOUTS[name]
    trainings.train("train_rm", *reward_arguments, f"run_dir={tmp_path}", *layout, ranks=ranks)
    rows, uninterrupted = metrics(tmp_path), metrics(written)[5:]
    assert [row["step"] for row in rows] == list(range(6, 11))
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in uninterrupted], rel=1e-4)


@pytest.mark.exhaustive  # policies are tied: test_policy_layouts.py
def test_tied_language_model_trains_alike_in_every_layout(trainings, sft_run, sft_dir, tiny_model, tmp_path):
    runs = {"one": (1, []), "four": (4, ["parallel.tensor=2", "parallel.pipeline=2"])}
    for name, (ranks, layout) in runs.items():
        arguments = [f"model.init={sft_run}", f"data={sft_dir}", f"run_dir={tmp_path}/{name}", *tiny_model, *layout]
        trainings.train("train_sft", *arguments, ranks=ranks)
    assert_same_training(metrics(tmp_path / "four"), metrics(tmp_path / "one"))
    assert metrics(tmp_path / "one")[-1]["loss"] < metrics(tmp_path / "one")[0]["loss"]


@pytest.fixture(scope="module")
def mixture_run(trainings, sft_dir, tokenizer_dir, tiny_model, tmp_path_factory):
    """A mixture of experts from scratch, its experts on two ranks."""
    run_dir = tmp_path_factory.mktemp("mixture")
    mixture = ["model.num_experts=4", "model.expert_hidden_size=32", "parallel.expert=2", "trainer.max_steps=2"]
    arguments = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={run_dir}", *tiny_model, *mixture]
    trainings.train("train_sft", *arguments, ranks=2)
    return run_dir


def test_experts_start_apart_on_every_rank(mixture_run):
    """Experts that start alike on two ranks would be copies of each other."""
    state = weights(mixture_run / "checkpoints" / "step=000002")
    experts = [value for name, value in state.items() if re.fullmatch("module.*experts.linear_fc[12].weight", name)]
    assert [tuple(stacked.shape[:2]) for stacked in experts] == [(2, 4), (2, 4)]  # layers, experts
    for stacked in experts:
        for layer in stacked:
            for first, second in itertools.combinations(layer, 2):
                assert (first - second).abs().mean() > 0.005


def test_expert_parallelism_trains_like_data_parallelism(mixture_run, trainings, reward_arguments, tmp_path):
    for experts in (1, 2):
        settings = [f"parallel.expert={experts}", "trainer.max_steps=5", f"run_dir={tmp_path}/{experts}"]
        trainings.train("train_rm", *reward_arguments, f"model.init={mixture_run}", *settings, ranks=2)
    assert_same_training(metrics(tmp_path / "2"), metrics(tmp_path / "1"))
    split = ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert=2", "trainer.max_steps=2"]
    arguments = [*reward_arguments, f"model.init={mixture_run}", *split, f"run_dir={tmp_path}/split"]
    trainings.train("train_rm", *arguments, ranks=4)
    whole = [*arguments[:-1], "parallel.expert_tensor=1", f"run_dir={tmp_path}/whole"]  # on the tensor-parallel ranks
    trainings.train("train_rm", *whole, ranks=2)
    theirs = metrics(tmp_path / "1")
    for name in ("split", "whole"):
        for key in ("loss", "grad_norm"):
            mine = [row[key] for row in metrics(tmp_path / name)]
            assert mine == pytest.approx([row[key] for row in theirs[:2]], rel=1e-5), (name, key)


@pytest.mark.exhaustive  # how they train: the test above; how a checkpoint changes its layout: with dense models
def test_whole_experts_over_tensor_parallel_ranks_save_and_continue(mixture_run, trainings, reward_arguments, tmp_path):
    """A checkpoint of whole experts on tensor-parallel ranks goes on where the experts lie on data-parallel ranks."""
    arguments = [*reward_arguments, f"model.init={mixture_run}", "parallel.expert=2", "trainer.validate_every=2"]
    arguments += ["trainer.checkpoint_every=2", "optimizer.schedule=constant"]
    run, other = f"run_dir={tmp_path}/run", f"run_dir={tmp_path}/other"
    whole = ["parallel.tensor=2", "parallel.sequence=true", "parallel.expert_tensor=1"]
    trainings.train("train_rm", *arguments, run, *whole, "trainer.max_steps=4", ranks=2)
    trainings.train("train_rm", *arguments, other, *whole, "trainer.max_steps=2", ranks=2)
    trainings.train("train_rm", *arguments, other, "trainer.max_steps=4", ranks=2)
    mine, theirs = metrics(tmp_path / "other"), metrics(tmp_path / "run")
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in mine] == pytest.approx([row[key] for row in theirs], rel=1e-5)


def test_both_dispatchers_bring_tokens_to_the_same_experts(mixture_run, trainings, reward_arguments, tmp_path):
    for name in ("alltoall", "allgather"):
        settings = [f"model.init={mixture_run}", "parallel.expert=2", "batch.fixed_length=true", "trainer.max_steps=2"]
        settings += [f"parallel.moe_dispatcher={name}", f"run_dir={tmp_path}/{name}"]
        trainings.train("train_rm", *reward_arguments, *settings, ranks=2)
    first, second = (metrics(tmp_path / name) for name in ("alltoall", "allgather"))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in first] == pytest.approx([row[key] for row in second], rel=1e-5)


@pytest.fixture(scope="module")
def deep_arguments(trainings, sft_dir, tokenizer_dir, reward_arguments, tiny_model, tmp_path_factory):
    """train_rm from a language model of four layers, six steps, everything but run_dir."""
    run_dir = tmp_path_factory.mktemp("deep")
    arguments = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={run_dir}", *tiny_model]
    trainings.train("train_sft", *arguments, "model.num_layers=4", "trainer.max_steps=1")
    return [*reward_arguments, f"model.init={run_dir}", *SIX_STEPS]


def test_virtual_pipeline_trains_saves_and_resumes_like_one_rank(trainings, deep_arguments, tmp_path):
    interleaved = ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "batch.fixed_length=true"]
    stop = {"moment": "sigterm", "step": 3}
    trainings.train("train_rm", *deep_arguments, f"run_dir={tmp_path}/one")
    trainings.train("train_rm", *deep_arguments, f"run_dir={tmp_path}/parts", *interleaved, ranks=2, fault=stop)
    shutil.copytree(tmp_path / "parts", tmp_path / "moved")
    trainings.train("train_rm", *deep_arguments, f"run_dir={tmp_path}/parts", *interleaved, ranks=2)
    trainings.train("train_rm", *deep_arguments, f"run_dir={tmp_path}/moved", "parallel.tensor=2", ranks=2)
    for name in ("parts", "moved"):
        assert_same_training(metrics(tmp_path / name), metrics(tmp_path / "one"))
    mine, theirs = (weights(tmp_path / name / "checkpoints" / "step=000006") for name in ("parts", "one"))
    statistics = [name for name in theirs if "statistics" in name]
    assert len(statistics) == 3 and mine.keys() == theirs.keys()
    for name in statistics:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.exhaustive  # of packed rows: test_packed_training.py
def test_context_parallelism_trains_like_one_rank(
    one_rank, sft_run, trainings, reward_arguments, sft_dir, tiny_model, tmp_path
):
    tokenizer = f"tokenizer={sft_run}"  # a run's, which has that of tokenizer_dir
    language_model = [tokenizer, f"data={sft_dir}", *tiny_model, "model.tie_embeddings=true", "trainer.max_steps=20"]
    runs = [
        [entry, [*arguments, "parallel.context=2", f"run_dir={tmp_path}/{entry}"]]
        for entry, arguments in (("train_rm", reward_arguments), ("train_sft", language_model))
    ]
    trainings.run("train_along_the_sequence", 2, runs=runs)
    assert_same_training(metrics(tmp_path / "train_rm"), one_rank)
    assert_same_training(metrics(tmp_path / "train_sft"), metrics(sft_run))


def test_one_process_trains_in_several_layouts(trainings, reward_arguments, one_rank, tmp_path):
    short = [*reward_arguments, "trainer.max_steps=2"]
    names = ("TP=2", "DP=2", "PP=2")
    runs = [["train_rm", [*short, f"run_dir={tmp_path}/{name}", *LAYOUTS[name][1]]] for name in names]
    trainings.run("train_several", ranks=2, runs=runs)
    for name in names:
        assert metrics(tmp_path / name)[0]["grad_norm"] == pytest.approx(one_rank[0]["grad_norm"], rel=1e-5)
