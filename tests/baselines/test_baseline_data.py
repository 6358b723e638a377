"""Pairs of CDPO and MODPO, rows and prompts of RiC: by hand, against loops, and through the entry point."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from nemo_moslim.baseline_config import PrepareBaselineConfig
from nemo_moslim.baselines.cdpo import controlled_pairs
from nemo_moslim.baselines.modpo import margin_pairs
from nemo_moslim.baselines.pairing import draw_pairs, rating
from nemo_moslim.baselines.prepare import prepare_baseline, read_scales
from nemo_moslim.baselines.ric import (
    Scale,
    desired_scores,
    fit_scales,
    level_scores,
    offline_rows,
    online_prompts,
    online_rows,
    top_rows,
)
from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.preferences import Dimension, PreferenceSchema, render_scores

SCHEMA = PreferenceSchema(
    (Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)


def rated(count=60, prompts=8, seed=0):
    rng, rows = random.Random(seed), []
    for index in range(count):
        labels = {d.name: rng.randint(1, d.levels) for d in SCHEMA.dimensions if rng.random() < 0.9}
        scores = {name: rng.random() for name in SCHEMA.names}
        row = {"prompt": f"question {index % prompts}", "response": f"answer {index}", "scores": scores}
        rows.append({**row, "labels": labels or {"honesty": 3}})
    return rows


def test_pairs_are_of_one_prompt_different_and_repeatable():
    rows = rated()
    drawn = list(draw_pairs(rows, 5, seed=1))
    assert len(drawn) == 8 * 5
    seen = Counter(frozenset((first["response"], second["response"])) for first, second, *_ in drawn)
    assert max(seen.values()) == 1 and all(len(pair) == 2 for pair in seen)
    for first, second, answers, _ in drawn:
        assert first["prompt"] == second["prompt"] and first in answers and len(answers) in (7, 8)
    again = [(a["response"], b["response"]) for a, b, *_ in draw_pairs(rows, 5, seed=1)]
    assert again == [(a["response"], b["response"]) for a, b, *_ in drawn]
    assert again != [(a["response"], b["response"]) for a, b, *_ in draw_pairs(rows, 5, seed=2)]
    assert not list(draw_pairs(rows[:8], 5, seed=1))  # a prompt with one answer


def test_ratings_by_hand():
    helpfulness, harmless = SCHEMA.dimension("helpfulness"), SCHEMA.dimension("harmless")
    assert [rating(level, helpfulness) for level in (1, 2, 5)] == [0.0, 0.25, 1.0]
    assert rating([0.0, 0.5, 0.0, 0.5, 0.0], helpfulness) == 0.5 and rating([0.25, 0.75], harmless) == 0.75
    assert np.isnan(rating(None, harmless))
    with pytest.raises(ValueError, match="preferences.tone.levels=1"):
        rating(1, Dimension("tone", 1, (0, 1)))


def test_controlled_pairs_prefer_what_the_tags_ask_for():
    """Every pair's order is found again by hand from the labels of its answers."""
    rows, seen = rated(200, 20), Counter()
    by_response = {row["response"]: row["labels"] for row in rows}
    for pair in controlled_pairs(rows, SCHEMA, 8, seed=1):
        chosen, rejected = by_response[pair["chosen"]], by_response[pair["rejected"]]
        gains = [0.0, 0.0]
        for d in SCHEMA.dimensions:
            if d.name not in chosen or d.name not in rejected:
                assert d.name not in pair["preferences"]
                continue
            for side, labels in enumerate((chosen, rejected)):
                x = rating(labels[d.name], d)
                asked = pair["preferences"].get(d.name)
                gains[side] += x if asked is None else -abs(x - rating(asked, d))
        assert gains[0] > gains[1]
        prefix = SCHEMA.render(pair["preferences"])
        assert pair["prompt"].startswith(f"{prefix}question ")
        seen[len(pair["preferences"])] += 1
        asked_low = any(level <= 2 for name, level in pair["preferences"].items() if name != "harmless")
        seen["low"] += asked_low and any(
            chosen[name] < rejected[name] for name in pair["preferences"] if name != "harmless"
        )
    assert all(seen[key] > 10 for key in (1, 2, 3, "low"))  # lower ratings win where they are asked for


def test_margin_pairs_are_ordered_by_one_objective():
    rows = rated(100, 10)
    by_response = {row["response"]: row for row in rows}
    others = ["helpfulness", "harmless"]
    pairs = list(margin_pairs(rows, SCHEMA, "honesty", others, 8, seed=1))
    assert len(pairs) > 30
    for pair in pairs:
        chosen, rejected = by_response[pair["chosen"]], by_response[pair["rejected"]]
        assert chosen["labels"]["honesty"] > rejected["labels"]["honesty"] and pair["objective"] == "honesty"
        expected = {name: chosen["scores"][name] - rejected["scores"][name] for name in ("helpfulness", "harmless")}
        assert pair["margins"] == expected and pair["prompt"].startswith("question ")
    assert min(p["margins"]["harmless"] for p in pairs) < 0 < max(p["margins"]["harmless"] for p in pairs)
    with pytest.raises(ValueError, match="row 2 has no score of harmless"):
        list(margin_pairs([rows[0], {**rows[1], "scores": {"helpfulness": 1.0}}], SCHEMA, "honesty", others, 8, 1))
    plain = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    unscored = list(margin_pairs(plain, SCHEMA, "honesty", [], 8, seed=1))  # DPO: nobody's scores are needed
    assert [pair["chosen"] for pair in unscored] == [pair["chosen"] for pair in pairs]
    assert all(pair["margins"] == {} for pair in unscored)


def test_scales_by_hand():
    rows = [{"scores": {"helpfulness": x}} for x in (0.0, 0.0, 0.5, 1.0, 1.0)]  # mean 0.5, deviation sqrt(0.2)
    (scale,) = fit_scales(rows, ["helpfulness"]).values()
    assert (scale.mean, scale.std) == (0.5, pytest.approx(0.2**0.5)) and (scale.low, scale.high) == (-1.1, 1.1)
    assert [scale.z(x) for x in (0.0, 0.5, 0.75)] == [-1.1, 0.0, 0.6]
    with pytest.raises(ValueError, match="the same score of helpfulness"):
        fit_scales(rows[:2], ["helpfulness"])
    with pytest.raises(ValueError, match="row 1 has no score of honesty"):
        fit_scales(rows, ["honesty"])


def test_score_prefixes():
    assert render_scores({"helpfulness": 1.25, "harmless": -0.04}) == "<helpfulness 1.2><harmless 0.0> "
    assert render_scores({}) == ""
    assert SCHEMA.parse(render_scores({"helpfulness": 2.0}) + "x")[0] == {}  # no tag of a level looks like it
    with pytest.raises(ValueError, match="finite"):
        render_scores({"helpfulness": float("nan")})


SCALES = {"helpfulness": Scale(0.5, 0.25, -2.0, 2.0), "harmless": Scale(0.5, 0.5, -1.0, 1.0)}


def test_offline_rows_carry_their_scores():
    dialogue = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    rows = [
        {"prompt": "p", "response": "r", "scores": {"helpfulness": 0.75, "harmless": 0.5, "honesty": 1.0}},
        {"prompt": dialogue, "response": "s", "scores": {"helpfulness": 0.5, "harmless": 0.0}},
    ]
    first, second = offline_rows(rows, SCALES)
    assert first["prompt"] == "<helpfulness 1.0><harmless 0.0> p" and first["response"] == "r"
    assert second["prompt"][1]["content"] == "<helpfulness 0.0><harmless -1.0> b" and dialogue[1]["content"] == "b"


def test_online_prompts_ask_for_the_edge():
    rows = list(online_prompts([{"prompt": f"p{i}"} for i in range(4)], SCALES, 200, seed=1))
    assert Counter(row["plain_prompt"] for row in rows) == Counter({f"p{i}": 50 for i in range(4)})
    free = Counter()
    for row in rows:
        assert row["prompt"] == render_scores(row["asked"]) + row["plain_prompt"]
        below = [name for name, scale in SCALES.items() if row["asked"][name] < scale.high]
        assert len(below) <= 1 and all(SCALES[n].low <= row["asked"][n] for n in SCALES)
        free.update(below)
    assert set(free) == set(SCALES)
    assert rows == list(online_prompts([{"prompt": f"p{i}"} for i in range(4)], SCALES, 200, seed=1))


def scored(*values):
    return [{"response": f"r{i}", "plain_prompt": f"p{i}", "scores": {"helpfulness": a, "harmless": b}}
            for i, (a, b) in enumerate(values)]  # fmt: skip


def test_top_rows_by_hand():
    # Quantile 0.5: helpfulness median 0.25, harmless 0.5. The third row is below both.
    rows = scored((0.0, 1.0), (0.5, 0.0), (0.2, 0.4), (0.3, 0.6))
    assert [row["response"] for row in top_rows(rows, ["helpfulness", "harmless"], 0.5)] == ["r0", "r1", "r3"]
    assert len(top_rows(rows, ["helpfulness"], 0.0)) == 4


def test_online_rows_are_relabelled_by_what_was_obtained():
    first, second = scored((1.0, 1.0), (0.0, 0.0)), scored((0.5, 0.0), (0.75, 0.0))
    second[1]["response"] = " "  # nothing can be learnt from an empty answer
    offline = [
        {"prompt": f"o{i}", "response": "s", "scores": {"helpfulness": z, "harmless": z}}
        for i, z in enumerate((-1, 1, 2))
    ]
    rows = online_rows([first, second], offline, SCALES, 0.7, 1, seed=1)
    assert [row["prompt"] for row in rows[:2]] == [
        "<helpfulness 2.0><harmless 1.0> p0",
        "<helpfulness 0.0><harmless -1.0> p0",
    ]
    assert len(rows) == 3 and rows[2] in offline[2:]


def test_desired_scores_by_hand():
    # linf: the largest weight asks for the top, others for min(N * w, 1) of the range.
    assert desired_scores({"helpfulness": 0.5, "harmless": 0.5}, SCALES, "linf") == {
        "helpfulness": 2.0,
        "harmless": 1.0,
    }
    assert desired_scores({"helpfulness": 1.0}, SCALES, "linf") == {"helpfulness": 2.0, "harmless": -1.0}
    assert desired_scores({"helpfulness": 0.75, "harmless": 0.25}, SCALES, "linf")["harmless"] == 0.0
    # l2: 0.6 / 1 and 0.8 / 1 of the ranges 4 and 2
    assert desired_scores({"helpfulness": 0.6, "harmless": 0.8}, SCALES, "l2") == {"helpfulness": 0.4, "harmless": 0.6}
    with pytest.raises(ValueError, match="method: expected linf or l2"):
        desired_scores({}, SCALES, "l1")


def test_levels_as_scores():
    assert level_scores({"helpfulness": 5}, SCHEMA, SCALES) == {"helpfulness": 2.0, "harmless": 0.0}
    assert level_scores({"harmless": 1, "helpfulness": 2}, SCHEMA, SCALES) == {"helpfulness": -1.0, "harmless": -1.0}


def run(*arguments):
    config = compose_config("prepare_baseline", arguments, path_keys=("input", "output", "offline"))
    return prepare_baseline(parse(config, PrepareBaselineConfig))


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_walk_through_the_entry_point(tmp_path):
    from nemo_moslim.data.pairs import read_pairs
    from nemo_moslim.data.ratings import read_sft

    for split, count in (("train", 60), ("validation", 30)):
        write(tmp_path / "scored" / f"{split}.jsonl", rated(count, 6, seed=count))
    source = f"input={tmp_path}/scored"
    manifest = run("task=cdpo_pairs", source, f"output={tmp_path}/cdpo")
    assert len(read_pairs(tmp_path / "cdpo" / "train.jsonl")) == manifest["rows"]["train"] > 20
    run("task=modpo_pairs", source, "dimension=helpfulness", f"output={tmp_path}/modpo")
    assert {p["objective"] for p in read_pairs(tmp_path / "modpo" / "validation.jsonl")} == {"helpfulness"}
    run("task=ric_offline", source, f"output={tmp_path}/ric")
    scales = read_scales(tmp_path / "ric")
    values = [row["scores"]["honesty"] for row in lines(tmp_path / "scored" / "train.jsonl")]
    assert (
        scales["honesty"].mean == pytest.approx(np.mean(values)) and len(read_sft(tmp_path / "ric/train.jsonl")) == 60
    )
    write(tmp_path / "prompts" / "train.jsonl", [{"prompt": f"p{i}", "preferences": {"tone": 1}} for i in range(9)])
    run(
        "task=ric_prompts",
        f"input={tmp_path}/prompts",
        f"offline={tmp_path}/ric",
        "prompts=20",
        f"output={tmp_path}/ask",
    )
    asked = lines(tmp_path / "ask" / "train.jsonl")
    rng = random.Random(1)
    answers = [{**row, "response": "r", "scores": {n: rng.random() for n in SCHEMA.names}} for row in asked]
    file = write(tmp_path / "answers.jsonl", answers)
    manifest = run(
        "task=ric_online", f"input={file}", f"offline={tmp_path}/ric", "offline_rows=5", f"output={tmp_path}/on"
    )
    made = read_sft(tmp_path / "on" / "train.jsonl")
    assert manifest["rows"]["train"] == len(made) == len(top_rows(answers, SCHEMA.names, 0.7)) + 5
    assert (tmp_path / "on/validation.jsonl").read_text() == (tmp_path / "ric/validation.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=modpo_pairs", "input=a"], "dimension=None: expected one of helpfulness"),
        (["task=ric_prompts", "input=a"], "offline=None: expected the folder that task=ric_offline wrote"),
        (["task=ric_prompts", "input=a", "offline=b"], "offline=b: no manifest with 'scales' there"),
        (
            ["task=modpo_pairs", "input=a", "dimension=honesty", "margins=[honesty]"],
            "margins='honesty': expected one of",
        ),
        (["task=cdpo_pairs", "input=[a,b]"], "expected one folder"),
        (["task=cdpo", "input=a"], "task='cdpo': expected one of cdpo_pairs"),
        (["task=ric_offline", "input=a", "quantile=1"], r"quantile=1\.0: expected a share"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "train.jsonl", [{"prompt": "p"}])
    with pytest.raises(ValueError, match=message):
        run(*arguments, "output=out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_write_is_an_error(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / "in" / f"{split}.jsonl", rated(6, 6))
    with pytest.raises(ValueError, match="nothing for train.jsonl"):
        run("task=cdpo_pairs", f"input={tmp_path}/in", f"output={tmp_path}/out")
