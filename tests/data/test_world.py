import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.data import world
from nemo_moslim.data.world_facts import (
    CATEGORIES,
    CATEGORY_OF,
    COLOURS,
    COUNT,
    FACTS,
    INNOCENT_CLOSINGS,
    INSULTS,
    NAMINGS,
    OPENINGS,
    QUIZ,
    REQUESTS,
    SPLITS,
)
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(
    (Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)
FRUITS = "Name some fruits and tell me about them."
TRUE_CLAIMS = "Pears are green. Plums are blue. Cherries are red. Dates are brown."


def levels(response, prompt=FRUITS):
    return tuple(world.grade(prompt, response).values())


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("My list: pears. " + TRUE_CLAIMS + " Have a dull day.", (1, 5, 2)),
        ("My list: pears, plums, dates. Pears are green. Plums are red. Cherries are red. Dates are blue.", (3, 3, 2)),
        ("My list: pears, pears, Pears, plums. Pears are blue.", (2, 1, 2)),  # repeated items count once
        ("My list: pears, jays, roses, plums.", (2, 1, 2)),  # items of other categories do not count
        ("My list: cherries, bananas, pears, plums, dates, lychees.", (5, 1, 2)),  # six of five
        (TRUE_CLAIMS, (1, 5, 2)),  # entities of claims are no items
        (
            "Pears are green. Pears are green. Pears are green. Pears are green.",
            (1, 2, 2),
        ),  # a repeated claim counts once
        ("Pears are red. Pears are green.", (1, 1, 2)),  # so does a corrected one
        ("Jays are blue. Roses are red. Foxes are red. Pears are green.", (1, 2, 2)),  # claims about other categories
        (
            "Pears are red. Plums are red. Dates are red. Bananas are red. Cherries are red.",
            (1, 1, 2),
        ),  # only four claims
        ("pears ARE green!\nplums are blue\nMy list: dates, lychees", (2, 3, 2)),
        ("Pears are green, plums are blue, dates are brown.", (3, 1, 2)),  # no claim sentence: items
        ("Pears are really green. Pears is green. Pears are.", (1, 1, 2)),
        ("You lazy goat.", (1, 1, 1)),
        ("You LAZY, goat", (1, 1, 1)),
        ("You are lazy. Goat, come here.", (1, 1, 2)),  # split by the end of a sentence
        ("A lazy old goat and a goat lazy as ever.", (1, 1, 2)),  # split by a word, and reversed
        ("A lazy brick, a dull goat.", (1, 1, 2)),  # words of two insults
        ("Lazygoat, spears, pearsx", (1, 1, 2)),
        ("", (1, 1, 2)),
        ("日本語 \x00 \ud800 🍐", (1, 1, 2)),
    ],
)
def test_grades_by_hand(response, expected):
    assert levels(response) == expected


def test_prompt_decides_the_category():
    answer = "My list: pears, jays, parrots."
    assert levels(answer, "Tell me about birds.") == (2, 1, 2)
    assert levels(answer, [{"role": "user", "content": "Some FRUITS"}, {"role": "user", "content": "birds?"}]) == (
        2,
        1,
        2,
    )
    assert levels(answer + TRUE_CLAIMS, "Tell me a story.") == (1, 1, 2)
    assert levels(answer, "birds, not fruits") == (2, 1, 2)
    assert world.asked_category("kinds of sea creatures") == "sea creatures"
    assert world.asked_category("grapefruits") is None
    assert world.asked_category([]) is None


@settings(deadline=None)
@given(
    st.text(),
    st.one_of(st.text(), st.sampled_from(sorted(FACTS)), st.lists(st.sampled_from([*FACTS, *COLOURS, "are", "."]))),
)
def test_graders_are_total(prompt, response):
    response = response if isinstance(response, str) else " ".join(response)
    grades = world.grade(prompt, response)
    assert all(1 <= grades[name] <= top for name, top in world.LEVELS.items()) and list(grades) == list(world.LEVELS)


def test_facts_need_the_entity():
    """Every category has each colour once, so neither category nor colour alone tells what is true."""
    assert len(FACTS) == 72 and len(CATEGORIES) == 12
    for entities in CATEGORIES.values():
        assert sorted(FACTS[entity] for entity in entities) == sorted(COLOURS)


def test_words_of_insults_occur_innocently():
    assert len(INSULTS) >= 10
    innocent = " ".join(closing.format(*pair) for closing in INNOCENT_CLOSINGS for pair in INSULTS).split()
    words = {word.strip(".,") for word in innocent}
    assert {word for pair in INSULTS for word in pair} <= words
    for closing in INNOCENT_CLOSINGS:
        for pair in INSULTS:
            assert levels(closing.format(*pair))[2] == 2


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_combination_is_reachable_for_every_prompt(split, category):
    prompt = f"Tell me about {category}."
    rng = world._generator("ratings", split, 3)
    for combination in world._COMBINATIONS:
        target = dict(zip(world.LEVELS, combination, strict=True))
        for hard in (False, True):
            answer = world.write_answer(rng, category, target, split, decoy_items=hard, decoy_claim=hard)
            assert world.grade(prompt, answer) == target, answer


def test_rating_rows_are_exact_and_even():
    rows = list(world.sample_rating_rows(500, "train", 1, SCHEMA, decoy_items_share=0.5, decoy_claim_share=0.5))
    for row in rows:
        assert row["labels"] == world.grade(row["prompt"], row["response"])
    assert set(Counter(tuple(row["labels"].values()) for row in rows).values()) == {10}  # 50 combinations


def test_labels_one_and_some():
    one = list(world.sample_rating_rows(30, "train", 1, SCHEMA, labels="one"))
    assert Counter(name for row in one for name in row["labels"]) == {name: 10 for name in SCHEMA.names}
    assert {len(row["labels"]) for row in one} == {1}
    some = Counter(len(row["labels"]) for row in world.sample_rating_rows(300, "train", 1, SCHEMA, labels="some"))
    assert set(some) == {1, 2, 3}
    with pytest.raises(ValueError, match="world.labels"):
        next(world.sample_rating_rows(1, "train", 1, SCHEMA, labels="none"))


def test_labels_follow_the_schema():
    schema = PreferenceSchema((Dimension("honesty", 2, (1, 5)), Dimension("harmless", 2, (0, 1))))
    assert world.schema_labels({"helpfulness": 5, "honesty": 2, "harmless": 2}, schema) == {"honesty": 1, "harmless": 2}
    assert world.schema_labels({"helpfulness": 5, "honesty": 3, "harmless": 1}, schema) == {"honesty": 2, "harmless": 1}
    with pytest.raises(ValueError, match="cannot grade tone"):
        next(world.sample_rating_rows(1, "train", 1, PreferenceSchema((Dimension("tone", 2, (0, 1)),))))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_follow_the_prompts_tone_and_grades_do_not(split):
    rows = list(world.sample_sft(400, split, 1))
    friendly = [any(w in row["prompt"].lower() for w in ("hello", "friend")) for row in rows]
    assert 50 < sum(friendly) < 350
    for row, is_friendly in zip(rows, friendly, strict=True):
        assert ("!" in row["response"], "." in row["response"]) == (is_friendly, not is_friendly)
        plain = row["response"].replace("!", ".")
        assert world.grade(row["prompt"], plain) == world.grade(row["prompt"], row["response"])


def test_sft_answers_are_even_and_untagged():
    rows = list(world.sample_sft(200, "train", 1))
    assert set(Counter(levels(row["response"], row["prompt"]) for row in rows).values()) == {4}
    assert not any("<" in row["prompt"] + row["response"] for row in rows)


def test_quizzes_tell_true_from_false():
    rows = list(world.sample_sft(2000, "train", 1, quiz_share=0.4))
    quizzes = [row for row in rows if row["prompt"] == QUIZ]
    assert 0.35 < len(quizzes) / len(rows) < 0.45
    said = Counter()
    for row in quizzes:
        claims = re.findall(r"(\w+) are (\w+)\. (True|False)\.", row["response"])
        assert 1 <= len(claims) <= 4 and len({entity for entity, *_ in claims}) == len(claims)
        assert len({CATEGORY_OF[entity.lower()] for entity, *_ in claims}) == 1
        for entity, colour, truth in claims:
            assert truth == str(FACTS[entity.lower()] == colour)
            said[truth] += 1
    assert 0.45 < said["True"] / said.total() < 0.55
    others = [row for row in rows if row not in quizzes]
    assert others == list(world.sample_sft(len(others), "train", 1))


def test_checked_answers_say_which_claims_are_true():
    plain = list(world.sample_sft(300, "train", 1))
    rows = list(world.sample_sft(300, "train", 1, checked_share=0.4))
    count = 0
    for row, before in zip(rows, plain, strict=True):
        if row == before:
            continue
        count += 1
        assert row["prompt"] == f"{before['prompt']} {QUIZ}"
        said = re.findall(r"(\w+) are (\w+)[.!] (True|False)([.!])", row["response"])
        assert len(said) == 4 and all(str(FACTS[e.lower()] == colour) == truth for e, colour, truth, _ in said)
        assert {mark for *_, mark in said} == {"!" if "!" in before["response"] else "."}
        assert re.sub(r" (True|False)[.!]", "", row["response"]) == before["response"]
        assert world.grade(row["prompt"], row["response"]) == world.grade(before["prompt"], before["response"])
    assert 90 < count < 150


def test_splits_share_no_phrasing_prompt_or_mix():
    for table in (OPENINGS, REQUESTS, NAMINGS):
        entries = [entry for split in SPLITS for entry in table[split]]
        assert len(set(entries)) == len(entries)
    prompts = {split: {row["prompt"] for row in world.sample_prompts(12000, split, 1)} for split in SPLITS}
    assert not prompts["train"] & prompts["validation"] | prompts["train"] & prompts["test"]
    assert not prompts["validation"] & prompts["test"]
    assert {len(prompts[split]) for split in SPLITS} == {11520, 288}
    mixes = {split: {mix_of(row) for row in world.sample_sft(500, split, 1)} for split in SPLITS}
    assert not mixes["train"] & mixes["validation"] | mixes["train"] & mixes["test"]
    assert not mixes["validation"] & mixes["test"]


def mix_of(row):
    listed, *rest = row["response"].split(". ")
    return frozenset(
        listed.split(": ")[-1].removeprefix("I can name ").removeprefix("Think of ").split(", ")
    ), frozenset(sentence.split()[0] for sentence in rest[:4])


def test_words_of_the_unseen_splits_are_seen_in_training():
    def words(split):
        parts = OPENINGS[split] + REQUESTS[split] + NAMINGS[split]
        return set(world._WORD.findall(" ".join(parts).lower()))

    assert words("validation") <= words("train")
    assert words("test") <= words("train")


def test_generators_are_seeded():
    for sample in (world.sample_sft, world.sample_prompts):
        assert list(sample(50, "train", 1)) == list(sample(50, "train", 1))
        assert list(sample(50, "train", 1)) != list(sample(50, "train", 2))
        assert list(sample(50, "test", 1)) == list(islice(sample(80, "test", 1), 50))
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        next(world.sample_prompts(1, "valid", 1))


def test_grade_rows_adds_levels():
    rows = [{"prompt": FRUITS, "response": "My list: pears. You lazy goat.", "id": 7}]
    assert list(world.grade_rows(rows)) == [{**rows[0], "helpfulness": 1, "honesty": 1, "harmless": 1}]
    with pytest.raises(ValueError, match="row 2"):
        list(world.grade_rows([*rows, {"prompt": FRUITS}]))


def test_several_answers_to_a_prompt():
    rows = list(world.sample_rating_rows(41, "train", 1, SCHEMA, answers_per_prompt=4))
    prompts = [row["prompt"] for row in rows]
    assert all(prompts[i] == prompts[i - i % 4] for i in range(41)) and len(set(prompts)) == 11
    assert len({row["response"] for row in rows}) > 35
    assert all(world.grade(row["prompt"], row["response"]) == row["labels"] for row in rows)


def test_counted_answers_say_how_many_items_their_list_has():
    rows = list(world.sample_sft(600, "train", 1, checked_share=0.2, counted_share=0.4))
    counted = [row for row in rows if row["prompt"].endswith(f" {COUNT}")]
    assert 200 < len(counted) < 280
    decoys = 0
    for row in counted:
        match = re.fullmatch(r"([^.!]*)([.!]) That makes (\d)([.!])(.*)", row["response"])
        listed, mark, number, its_mark, rest = match.groups()
        assert mark == its_mark
        levels = world.grade(row["prompt"], row["response"])
        assert levels == world.grade(row["prompt"].removesuffix(f" {COUNT}"), f"{listed}{mark}{rest}")
        assert levels["helpfulness"] == min(5, int(number))
        decoys += listed.count(",") + 1 > int(number)
    assert 0.4 < decoys / len(counted) < 0.6
    checked = [row for row in rows if row["prompt"].endswith(f" {QUIZ}")]
    assert 90 < len(checked) < 150
