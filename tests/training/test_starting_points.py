"""A run goes on from what it began with."""

import re
import shutil
from types import SimpleNamespace

import pytest

from nemo_moslim.run_folder import mark_best
from nemo_moslim.training.starting_points import check_starting_points, read_start, starting_points, write_start

SERVICE, MOVED = "http://a:8000", "http://b:9000"


def points(folder, reward=(), seed=1, expert=1, **paths):
    named = {name: str(folder / paths.get(name, name)) for name in ("policy", "data")}
    rewards = [path if path.startswith("http") else str(folder / path) for path in reward]
    settings = dict(trainer=SimpleNamespace(seed=seed), parallel=SimpleNamespace(expert=expert))
    return starting_points(SimpleNamespace(**named, reward=rewards, **settings))


def test_a_run_stands_for_the_checkpoint_that_it_names(tmp_path):
    for step in (1, 2):
        for part in ("weights", "context"):
            (tmp_path / f"policy/checkpoints/step=00000{step}" / part).mkdir(parents=True)
    began = points(tmp_path)
    assert began["policy"] == str(tmp_path / "policy/checkpoints/step=000002")
    mark_best(tmp_path / "policy", "step=000001", "reward", 1.0)
    with pytest.raises(ValueError, match="^policy was .*step=000002 when run_dir=r began, and is .*step=000001 now"):
        check_starting_points(began, points(tmp_path), "r")
    check_starting_points(began, points(tmp_path, policy="policy/checkpoints/step=000002"), "r")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"policy": "other"}, "policy"),
        ({"data": "other"}, "data"),
        ({"reward": ["q", "other"]}, "reward"),
        ({"reward": ["q"]}, "reward"),
        ({"seed": 2}, r"trainer\.seed"),
        ({"expert": 2}, r"parallel\.expert > 1"),
    ],
)
def test_another_start_is_refused_with_the_remedy(tmp_path, changed, key):
    began = points(tmp_path, reward=["q", "r"])
    check_starting_points(began, points(tmp_path, reward=["q", "r"]), "run")
    remedy = f"^{key} was .* when run_dir=run began, and is .* now: give another run_dir, or the old {key} to resume it"
    with pytest.raises(ValueError, match=remedy):
        check_starting_points(began, points(tmp_path, **({"reward": ["q", "r"]} | changed)), "run")


def test_a_service_may_move_and_an_old_checkpoint_tells_nothing(tmp_path):
    began = points(tmp_path, reward=[SERVICE])
    for reward in ([MOVED], ["q"]):
        check_starting_points(began, points(tmp_path, reward=reward), "run")
    check_starting_points(points(tmp_path, reward=["q"]), points(tmp_path, reward=[MOVED]), "run")
    check_starting_points({}, began, "run")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ("trainer.seed=2", r"trainer\.seed was 1 when"),
        ("loss=joint", "loss was per_head when"),
        ("data={other}", "data was .* when"),
        ("model.init=null", r"model\.init was .* when"),
    ],
)
def test_a_reward_models_run_is_not_resumed_as_another(
    trainings, reward_run, reward_arguments, tokenizer_dir, rating_dir, tmp_path, changed, key
):
    shutil.copytree(rating_dir, tmp_path / "other")
    before = {path: path.read_bytes() for path in reward_run.rglob("*") if path.is_file()}
    settings = [*reward_arguments, f"run_dir={reward_run}", f"tokenizer={tokenizer_dir}"]
    job = trainings.start("train", 1, entry="train_rm", arguments=[*settings, changed.format(other=tmp_path / "other")])
    assert trainings.wait(job) != [0]
    assert re.search(key, " ".join(job.output().split()))
    assert {path: path.read_bytes() for path in reward_run.rglob("*") if path.is_file()} == before


def test_a_supervised_run_that_does_not_tell_what_it_began_with_is_believed(tmp_path):
    assert read_start(tmp_path) == {}
    write_start(tmp_path, {"data": "a", "model.init": None})
    assert read_start(tmp_path) == {"data": "a", "model.init": None}
