"""The rates of examples/gpu_checks.py, on the CPU platform at a tiny shape: the code runs, its arithmetic is right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.functional.flops import forward_flops, training_flops
from nemo_moslim.gpu_checks_config import GPUChecksConfig

ROOT = Path(__file__).resolve().parents[2]
SHAPE = dict(
    num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2, vocab_size=256
)
SETTINGS = [
    *(f"shape.{name}={value}" for name, value in SHAPE.items()), "warmup=1", "repeats=3",
    "training.layers=1", "training.sequence_length=24", "training.micro_size=2", "training.micro_batches=3",
    "training.fp8_recipes=[delayed]", "logprobs.prompt_length=8", "logprobs.answer_length=16", "logprobs.micro_size=2",
    "logprobs.micro_batches=2", "logprobs.chunk=8", "generation.prompts=3", "generation.samples=2",
    "generation.prompt_length=8", "generation.max_new_tokens=4", "generation.batch_size=4",
    "training.packed_rows=4",
]  # fmt: skip
H100 = 80 * 2**30


@pytest.fixture(scope="module")
def measured(trainings, tmp_path_factory) -> dict:
    output = str(tmp_path_factory.mktemp("gpu_checks"))
    return trainings.run("throughput", settings=SETTINGS, memory=H100, output=output).results()[0]


@pytest.fixture
def rates(measured) -> list[dict]:
    """The rows that were measured: all but FP8's."""
    return [row for row in measured["results"]["rates"] if row["precision"] == "bf16"]


def test_each_rate_counts_its_tokens_and_operations(rates):
    training, packed, logprobs, generation = rates
    one_layer = SHAPE | {"num_layers": 1}
    feed_forward = 2 * 3 * 32 * 64  # of a token; the last layer's runs at the answer's end, and before answer tokens
    trained = training_flops(one_layer, 24, 12) - 3 * feed_forward * 23
    trained_packed = training_flops(one_layer, 6, 12) - 3 * feed_forward * 5  # four rows of six tokens to a pack
    read = forward_flops(SHAPE, 24, 0) - feed_forward * 8
    expected = [
        (training, "reward-model training", 1, 6 * 24, 6 * trained),
        (packed, "packed reward training", 1, 6 * 24, 24 * trained_packed),
        (logprobs, "log-probabilities", 2, 4 * 24, 4 * (read + 2 * 32 * 256 * 16)),
        (generation, "generation", 2, 6 * 4,
         3 * forward_flops(SHAPE, 8, 256) + 6 * (forward_flops(SHAPE, 12, 256) - forward_flops(SHAPE, 8, 256))),
    ]  # fmt: skip
    for row, what, layers, tokens, flops in expected:
        assert (row["what"], row["layers"], row["precision"], row["mfu"]) == (what, layers, "bf16", None)
        assert row["seconds"] > 0 and row["memory_gigabytes"] > 0 and row["shape"] == SHAPE
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(tokens)
        assert row["tflops_per_second"] * row["seconds"] == pytest.approx(flops / 1e12)


def test_memory_stands_beside_the_planners_and_the_operators_beside_the_time(rates):
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64  # weights: of 18 bytes in training, of 2 otherwise
    embedding = 256 * 32
    for row, least in zip(rates, (*[18 * (layer + embedding)] * 2, *[2 * (2 * layer + embedding)] * 2), strict=True):
        assert least < row["predicted_gigabytes"] * 2**30 < least + 2**20, row["what"]
        listed = [operator["share"] for operator in row["operators"]]
        assert 0 < len(listed) <= 10 and sorted(listed, reverse=True) == listed and 0 < sum(listed) < 1.001


def test_a_line_of_the_table_names_rate_and_utilisation(measured):
    for row, line in zip(measured["results"]["rates"], measured["lines"], strict=True):
        assert row["what"] in line and row["precision"] in line
        assert ("tokens/s" in line and "50.0%" in line) or line.endswith(row["skipped"])


def test_what_this_device_cannot_run_is_skipped_with_the_reason(measured):
    skipped = [row for row in measured["results"]["rates"] if "skipped" in row]
    assert [row["precision"] for row in skipped] == ["fp8 delayed"] and not measured["failed"]
    assert skipped[0]["skipped"].startswith("not on this device: precision=fp8 needs a GPU")
    assert {goal["result"] for goal in measured["results"]["goals"]} == {"not measured"}


def test_a_row_that_fails_is_recorded_and_the_rest_goes_on(measured):
    rows = measured["bad"]["rates"]
    assert measured["failed_again"] and [row.get("error") for row in rows] == [
        "OutOfMemoryError: bf16 packed=False", None, "OutOfMemoryError: bf16 packed=True",
        "OutOfMemoryError: bf16 packed=False", "KeyError: 'generation'",
    ]  # fmt: skip
    assert measured["written"] == rows[:-1]  # before the last row was measured


def test_fp8_stands_beside_bf16_and_the_figures_beside_the_goals(measured):
    rows, goals = measured["compared"], measured["goals"]
    assert {row["precision"]: row["fp8_by_bf16"] for row in rows if "fp8_by_bf16" in row} == {
        "fp8 tensorwise": 1.4, "fp8 delayed": 1.25
    }  # fmt: skip
    assert [(goal["at_least"], goal["measured"], goal["result"]) for goal in goals] == [
        (0.5, 0.5, "met"), (1.3, 1.4, "met"), (0.5, 0.4, "not met")
    ]  # fmt: skip
    assert measured["goal_lines"][1].endswith("at least 1.3: met (1.400)")


def test_layers_that_fit(measured):
    # a 7B layer: 233,046,016 weights of 18 bytes; activations of a token in bf16: norms' inputs and outputs (4 x 3584),
    # query and attention (2 x 3584), key and value (1024), gate, up and product (3 x 18944)
    weights = 3584 * 128 * 36 + 3584 * 3584 + 3 * 3584 * 18944
    activations = 2 * (6 * 3584 + 1024 + 3 * 18944)
    room = 0.88 * H100 - 18 * 152064 * 3584
    expected = [int(room / (18 * weights + activations * tokens)) for tokens in (4096, 8192, 16384)]
    assert measured["layers"] == expected and expected == sorted(expected, reverse=True) and expected[-1] > 1
    assert measured["fp8_layers"] == int(room / (20 * weights + activations * 4096)) <= expected[0]
    assert measured["all"] == 2  # no more than the shape has
    assert measured["activations"] == 2 * (6 * 32 + 32 + 3 * 64)


@pytest.fixture(scope="module")
def gpu_checks():
    spec = importlib.util.spec_from_file_location("gpu_checks", ROOT / "examples" / "gpu_checks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_checked():
    assert parse(compose_config("gpu_checks"), GPUChecksConfig).shape.num_layers == 28
    for setting, words in (
        (
            "training.fp8_recipes=[mxfp8]",
            "training.fp8_recipes='mxfp8': expected one of delayed, tensorwise, blockwise",
        ),
        ("generation.prompts=0", "generation.prompts=0: expected a number above 0"),
        ("repeats=0", "repeats=0: expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(compose_config("gpu_checks", [setting]), GPUChecksConfig)


def test_without_a_gpu_one_line_says_so(tmp_path):
    command = [sys.executable, ROOT / "examples" / "gpu_checks.py", f"output={tmp_path}/out"]
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no GPU: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_tests_report_is_counted(gpu_checks, monkeypatch, tmp_path):
    report = tmp_path / "tests.xml"

    def pytest_writes(text):
        def run(*_, **__):
            if text:
                report.write_text(text)
            return subprocess.CompletedProcess([], 3)

        monkeypatch.setattr(gpu_checks.subprocess, "run", run)

    pytest_writes('<testsuites><testsuite tests="12" failures="2" errors="1" skipped="3"/></testsuites>')
    assert gpu_checks.run_tests(report) == {"tests": 12, "failures": 2, "errors": 1, "skipped": 3}
    pytest_writes(None)
    assert "exit code 3" in gpu_checks.run_tests(report)["error"]
    config = parse(compose_config("gpu_checks", [f"output={tmp_path}", "measure=false"]), GPUChecksConfig)
    assert gpu_checks.run_checks(config)
    assert "exit code 3" in json.loads((tmp_path / "results.json").read_text())["tests"]["error"]
