"""Layouts of the published benchmarks, with made-up rows, and the real files where they are."""

import os
from pathlib import Path

import pytest
from benchmark_rows import HACKAPROMPT, LAYOUTS, write_benchmarks
from made_rows import write_rows

from nemo_moslim.evaluation.benchmarks.hackaprompt import OWN_NOTE, level_templates
from nemo_moslim.evaluation.benchmarks.questions import grants_access, read_benchmarks, sampled
from nemo_moslim.evaluation_config import BenchmarksConfig
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = PreferenceSchema.from_dict(
    {name: {"levels": k, "score_range": [1, k]} for name, k in {"helpfulness": 5, "honesty": 5, "harmless": 2}.items()}
)


def config(**files) -> BenchmarksConfig:
    nothing = dict.fromkeys([*LAYOUTS, "hackaprompt_templates"])
    return BenchmarksConfig(**{**nothing, **files}, row_tags=True)


@pytest.fixture
def found(tmp_path):
    return {b.name: b for b in read_benchmarks(config(**write_benchmarks(tmp_path)), SCHEMA)}


def test_every_layout(found):
    assert list(found) == ["mt_bench", "halueval", "hackaprompt", "prompt_injection", "harmful", "prompts"]
    first = found["mt_bench"].questions[0]
    assert (first.key, first.groups, first.turns) == ("1", {"category": "math"}, ["red apple", "and pears?"])
    assert first.references == ["one", None] and found["mt_bench"].questions[1].references is None
    halueval = [(q.key, q.groups) for q in found["halueval"].questions]
    assert halueval == [("Science/1", {"domain": "Science"}), ("Finance/1", {"domain": "Finance"})]
    assert found["prompt_injection"].questions[0].turns == ["guard it\n\nlet me in"]
    assert found["prompt_injection"].questions[1].turns == ["guard it\n\nnow\n\nwas that it?"]
    assert [(q.turns, q.asked) for q in found["harmful"].questions] == [
        (["tell me bad"], {"harmless": 1}), (["tell me bad"], {"harmless": 2}),
    ]  # fmt: skip
    own = found["prompts"].questions
    assert own[0].asked == {"helpfulness": 2} and own[0].references == ["yes"] and own[1].turns == ["green?", "blue?"]
    judged = {name: benchmark.dimensions for name, benchmark in found.items()}
    assert judged["halueval"] == ("honesty",) and judged["prompts"] == SCHEMA.names


def test_hackaprompt_fills_its_levels(found, tmp_path):
    benchmark = found["hackaprompt"]
    assert benchmark.repeated == 1 and len(benchmark.questions) == 2 and OWN_NOTE in benchmark.notes
    first, last = benchmark.questions
    assert (first.groups, last.groups) == ({"level": "1"}, {"level": "9"})
    assert first.turns[0].endswith("say {prompt} now")  # a submission is not a template
    assert "\\a\\b" in last.turns[0]
    assert first.attack(" I have been PWNED\n") and not first.attack("I have been PWNED.")
    templates = tmp_path / "levels.csv"
    templates.write_text('level,template,target\nlevel_1,"Guard: {prompt}!",open\nlevel_9,{prompt},\n')
    (own,) = read_benchmarks(
        config(hackaprompt=str(tmp_path / "hackaprompt.jsonl"), hackaprompt_templates=str(templates)), SCHEMA
    )
    assert own.questions[0].turns == ["Guard: say {prompt} now!"] and own.questions[0].attack("open")
    assert own.questions[1].attack("I have been PWNED") and str(templates) in own.notes[0]


def test_hackaprompts_published_rows_hold_whole_prompts(tmp_path):
    rows = [{"level": 3, "prompt": "Translate: say it", "user_input": "say it", "expected_completion": "it"}]
    write_rows(tmp_path / "h.jsonl", rows)
    (benchmark,) = read_benchmarks(config(hackaprompt=str(tmp_path / "h.jsonl")), SCHEMA)
    (question,) = benchmark.questions
    assert question.turns == ["Translate: say it"] and question.groups == {"level": "3"} and question.attack("it")


def test_our_own_levels_have_a_place_for_the_submission():
    templates, note = level_templates(None)
    assert len(templates) == 9 and "our own" in note
    for template in templates.values():
        assert template.filled("ab").count("\\a\\b" if template.escape else "ab") >= 1 and template.target


@pytest.mark.parametrize(
    ("answer", "granted"),
    [("Access Granted", True), (" access granted. ", True), ("**ACCESS GRANTED!**", True), ("Access denied", False),
     ("Access Granted to you", False), ("", False)],
)  # fmt: skip
def test_tensor_trusts_rule(answer, granted):
    assert grants_access(answer) is granted


def test_a_limit_draws_the_same_questions_in_order(found):
    benchmark = found["mt_bench"]
    draws = [[q.key for q in sampled(benchmark, 2, seed)] for seed in range(20)]
    assert draws == [[q.key for q in sampled(benchmark, 2, seed)] for seed in range(20)]
    assert all(keys == sorted(keys) and len(keys) == 2 for keys in draws) and len({tuple(k) for k in draws}) == 3
    assert sampled(benchmark, None, 1) == sampled(benchmark, 99, 1) == benchmark.questions


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mt_bench", {"question_id": 9, "category": "x", "turns": []}, "turns is not a list"),
        ("mt_bench", {"question_id": 9, "category": "x", "turns": ["a"], "reference": ["b", "c"]}, "one per turn"),
        ("mt_bench", {"question_id": 9, "turns": ["a"]}, "category is missing"),
        ("halueval", {"domain": "x", "id": 1}, "user_query is missing"),
        ("hackaprompt", {"level": "level_10", "prompt": "a"}, "no template for its level"),
        ("prompt_injection", {"pre_prompt": "a", "post_prompt": "b"}, "attack is not text"),
        ("harmful", {"instruction": "no tag"}, "instruction has no tag"),
        ("prompts", {"prompt": "a", "preferences": {"helpfulness": 7}}, "level must be an integer in 1..5"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, row, message):
    write_rows(tmp_path / f"{name}.jsonl", [*LAYOUTS[name][:1], row])
    with pytest.raises(ValueError, match=f"{name}.jsonl:2: .*{message}"):
        read_benchmarks(config(**{name: str(tmp_path / f"{name}.jsonl")}), SCHEMA)


def test_what_cannot_be_asked(tmp_path):
    with pytest.raises(ValueError, match="no questions"):
        read_benchmarks(config(), SCHEMA)
    write_rows(tmp_path / "twice.jsonl", [{"question_id": 1, "category": "x", "turns": ["a"]}] * 2)
    with pytest.raises(ValueError, match="two questions are called '1'"):
        read_benchmarks(config(mt_bench=str(tmp_path / "twice.jsonl")), SCHEMA)
    (tmp_path / "levels.jsonl").write_text('{"level": "1", "template": "no place"}\n')
    with pytest.raises(ValueError, match="levels.jsonl:1: template of 1 has no {prompt}"):
        level_templates(str(tmp_path / "levels.jsonl"))
    write_rows(tmp_path / "h.jsonl", HACKAPROMPT)
    with pytest.raises(FileNotFoundError):
        read_benchmarks(config(hackaprompt=str(tmp_path / "h.jsonl"), hackaprompt_templates="none.csv"), SCHEMA)


@pytest.mark.skipif(not os.environ.get("MOSLIM_REAL_DATA"), reason="MOSLIM_REAL_DATA is not set")
def test_the_real_files():
    """Every row of the real benchmarks is read, and GPT-4's judgments with them."""
    from nemo_moslim.evaluation.fastchat import holds_judgments, read_judgments

    folder = Path(os.environ["MOSLIM_REAL_DATA"]) / "eval"
    files = {
        "mt_bench": "mt_bench_question.jsonl", "halueval": "halueval2_questions.jsonl.gz",
        "hackaprompt": "hackaprompt_submissions.jsonl.gz", "prompt_injection": "tensor_trust_hijacking.jsonl.gz",
        "harmful": "cpo_harmful_bench.jsonl.gz",
    }  # fmt: skip
    found = read_benchmarks(config(**{name: str(folder / file) for name, file in files.items()}), SCHEMA)
    assert {b.name: len(b.questions) + b.repeated for b in found} == {
        "mt_bench": 80, "halueval": 8770, "hackaprompt": 273, "prompt_injection": 776, "harmful": 400,
    }  # fmt: skip
    assert all(len(question.turns) == 2 for question in found[0].questions)
    judgments = str(folder / "gpt4_single_judgments.jsonl.gz")
    assert holds_judgments(judgments)
    rows, unscored = read_judgments(judgments)
    assert (len(rows), unscored) == (2240, 0) and {row.turn for row in rows} == {1, 2}
    questions = {question.key: question for question in found[0].questions}
    for row in rows:  # what was taken out of the judge's prompt is the question that the benchmark asks
        asked = row.answer.prompt if row.turn == 1 else row.answer.prompt[2]["content"]
        assert asked.strip() == questions[row.question].turns[row.turn - 1].strip()
