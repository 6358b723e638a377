"""Whole benchmarks on tiny models, as short as they can be: both sides run and agree; no figure is judged."""

import importlib.util
import json

import pytest
from training_client import ROOT

SHORT = ["rounds=1", "steps=1", "rows=4", "threads=1", "peer_batch_sizes=[4,8]", "peer_default_batch_size=4",
         "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.max_length=90"]  # fmt: skip
SETTINGS = {
    "rm": "batch.global_size=16 batch.micro_size=4",
    "rl_step": "max_length=90 generation.max_new_tokens=8 batch.prompts=4 batch.micro_size=4 batch.score_size=4",
}
SETTINGS["serve"] = "batch.rows=4 batch.micro_size=4 normalize=active"
SETTINGS |= {what: SETTINGS["rl_step"] for what in ("generate", "logprob", "scoring")}
CHECKED = {"rm": {"loss"}, "generate": {"log-probabilities"}, "logprob": {"log-probabilities"},
           "scoring": {"probabilities"}, "rl_step": {"log-probabilities", "prompts", "rewards"}}  # fmt: skip


@pytest.fixture(scope="module")
def run(trainings, tokenizer_dir, rating_dir, prompt_dir, tmp_path_factory):
    """Runs `examples/benchmark.py` and reads the file it wrote. `warm`: the peer is a Python that has imported NeMo."""
    trainings.warm_python()

    def call(what, *more, ranks=1, warm=True):
        folder = tmp_path_factory.mktemp(what)
        data = rating_dir if what in ("rm", "scoring", "serve") else prompt_dir
        arguments = [f"what={what}", f"data={data}", f"tokenizer={tokenizer_dir}", f"output={folder}/report.json"]
        arguments += [f"settings={SETTINGS[what]}", *SHORT, *more]
        if warm:
            arguments.append(f"peer_python={ROOT}/tests/distributed/warm_python.py")
        job = trainings.train("benchmark", *arguments, ranks=ranks)
        assert list(folder.iterdir()) == [folder / "report.json"]  # what it needed is gone
        return json.loads((folder / "report.json").read_text()), job.output()

    return call


def assert_complete(report, output, what, allowed=1e-4):
    assert report["largest_difference"].keys() == CHECKED[what]
    assert max(report["largest_difference"].values()) < allowed
    best, plain = report["sides"]["peer at its best"], report["sides"]["peer at its defaults"]
    assert best["sorted"] and not plain["sorted"] and plain["batch_size"] == 4
    tried = {(row["processes"], row["batch_size"]): row["per_second"] for row in report["peer_sweep"]}
    assert max(tried, key=tried.get) == (best["processes"], best["batch_size"])
    for side in report["sides"].values():
        (one,) = side["rounds"]
        assert one["seconds"] > 0 and one["cpu_seconds"] > 0 and one["tokens"] >= one["items"] > 0
    ours = report["sides"]["ours"]
    assert best["ours_by_this"]["median"] == pytest.approx(ours["per_second"] / best["per_second"])
    assert all(word in output for word in ("ours", "peer", "best", "defaults"))  # the table may break lines
    return ours["rounds"][0], best["rounds"][0], plain["rounds"][0]


def test_reward_model_training(run, rating_dir):
    report, output = run("rm")
    ours, best, plain = assert_complete(report, output, "rm")
    sorted_together = min(50, len((rating_dir / "train.jsonl").read_text().splitlines()) // (4 * 16))  # by Trainer
    assert sorted_together > 1
    assert [ours["items"], best["items"], plain["items"]] == [16, 16 * sorted_together, 16]
    assert {"torch", "transformers"} <= report["versions"]["peer"].keys()


def test_generation_of_both_sides_on_two_processes(run):
    report, output = run("generate", ranks=2)
    rounds = assert_complete(report, output, "generate")
    assert [one["items"] for one in rounds] == [16, 16, 16]
    assert all(one["tokens"] <= 16 * 8 for one in rounds)
    assert {row["processes"] for row in report["peer_sweep"]} == {1, 2} and report["ranks"] == 2


def test_log_probabilities(run):
    report, output = run("logprob")
    rounds = assert_complete(report, output, "logprob")
    assert len({one["tokens"] for one in rounds}) == 1  # the same rows


def test_log_probabilities_in_bf16(run):
    report, output = run("logprob", f"settings={SETTINGS['logprob']} precision=bf16")
    assert_complete(report, output, "logprob", allowed=5e-2)
    assert max(report["largest_difference"].values()) > 1e-4


def test_scoring(run):
    report, output = run("scoring", warm=False)
    rounds = assert_complete(report, output, "scoring")
    assert len({one["tokens"] for one in rounds}) == 1
    assert report["sides"]["a model per dimension, ours"]["rounds"][0]["items"] == 4


def test_the_service_under_load(run):
    report, output = run("serve", "against=in_process", "rows=10", "rounds=2", "clients=3", "request_items=2")
    assert report["largest_difference"] < 1e-4
    assert report["service"]["statuses"] == {"200": 10}  # two rounds of five requests
    times = report["service"]["milliseconds"]
    assert 0 < times["p50"] <= times["p99"] <= times["max"] and len(report["in_process"]["seconds"]) == 2
    rates = report["service"]["answers_per_second"], report["in_process"]["answers_per_second"]
    assert report["service_by_in_process"] == pytest.approx(rates[0] / rates[1])
    assert "in process" in output and "10 x 200" in output


@pytest.mark.exhaustive  # the operators of a run: tests/evaluation/test_throughput.py
def test_a_profile_tells_the_operators(run):
    report, output = run("rl_step", "against=trl", "profile=true")  # our side, which needs no TRL
    shares = {row["operator"]: row["share"] for row in report["operators"]}
    assert shares["aten::mm"] > 0.01 and sum(shares.values()) == pytest.approx(1.0, abs=0.02)
    assert report["seconds_unprofiled"] > 0 and "aten::mm" in output


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install .[benchmark]")
def test_rloo_steps(run):
    report, output = run("rl_step", "against=trl")
    rounds = assert_complete(report, output, "rl_step")
    assert [one["items"] for one in rounds] == [16, 16, 16]
