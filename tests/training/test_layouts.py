"""The same data, seed and initial checkpoint give the same training in every layout."""

import pytest
from training_client import metrics

LAYOUTS = {
    "TP=2": (2, ["parallel.tensor=2"]),
    "PP=2": (2, ["parallel.pipeline=2"]),
    "DP=2": (2, []),
    "DP=2, whole optimizer": (2, ["optimizer.distributed=false"]),
    "TP=2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "TP=2 x PP=2": (4, ["parallel.tensor=2", "parallel.pipeline=2"]),
}


@pytest.fixture(scope="module")
def one_rank(trainings, reward_arguments, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_rank")
    trainings.train("train_rm", *reward_arguments, f"run_dir={run_dir}")
    return metrics(run_dir)


def assert_same_training(rows, expected):
    """First step to 1e-5, validation after the last step to 1e-3, both relative."""
    assert [row["step"] for row in rows] == list(range(1, 21))
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-5)
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_like_one_rank(name, one_rank, trainings, reward_arguments, tmp_path):
    ranks, layout = LAYOUTS[name]
    trainings.train("train_rm", *reward_arguments, f"run_dir={tmp_path}", *layout, ranks=ranks)
    print(name, metrics(tmp_path)[0], metrics(tmp_path)[-1], one_rank[0], one_rank[-1])
    assert_same_training(metrics(tmp_path), one_rank)


def test_expert_parallelism_trains_like_data_parallelism(trainings, reward_arguments, tokenizer_dir, tmp_path):
    mixture = ["model.init=null", f"tokenizer={tokenizer_dir}", "model.num_experts=4", "model.expert_hidden_size=32"]
    for experts in (1, 2):
        run_dir = f"run_dir={tmp_path}/{experts}"
        trainings.train("train_rm", *reward_arguments, *mixture, run_dir, f"parallel.expert={experts}", ranks=2)
    print(metrics(tmp_path / "2")[0], metrics(tmp_path/"1")[0])
    assert_same_training(metrics(tmp_path / "2"), metrics(tmp_path / "1"))
