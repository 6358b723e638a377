"""A thousand malformed rows: each one is kept, unlabelled or quarantined, or stops the run with file, line, reason."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_moslim.cli import compose_config
from nemo_moslim.data.prepare import prepare
from nemo_moslim.data.prepare_settings import PrepareSettings
from nemo_moslim.data.ratings import read_prompts, read_ratings, read_sft
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "prepare_data.py"
SCHEMA = PreferenceSchema(
    (Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)


def run(*arguments):
    path_keys = ("input", "output", "validation", "exclude")
    config = compose_config("prepare_data", arguments, path_keys=path_keys, open_keys=("preferences", "fields"))
    return prepare(PrepareSettings.from_config(OmegaConf.to_container(config, resolve=True)))


def command(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fuzzed_line(rng, index):
    """A jsonl line: mostly a good row with one or two fields spoilt, sometimes no JSON at all."""
    row = {"prompt": f"prompt {index}", "response": f"answer {index}", "id": index}
    row[rng.choice(SCHEMA.names)] = rng.choice([1, 2, 2.0])
    texts = [
        3,
        None,
        True,
        [],
        {},
        "",
        "   ",
        "\ud800",
        "a\udfffb",
        "nul\0",
        "x" * 200_001,
        ["a"],
        [{"role": "user"}],
        [{"role": "user", "content": "ok"}],
        "\n\nHuman:",
        "\n\nHuman: a\n\nAssistant:",
        "\u202e日本 🙂",
        1e999,
    ]
    scores = [
        math.nan,
        math.inf,
        -math.inf,
        0,
        6,
        -1,
        1.5,
        5,
        10**30,
        True,
        False,
        "3",
        "N/A",
        "",
        None,
        {},
        [],
        [1],
        [0.5, 0.5],
        [0.2] * 5,
        [math.nan] * 5,
        [0, 0, 0, 0, 1],
        [[1]],
        "x" * 100_000,
        1e-300,
    ]
    for _ in range(rng.randint(0, 2)):
        field = rng.choice(["prompt", "response", *SCHEMA.names, "extra"])
        row[field] = rng.choice(scores if field in SCHEMA.names else texts)
    if rng.random() < 0.2:
        row.pop(rng.choice(list(row)))
    line = json.dumps(row).encode()
    spoil = rng.random()
    if spoil < 0.05:
        return line[: rng.randint(1, len(line) - 1)]
    if spoil < 0.1:
        position = rng.randrange(len(line))
        return line[:position] + bytes([rng.choice([0x80, 0xFF, 0xC3])]) + line[position:]
    if spoil < 0.13:
        return rng.choice(
            [b"[]", b"3", b"null", b'"text"', b"{}", b"[" * 5000, b"{" * 5000, b"\xff\xfe", b"NaN", b'{"a":1}{"a":2}']
        )
    return line


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    rng = random.Random(7)
    path.write_bytes(b"\n".join(fuzzed_line(rng, index) for index in range(1000)) + b"\n")
    return path


def test_fuzzed_rows_are_kept_quarantined_or_unlabelled(fuzzed, tmp_path):
    out = tmp_path / "out"
    done = command("task=ratings", f"input={fuzzed}", f"output={out}", "on_bad_row=quarantine", "max_chars=200000")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    kept = [row for split in ("train", "validation") for row in read_ratings(out / f"{split}.jsonl", SCHEMA)]
    quarantined = lines(out / "quarantine.jsonl")
    skipped = manifest["skipped"]
    assert manifest["read"] == len(kept) + len(quarantined) + skipped["unlabelled"] == 1000
    assert skipped["quarantined"] == len(quarantined) == sum(manifest["reasons"].values())
    assert len(kept) > 200 and len(quarantined) > 200 and skipped["unlabelled"] > 5
    assert len({row["line"] for row in quarantined}) == len(quarantined)
    for row in quarantined:
        assert row["file"] == str(fuzzed) and 1 <= row["line"] <= 1000 and row["reason"]
    # the rows themselves: a kept one is the input's, a quarantined one is not lost
    raw = fuzzed.read_bytes().split(b"\n")
    bad = {row["line"] for row in quarantined}
    good = {}
    for number, line in enumerate(raw[:-1], 1):
        if number not in bad:
            row = json.loads(line)
            good[row.get("id", row.get("prompt"))] = row
    for row in kept:
        source = good[row.get("id", row["prompt"])]
        assert row["response"] == source["response"]
        assert {name for name in SCHEMA.names if source.get(name) is not None} == set(row["labels"])
        for name, label in row["labels"].items():
            assert (
                label == source[name]
                if isinstance(label, list)
                else label == SCHEMA.dimension(name).level_of(source[name])
            )


def test_fuzzed_rows_stop_at_the_first_bad_one(fuzzed, tmp_path):
    out = tmp_path / "out"
    run("task=ratings", f"input={fuzzed}", f"output={out}", "on_bad_row=quarantine", "max_chars=200000")
    first = lines(out / "quarantine.jsonl")[0]
    done = command("task=ratings", f"input={fuzzed}", f"output={tmp_path / 'out2'}", "max_chars=200000")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith(f"error: {fuzzed}:{first['line']}: {first['reason'][:30]}")
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out2").exists()


def test_each_fuzzed_row_alone_stops_with_its_reason(fuzzed, tmp_path):
    out = tmp_path / "out"
    run("task=ratings", f"input={fuzzed}", f"output={out}", "on_bad_row=quarantine", "max_chars=200000")
    raw = fuzzed.read_bytes().split(b"\n")
    config = compose_config("prepare_data", ["task=ratings", "max_chars=200000", "input=x", "output=x"])
    container = OmegaConf.to_container(config)
    path = tmp_path / "one.jsonl"
    for entry in lines(out / "quarantine.jsonl"):
        path.write_bytes(raw[entry["line"] - 1] + b"\n")
        settings = PrepareSettings.from_config({**container, "input": str(path), "output": str(tmp_path / "one")})
        with pytest.raises(ValueError) as error:
            prepare(settings)
        assert str(error.value).startswith(f"{path}:1: {entry['reason']}")


@pytest.mark.parametrize("task", ["prompts", "sft"])
def test_fuzzed_rows_of_other_tasks(fuzzed, tmp_path, task):
    manifest = run(
        f"task={task}", f"input={fuzzed}", f"output={tmp_path / 'out'}", "on_bad_row=quarantine", "max_chars=200000"
    )
    assert sum(manifest["rows"].values()) + manifest["skipped"]["quarantined"] == manifest["read"] == 1000
    reader = (lambda path: read_prompts(path, SCHEMA)) if task == "prompts" else read_sft
    rows = [row for split in ("train", "validation") for row in reader(tmp_path / "out" / f"{split}.jsonl")]
    assert len(rows) == sum(manifest["rows"].values())
