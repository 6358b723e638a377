"""examples/plan.py as a user calls it, and the search behind it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from grids import exhaustive

from nemo_moslim.cli import compose_config
from nemo_moslim.config import RewardModelTrainingConfig, parse
from nemo_moslim.policy_config import PolicyTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model=qwen2_7b", "model.num_layers=4", "gpus=8"]


def plan(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "examples" / "plan.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_help_takes_under_two_seconds_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = plan("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0 and "gpus: 64" in shown.stdout and "a100|h100|h200" in shown.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


BAD = {
    "gpuz=8": "unknown setting 'gpuz'; did you mean 'gpu",
    "gpu=h1000": "unknown choice gpu=h1000; did you mean 'h100'",
    "task=dpo": "task='dpo': expected one of",
    "gpus=many": "gpus",
}


@pytest.fixture(scope="module")
def calls(trainings, tmp_path_factory):
    """The command in one process with NeMo imported: nothing fits, nothing can run, both kinds of task, bad values."""
    folder = tmp_path_factory.mktemp("plans")
    cases = {
        "too big": ["gpus=8", "task=ppo", f"output={folder}/big.json"],
        "no host": [*SMALL, "task=rloo", "gpu.node_memory_gigabytes=1"],
        "odd": [*SMALL, "gpus=7"],
        "rm": [*SMALL, f"output={folder}/rm.json"],
        "rloo": [*SMALL, "task=rloo", f"output={folder}/rloo.json"],
    }
    cases |= {argument: [argument] for argument in BAD}
    job = trainings.run("call_with_errors", entry="plan", cases=list(cases.values()))
    return dict(zip(cases, job.results()[0], strict=True)), job.output(), folder


@pytest.mark.parametrize("argument", BAD)
def test_bad_values_are_user_errors(calls, argument):
    shown = calls[0][argument]
    assert shown["code"] == 2 and BAD[argument] in shown["stderr"] and shown["stderr"].count("\n") == 1


def test_nothing_fits_exits_1_with_the_reason(calls):
    results, _, folder = calls
    big = results["too big"]
    assert big["code"] == 1 and "no layout fits: of " in big["stderr"] and "critic optimizer" in big["stderr"]
    written = json.loads((folder / "big.json").read_text())
    assert written["plans"] == [] and written["reason"] in big["stderr"]
    host = results["no host"]
    assert host["code"] == 1 and "the hosts of a node hold 1 GB" in host["stderr"]


def test_no_layout_can_run_exits_1_with_the_reason(calls):
    odd = calls[0]["odd"]
    assert odd["code"] == 1 and "no layout can run" in odd["stderr"] and "got 7" in odd["stderr"]


def test_tables_and_overrides_are_printed(calls):
    results, output, _ = calls
    assert results["rm"]["code"] == results["rloo"]["code"] == 0
    for text in (
        "Layouts that fit",
        "reward model",
        "reference",
        "KV cache",
        "For train_rm.py:",
        "For train_policy.py:",
    ):
        assert text in output


@pytest.mark.parametrize("task", ["rm", "rloo"])
def test_overrides_are_settings_of_the_training(calls, task):
    best = json.loads((calls[2] / f"{task}.json").read_text())["plans"][0]
    overrides = [text for text in best["overrides"] if not text.startswith("algorithm=")]
    if task == "rm":
        config = parse(compose_config("train_rm", ["run_dir=x", "data=x", *overrides]), RewardModelTrainingConfig)
        recompute, micro_size = config.model.recompute, config.batch.micro_size
    else:
        config = compose_config("train_policy", ["run_dir=x", "data=x", "policy=x", "reward=x", *best["overrides"]])
        config = parse(config, PolicyTrainingConfig)
        recompute, micro_size = config.recompute, config.batch.micro_size
        assert config.generation.batch_size == int(best["generation"])
    parallel = config.parallel
    assert (parallel.tensor, parallel.pipeline) == (best["tensor"], best["pipeline"])
    assert (recompute or "none", micro_size) == (best["recompute"], best["micro_size"])
    assert (config.model.max_length if task == "rm" else config.max_length) == 4096  # memory is that of such rows


def test_plans_are_sorted_and_fit(calls):
    found = json.loads((calls[2] / "rloo.json").read_text())
    seconds = [p["step_seconds"] for p in found["plans"]]
    assert len(seconds) > 10 and seconds == sorted(seconds)
    for p in found["plans"]:
        always = sum(item["size"] for item in p["items"] if item["when"] == "always")
        for phase, size in p["phase_bytes"].items():
            parts = sum(item["size"] for item in p["items"] if item["when"] == phase)
            assert size == pytest.approx(always + parts) and size <= found["usable_bytes"]
        assert p["step_seconds"] == pytest.approx(sum(p["phase_seconds"].values()))
        assert p["hours"] == pytest.approx(p["step_seconds"] * p["steps"] / 3600)


@pytest.mark.parametrize(
    "arguments",
    [
        exhaustive([*SMALL, "gpu.memory_gigabytes=14"]),
        [*SMALL, "task=ppo", "gpu.memory_gigabytes=18", "model.max_length=1536"],
        exhaustive(
            ["model=qwen2_57b_a14b", "model.num_layers=4", "model.num_experts=8", "gpus=8", "gpu.memory_gigabytes=21"]
        ),
    ],
)
def test_layouts_that_are_not_built_would_not_have_fitted(trainings, arguments):
    pruned, complete = trainings.run("plans_with_and_without_pruning", arguments=arguments).results()[0]
    assert 0 < len(complete["plans"]) < complete["accepted_layouts"]
    assert pruned["plans"] == complete["plans"]
