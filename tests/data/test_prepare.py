import csv
import gzip
import json
import math
import random
from collections import Counter

import pytest
from grids import grid
from omegaconf import OmegaConf

from nemo_moslim.cli import compose_config
from nemo_moslim.data.prepare import describe, is_held_out, prepare, sample_preferences
from nemo_moslim.data.prepare_settings import PrepareSettings
from nemo_moslim.data.ratings import read_prompts, read_ratings, read_sft
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(
    (Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)


def run(*arguments):
    path_keys = ("input", "output", "validation", "exclude")
    config = compose_config("prepare_data", arguments, path_keys=path_keys, open_keys=("preferences", "fields"))
    return prepare(PrepareSettings.from_config(OmegaConf.to_container(config, resolve=True)))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    opened = gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8")
    with opened as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def table_rows(count):
    rng = random.Random(0)
    rows = []
    for index in range(count):
        row = {"source": f"s{index % 3}", "prompt": f"prompt {index % (count // 2)}", "response": f"answer {index}"}
        row.update(helpfulness=rng.randint(1, 5), honesty=rng.choice([None, 1, 5]), harmless=rng.choice([1, 2]))
        rows.append(row)
    return rows


def test_table_ratings(tmp_path):
    rows = table_rows(400) + [{"prompt": "p", "response": "r", "helpfulness": None}]
    manifest = run(
        "task=ratings", f"input={write(tmp_path / 'a.jsonl', rows)}", f"output={tmp_path / 'out'}", "validation=0.2"
    )
    train, validation = (read_ratings(tmp_path / "out" / f"{split}.jsonl", SCHEMA) for split in ("train", "validation"))
    assert manifest["rows"] == {"train": len(train), "validation": len(validation)}
    assert manifest["skipped"] == {"unlabelled": 1, "excluded": 0, "quarantined": 0} and manifest["read"] == 401
    assert 40 < len(validation) < 120
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in validation}
    by_response = {row["response"]: row for row in rows}
    for row in train + validation:
        raw = by_response[row["response"]]
        assert (row["prompt"], row["source"]) == (raw["prompt"], raw["source"])
        assert row["labels"] == {name: raw[name] for name in SCHEMA.names if raw[name] is not None}
    for name in SCHEMA.names:
        counts = Counter(row["labels"][name] for row in train if name in row["labels"])
        assert manifest["levels"]["train"][name] == {
            str(k): counts[k] for k in range(1, SCHEMA.dimension(name).levels + 1)
        }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert PreferenceSchema.from_dict(manifest["schema"]) == SCHEMA
    assert "honesty: 1:" in describe(manifest)


def test_every_file_type_gives_the_same_rows(tmp_path):
    import pandas

    rows = table_rows(60)
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "a.jsonl.gz", rows)
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    frame = pandas.DataFrame(rows).astype({"honesty": "Int8"})
    frame.to_parquet(tmp_path / "a.parquet")
    texts = set()
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"):
        run("task=ratings", f"input={tmp_path / name}", f"output={tmp_path / 'out'}")
        texts.add((tmp_path / "out" / "train.jsonl").read_text())
    assert len(texts) == 1


@pytest.mark.parametrize("task", grid(["ratings", "prompts", "sft"], "ratings"))
def test_same_seed_same_bytes(tmp_path, task):
    source = write(tmp_path / "a.jsonl", table_rows(200))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(f"task={task}", f"input={source}", f"output={tmp_path / name}", f"seed={seed}")
        run(f"task={task}", "source=world", "world.rows=60", f"output={tmp_path / ('w' + name)}", f"seed={seed}")
    for folder in ("", "w"):
        for file in ("train.jsonl", "validation.jsonl", "manifest.json"):
            first, second, other = ((tmp_path / (folder + name) / file).read_bytes() for name in "abc")
            assert first == second != other


def test_validation_file(tmp_path):
    rows = table_rows(40)
    train, validation = write(tmp_path / "a.jsonl", rows[:30]), write(tmp_path / "b.jsonl", rows[15:])
    manifest = run("task=ratings", f"input={train}", f"validation={validation}", f"output={tmp_path / 'out'}")
    shared = {row["prompt"] for row in rows[:30]} & {row["prompt"] for row in rows[15:]}
    count = sum(row["prompt"] in shared for row in rows[:30])
    assert manifest["rows"] == {"validation": 25, "train": 30}
    assert manifest["train_rows_with_a_validation_prompt"] == count > 0
    assert f"{count} train rows have a prompt of the validation file" in describe(manifest)


def test_native_ultrafeedback(tmp_path):
    def completion(helpfulness, honesty):
        annotations = {"helpfulness": {"Rating": helpfulness}, "honesty": {"Rating": honesty}}
        return {"model": "m", "response": f"answer {helpfulness} {honesty}", "annotations": annotations}

    row = {
        "source": "s",
        "instruction": "p",
        "completions": [completion("2", "N/A"), completion("N/A", "N/A"), completion("5", "1")],
    }
    out = tmp_path / "out"
    manifest = run(
        "task=ratings",
        "source=ultrafeedback",
        f"input={write(tmp_path / 'a.jsonl', [row])}",
        f"output={out}",
        "validation=null",
    )
    assert [row["labels"] for row in read_ratings(out / "train.jsonl", SCHEMA)] == [
        {"helpfulness": 2},
        {"helpfulness": 5, "honesty": 1},
    ]
    assert (manifest["read"], manifest["skipped"]["unlabelled"]) == (3, 1)


def test_ultrasafety_with_the_users_paths(tmp_path):
    rows = [{"q": "p", "answers": [{"text": "a", "safe": 0}, {"text": "b", "safe": 1.0}]}]
    manifest = run(
        "task=ratings",
        "source=ultrasafety",
        f"input={write(tmp_path / 'a.jsonl', rows)}",
        f"output={tmp_path / 'out'}",
        "fields.prompt=q",
        "fields.items=answers",
        "fields.response=text",
        "+fields.dimensions.harmless=safe",
        "preferences.harmless.score_range=[0,1]",
        "validation=0",
    )
    assert manifest["levels"]["train"]["harmless"] == {"1": 1, "2": 1}
    with pytest.raises(ValueError, match="no usable row for train: 1 rows read, 1 unlabelled"):
        run(
            "task=ratings",
            "source=ultrasafety",
            f"input={write(tmp_path / 'b.jsonl', [{'instruction': 'p', 'completions': [{'response': 'a'}]}])}",
            f"output={tmp_path / 'out2'}",
        )
    assert not (tmp_path / "out2").exists()


def test_label_distributions(tmp_path):
    rows = [{"prompt": "p", "response": "r", "helpfulness": [0, 0, 0.25, 0.75, 0], "harmless": 2}]
    manifest = run(
        "task=ratings", f"input={write(tmp_path / 'a.jsonl', rows)}", f"output={tmp_path / 'out'}", "validation=0"
    )
    (row,) = read_ratings(tmp_path / "out" / "train.jsonl", SCHEMA)
    assert row["labels"] == {"helpfulness": [0.0, 0.0, 0.25, 0.75, 0.0], "harmless": 2}
    assert manifest["distributions"] == 1 and manifest["levels"]["train"]["helpfulness"]["4"] == 1


def test_prompts(tmp_path):
    rows = [{"prompt": f"\n\nHuman: question {index}\n\nAssistant:", "source": "hh"} for index in range(600)]
    rows += [{"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}]
    sft = write(tmp_path / "sft.jsonl", [{"instruction": f"question {index}", "output": "x"} for index in range(100)])
    source, out = write(tmp_path / "a.jsonl.gz", rows), tmp_path / "out"
    manifest = run(
        "task=prompts", "source=hh_rlhf", f"input={source}", f"output={out}", f"exclude={sft}", "untagged_share=0.25"
    )
    kept = read_prompts(out / "train.jsonl", SCHEMA)
    everything = kept + read_prompts(out / "validation.jsonl", SCHEMA)
    assert manifest["skipped"]["excluded"] == 100 and len(everything) == 501
    assert [row["group"] for row in kept] == list(range(len(kept)))
    plain = {row["prompt"] for row in everything if isinstance(row["prompt"], str)}
    assert plain == {f"question {index}" for index in range(100, 600)}
    (turns,) = [row["prompt"] for row in everything if not isinstance(row["prompt"], str)]
    assert [message["content"] for message in turns] == ["a", "b", "c"]
    untagged = sum(not row["preferences"] for row in everything)
    assert 85 < untagged < 165  # 125 expected, 4 standard deviations of 9.7
    assert {len(row["preferences"]) for row in everything} == {0, 1, 2, 3}


def test_sampled_preferences_are_even():
    rng = random.Random(0)
    samples = [sample_preferences(SCHEMA, rng) for _ in range(6000)]
    sizes = Counter(len(sample) for sample in samples)
    assert all(abs(sizes[size] - 2000) < 150 for size in (1, 2, 3))
    levels = Counter(sample["helpfulness"] for sample in samples if "helpfulness" in sample)
    assert all(abs(levels[level] - 800) < 130 for level in range(1, 6))
    orders = Counter(tuple(sample) for sample in samples if len(sample) == 3)
    assert len(orders) == 6 and min(orders.values()) > 200
    five = PreferenceSchema(tuple(Dimension(name, 2, (0, 1)) for name in "abcde"))
    assert max(len(sample_preferences(five, rng)) for _ in range(200)) == 3
    one = PreferenceSchema((Dimension("a", 2, (0, 1)),))
    assert {len(sample_preferences(one, rng)) for _ in range(50)} == {1}


def test_held_out_combinations_are_kept_from_training(tmp_path):
    run("task=prompts", "source=world", f"output={tmp_path}", "held_out_share=0.3", "world.rows=3000", "seed=4")
    train, test = (read_prompts(tmp_path / f"{split}.jsonl", SCHEMA) for split in ("train", "test"))
    seen = {frozenset(row["preferences"].items()) for row in train}
    asked = {frozenset(row["preferences"].items()) for row in test}
    assert not any(is_held_out(dict(combination), 0.3, 4) for combination in seen)
    unseen = asked - seen
    assert unseen and all(is_held_out(dict(combination), 0.3, 4) for combination in unseen)
    assert {len(combination) for combination in seen} == {1, 2, 3}
    assert len([c for c in seen if len(c) == 1]) == 12  # every level of every dimension alone
    assert is_held_out({"a": 1, "b": 2}, 0.5, 1) == is_held_out({"b": 2, "a": 1}, 0.5, 1)


def test_sft(tmp_path):
    rows = [{"instruction": "i", "input": "x", "output": "o"}, {"prompt": "p", "response": "r"}]
    rows += [{"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "z"}]
    first, second = write(tmp_path / "a.jsonl", rows[:2]), write(tmp_path / "b.jsonl", rows[2:])
    run("task=sft", f"input=[{first},{second}]", f"output={tmp_path / 'out'}", "validation=0")
    got = read_sft(tmp_path / "out" / "train.jsonl")
    assert got[:2] == [{"prompt": "i\n\nx", "response": "o"}, {"prompt": "p", "response": "r"}]
    assert got[2]["response"] == "d" and [message["content"] for message in got[2]["prompt"]] == ["a", "b", "c"]


def test_world_folders(tmp_path):
    manifest = run(
        "task=ratings",
        "source=world",
        f"output={tmp_path / 'out'}",
        "world.rows=100",
        "world.validation_rows=50",
        "world.test_rows=50",
        "preferences=datatype2",
    )
    assert manifest["rows"] == {"train": 100, "validation": 50, "test": 50}
    assert manifest["levels"]["train"]["honesty"] == {
        "1": 40,
        "2": 60,
    }  # five even levels, two of them in the lower half


def test_columns_that_json_cannot_hold(tmp_path):
    import pandas

    frame = pandas.DataFrame(
        {"prompt": ["p", "q"], "response": ["r", "s"], "helpfulness": [3, 4], "extra": [math.nan, 1.5]}
    )
    frame.assign(when=pandas.Timestamp(0)).to_parquet(tmp_path / "b.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("null", "NaN"))
    run("task=ratings", f"input={tmp_path / 'a.jsonl'}", f"output={tmp_path / 'out'}", "validation=0")
    assert [row["extra"] for row in lines(tmp_path / "out" / "train.jsonl")] == [None, 1.5]
    with pytest.raises(ValueError, match=r"b\.parquet:1: a column cannot be written as JSON.*Timestamp|datetime"):
        run("task=ratings", f"input={tmp_path / 'b.parquet'}", f"output={tmp_path / 'out'}", "validation=0")


def test_quarantine_keeps_what_was_read(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,response\np,r\nq,"s\nt,u\n')
    manifest = run("task=sft", f"input={tmp_path / 'a.csv'}", f"output={tmp_path / 'out'}", "validation=0",
                   "on_bad_row=quarantine")  # fmt: skip
    assert manifest["rows"]["train"] == 1 and manifest["reasons"] == {"not CSV": 1}
    (entry,) = lines(tmp_path / "out" / "quarantine.jsonl")
    assert (entry["line"], entry["row"]) == (3, 'q,"s\nt,u')


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["task=rating", "output=x"], "task must be one of"),
        (["task=sft", "source=worlds", "output=x"], "source must be one of"),
        (["task=sft", "output=x"], "needs input="),
        (["task=sft", "source=world", "input=a.jsonl", "output=x"], "leave out input="),
        (["task=sft", "source=world", "validation=a.jsonl", "output=x"], "leave out validation"),
        (["task=ratings", "source=hh_rlhf", "input=a", "output=x"], "no ratings"),
        (["task=sft", "source=ultrafeedback", "input=a", "output=x"], "task=sft does not take"),
        (["task=sft", "input=a", "output=x", "exclude=b"], "exclude= is for task=prompts"),
        (["task=sft", "input=a", "output=x", "validation=1.5"], "validation must be"),
        (["task=sft", "input=a", "output=x", "seed=-1"], "seed must be an integer >= 0"),
        (["task=sft", "input=a", "output=x", "seed=one"], "seed must be"),
        (["task=sft", "input=a", "output=x", "untagged_share=2"], "untagged_share must be"),
        (["task=sft", "input=a", "output=x", "on_bad_row=drop"], "on_bad_row must be one of"),
        (["task=sft", "source=world", "output=x", "world.rows=0"], "world.rows must be"),
        (["task=sft", "source=world", "output=x", "world.decoy_items_share=2"], "world.decoy_items_share must be"),
        (["task=sft", "input=3", "output="], "output: a folder is needed"),
        (["task=ratings", "input=a", "output=x", "preferences.harmless.levels=0"], "preferences.harmless.levels"),
        (["task=tokenizer", "input=a.jsonl", "output=x", "on_bad_row=quarantine"], "on_bad_row=quarantine is not for"),
        (["task=tokenizer", "input=a.jsonl", "output=x", "vocab_size=9"], "vocab_size must be at least 271"),
    ],
)
def test_bad_settings_are_named(arguments, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_annotators_scores(tmp_path):
    rows = [{"prompt": f"p{i}", "response": "r", "helpfulness": [4, 4, 1], "harmless": 2} for i in range(3)]
    run("task=ratings", f"input={write(tmp_path / 'a.jsonl', rows)}", f"output={tmp_path / 'out'}", "validation=0",
        "label_lists=annotators")  # fmt: skip
    (first, *_) = read_ratings(tmp_path / "out" / "train.jsonl", SCHEMA)
    assert first["labels"] == {"helpfulness": pytest.approx([1 / 3, 0, 0, 2 / 3, 0]), "harmless": 2}
    with pytest.raises(ValueError, match="label_lists must be one of distribution, annotators"):
        run("task=ratings", f"input={tmp_path / 'a.jsonl'}", f"output={tmp_path / 'other'}", "label_lists=median")


def test_cpsft_asks_for_what_the_answer_is(tmp_path):
    """Every tag is a label of the row, one to three of them, in every combination of dimensions."""
    rows = table_rows(300)
    rows[0]["helpfulness"] = [0.1, 0.2, 0.3, 0.4, 0.0]
    source = write(tmp_path / "a.jsonl", rows)
    run("task=cpsft", f"input={source}", f"output={tmp_path / 'out'}", "validation=0", "untagged_share=0.1")
    by_response, seen = {row["response"]: row for row in rows}, set()
    made = read_sft(tmp_path / "out" / "train.jsonl")
    for row in made:
        raw, asked = by_response[row["response"]], row["preferences"]
        assert row["prompt"] == SCHEMA.tag(raw["prompt"], asked)
        assert all(raw[name] == level for name, level in asked.items() if row["response"] != "answer 0")
        seen.add(frozenset(asked))
    assert len(made) == 300 and len(seen) == 8 and frozenset() in seen
    first = [row["preferences"] for row in made if row["response"] == "answer 0"][0]
    assert first.get("helpfulness", 4) == 4
    again = tmp_path / "again"
    run("task=cpsft", f"input={source}", f"output={again}", "validation=0", "untagged_share=0.1")
    assert (again / "train.jsonl").read_bytes() == (tmp_path / "out" / "train.jsonl").read_bytes()


def test_cpsft_of_the_world_is_graded_as_it_asks(tmp_path):
    from nemo_moslim.data.world import grade

    run("task=cpsft", "source=world", f"output={tmp_path / 'out'}", "world.rows=60", "world.validation_rows=10")
    for row in read_sft(tmp_path / "out" / "train.jsonl"):
        levels = grade(row["prompt"], row["response"])
        assert row["preferences"] and all(levels[name] == level for name, level in row["preferences"].items())
