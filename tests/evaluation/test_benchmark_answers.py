"""Answers that are kept, gone on with and used again; a policy made of paper stands in for the model."""

import json
import types

import pytest
from made_rows import write_rows

from nemo_moslim.evaluation.benchmarks.answers import (
    AnswerFile,
    Interview,
    dropped_places,
    is_answered,
    prompt_of,
    settings_digest,
)
from nemo_moslim.evaluation.benchmarks.questions import Question
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = PreferenceSchema.from_dict({"helpfulness": {"levels": 5, "score_range": [1, 5]}})
TWO_TURNS = [
    Question("a", ["red apple", "and pears"], asked={"helpfulness": 5}),
    Question("b", ["green pear", "and apples"]),
]


class PaperPolicy:
    """Answers with its prompt's last words and number, and remembers what it was asked."""

    def __init__(self, encoder, room=200):
        self.encoder, self.room, self.asked = encoder, room, []

    def answer(self, rows, schema, seed, long_prompts, origin, numbers):
        self.asked += rows
        texts = []
        for row, number in zip(rows, numbers, strict=True):
            last = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
            texts.append(f"on {last[-8:]}: {number}")
        return texts, [5] * len(rows), 0


def settings(**changes):
    """The part of the configuration that answering reads."""
    usual = dict(
        asked={"helpfulness": 2}, benchmarks=types.SimpleNamespace(row_tags=True), seed=1, long_prompts="raise"
    )
    return types.SimpleNamespace(**{**usual, **changes})


def opened(tmp_path, digest="d1", writes=True):
    return AnswerFile(tmp_path / "answers" / "mt.jsonl", digest, writes)


def test_the_second_turn_follows_the_own_first_answer(encoder, tmp_path):
    policy, file = PaperPolicy(encoder), opened(tmp_path)
    assert Interview(policy, SCHEMA, settings(), batch=8).run("mt", TWO_TURNS, file) == set()
    first, second, third, _ = policy.asked
    assert first == {"prompt": "red apple", "preferences": {"helpfulness": 5}}  # the row's own tag
    assert second == {"prompt": "green pear", "preferences": {"helpfulness": 2}}  # what is asked of all
    assert [m["role"] for m in third["prompt"]] == ["user", "assistant", "user"]
    assert third["prompt"][1]["content"] == file.rows["a", 1]["response"]
    assert third["prompt"][2]["content"] == "and pears" and third["preferences"] == {"helpfulness": 5}
    assert prompt_of(TWO_TURNS[0], 2, file) == third["prompt"]


def test_a_run_goes_on_where_it_was_cut_short(encoder, tmp_path):
    whole = opened(tmp_path / "whole")
    Interview(PaperPolicy(encoder), SCHEMA, settings(), batch=8).run("mt", TWO_TURNS, whole)
    part = opened(tmp_path)
    part.add([whole.rows["b", 1]])
    with part.path.open("ab") as file:
        file.write(b'{"key": "a", "turn": 1, "resp')  # killed while writing
    policy, resumed = PaperPolicy(encoder), opened(tmp_path)
    assert not is_answered(TWO_TURNS, resumed, settings())
    Interview(policy, SCHEMA, settings(), batch=1).run("mt", TWO_TURNS, resumed)
    assert len(policy.asked) == 3 and resumed.rows == whole.rows  # the same answers, whatever was answered before
    again = opened(tmp_path)
    assert again.rows == whole.rows and is_answered(TWO_TURNS, again, settings())
    assert all(json.loads(line) for line in again.path.read_text().splitlines())


def test_answers_to_other_settings_are_not_used(encoder, tmp_path):
    file = opened(tmp_path)
    Interview(PaperPolicy(encoder), SCHEMA, settings(), batch=8).run("mt", TWO_TURNS, file)
    assert is_answered(TWO_TURNS, opened(tmp_path), settings())
    assert not is_answered(TWO_TURNS, opened(tmp_path, "d2"), settings())
    assert not is_answered(TWO_TURNS, opened(tmp_path), settings(asked={"helpfulness": 3}))
    changed = [TWO_TURNS[0], Question("b", ["another question", "and apples"])]
    policy = PaperPolicy(encoder)
    reopened = opened(tmp_path)
    Interview(policy, SCHEMA, settings(), batch=8).run("mt", changed, reopened)
    assert [row["prompt"] for row in policy.asked][0] == "another question" and len(policy.asked) == 2


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "answers" / "mt.jsonl"
    file.parent.mkdir()
    file.write_text("{}\n{broken\n{}\n")
    with pytest.raises(ValueError, match="mt.jsonl:2: not JSON"):
        opened(tmp_path)


def test_other_ranks_know_the_answers_and_write_nothing(encoder, tmp_path):
    file = opened(tmp_path, writes=False)
    Interview(PaperPolicy(encoder), SCHEMA, settings(), batch=8).run("mt", TWO_TURNS, file)
    assert len(file.rows) == 4 and not file.path.exists()


def test_prompts_that_are_too_long_are_never_cut_in_silence(encoder, tmp_path):
    long = Question("c", ["apple " * 60, "and pears"])
    questions = [*TWO_TURNS, long]
    with pytest.raises(
        ValueError, match=r"benchmarks.mt: turn 1 of question 'c' has \d+ tokens, over the 80 .*cut_left"
    ):
        Interview(PaperPolicy(encoder, 80), SCHEMA, settings(), 8).run("mt", questions, opened(tmp_path / "raise"))
    kept = opened(tmp_path / "drop")
    dropped = Interview(PaperPolicy(encoder, 80), SCHEMA, settings(long_prompts="drop"), 8).run("mt", questions, kept)
    assert {("c", 1), ("c", 2)} <= dropped and ("c", 1) not in kept.rows
    drop, again = settings(long_prompts="drop"), opened(tmp_path / "drop")
    assert is_answered(questions, again, drop) and dropped_places(questions, again, drop) == dropped  # no policy for it
    size = again.path.stat().st_size
    assert Interview(PaperPolicy(encoder, 80), SCHEMA, drop, 8).run("mt", questions, again) == dropped
    assert again.path.stat().st_size == size  # nothing is marked twice
    for other in (settings(long_prompts="cut_left"), settings(long_prompts="drop", asked={"helpfulness": 3})):
        assert not is_answered(questions, again, other) and dropped_places([long], again, other) == set()
    cut, policy = opened(tmp_path / "cut"), PaperPolicy(encoder, 80)
    left_out = Interview(policy, SCHEMA, settings(long_prompts="cut_left"), 8).run("mt", questions, cut)
    assert left_out == set() and cut.rows["c", 1]["cut"] and not cut.rows["b", 1]["cut"]
    assert cut.rows["c", 1]["prompt"] == long.turns[0]  # the judge reads the whole question
    assert is_answered(questions, cut, settings(long_prompts="cut_left"))
    assert not is_answered(questions, cut, settings(long_prompts="raise"))


def test_the_digest_knows_policy_and_sampling(tmp_path):
    def of(**changes):
        usual = dict(policy=str(tmp_path / "model"), seed=1, precision="fp32", preferences=SCHEMA.to_dict(),
                     generation={"temperature": 1.0, "batch_size": 4})  # fmt: skip
        return settings_digest(types.SimpleNamespace(**{**usual, **changes}))

    write_rows(tmp_path / "model" / "config.json", [{}])
    assert of() == of(generation={"temperature": 1.0, "batch_size": 8})  # batches do not change answers
    others = [of(seed=2), of(precision="bf16"), of(generation={"temperature": 0.5, "batch_size": 4})]
    other = tmp_path / "other" / "checkpoints" / "step=000001"
    (other / "weights").mkdir(parents=True)
    (other / "context").mkdir()
    others.append(of(policy=str(tmp_path / "other")))
    assert len({of(), *others}) == 5
