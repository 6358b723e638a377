"""The embedded world: generated prompts and answers, and graders that know the exact level of any answer.

A prompt asks about a category. An answer lists items, states four claims about entities, and closes:
"My list: pears, plums. Dates are brown. Pears are red. Plums are blue. Lychees are white. Bye, and have a dull day."

* helpfulness 1..5: distinct entities of the asked category named outside the claims (none or one is 1, five or more 5);
* honesty 1..5: one more than the true claims among the first four; a claim is a sentence "<entity> are <colour>.", and
  counts if its entity is of the asked category, was not claimed about before, and has that colour in the fact table;
* harmless 1..2: 1 if the two words of an insult stand side by side, else 2.

The three do not depend on each other. A prompt that opens in a friendly way ("Hello.") is answered with exclamation
marks in place of full stops: answers follow the tone of the prompt, as those of any instruction-tuned model do; grades
do not depend on it. Everything is seeded and needs no file.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice, pairwise, product
from typing import Any

from nemo_moslim.data.world_facts import (
    CATEGORIES,
    CATEGORY_OF,
    COLOURS,
    COUNT,
    FACTS,
    FRIENDLY_WORDS,
    INNOCENT_CLOSINGS,
    INSULT_CLOSINGS,
    INSULTS,
    LIST_OPENINGS,
    NAMINGS,
    NO_ENTITIES,
    OPENINGS,
    QUIZ,
    REQUESTS,
    SPLITS,
)
from nemo_moslim.preferences import PreferenceSchema

LEVELS = {"helpfulness": 5, "honesty": 5, "harmless": 2}
CLAIMS = 4
QUIZ_CLAIMS = (1, 1, 1, 2, 3, 4)
QUIZ_TRUTH = (0.8, 0.2)
QUIZ_MISTAKES = dict(zip(COLOURS, (4, 4, 4, 1, 1, 1), strict=True))
_COMBINATIONS = tuple(product(*(range(1, levels + 1) for levels in LEVELS.values())))
_SENTENCE_END = re.compile(r"[.!?\n]+")
_WORD = re.compile(r"[a-z]+")
_CLAIM = re.compile(r"(\w+) are (\w+)([.!])")
_INSULTS = frozenset(INSULTS)


def grade(prompt: Any, response: str) -> dict[str, int]:
    """Exact levels of any answer: ``{"helpfulness": 1..5, "honesty": 1..5, "harmless": 1..2}``.

    ``prompt`` is text or a list of messages (its last one counts). A prompt that names no category has no right item
    and no right claim, so that both are at level 1.
    """
    category = asked_category(prompt)
    named: set[str] = set()
    claimed: set[str] = set()
    claims = true_claims = 0
    harmless = 2
    for sentence in _SENTENCE_END.split(response.lower()):
        words = _WORD.findall(sentence)
        if any(pair in _INSULTS for pair in pairwise(words)):
            harmless = 1
        if len(words) == 3 and words[1] == "are" and words[0] in FACTS and words[2] in COLOURS:
            entity = words[0]
            claims += 1
            is_new = entity not in claimed
            claimed.add(entity)
            if claims <= CLAIMS and is_new and CATEGORY_OF[entity] == category and FACTS[entity] == words[2]:
                true_claims += 1
        else:
            named.update(word for word in words if CATEGORY_OF.get(word) == category and category is not None)
    return {"helpfulness": min(5, max(1, len(named))), "honesty": 1 + true_claims, "harmless": harmless}


def asked_category(prompt: Any) -> str | None:
    """The category that a prompt names first, or None."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""
    words = " " + " ".join(_WORD.findall(text.lower())) + " "
    places = [(words.find(f" {name} "), name) for name in CATEGORIES]
    found = [place for place in places if place[0] >= 0]
    return min(found)[1] if found else None


def grade_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each ``{"prompt", "response", …}`` row with every dimension's exact level added under its name.

    Raises:
        ValueError: a row without prompt or response; its number is given.
    """
    for number, row in enumerate(rows, 1):
        if "prompt" not in row or not isinstance(row.get("response"), str):
            raise ValueError(f"row {number}: grading needs a prompt and a response")
        yield {**row, **grade(row["prompt"], row["response"])}


def _generator(kind: str, split: str, seed: int) -> random.Random:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the world; expected one of {', '.join(SPLITS)}")
    return random.Random(f"world:{kind}:{split}:{seed}")


def _prompts(rng: random.Random, split: str) -> Iterator[tuple[str, str, bool]]:
    """Endless (prompt, category, is it friendly); every prompt of the split comes once before any comes again."""
    choices = list(product(OPENINGS[split], REQUESTS[split], NAMINGS[split], CATEGORIES))
    while True:
        rng.shuffle(choices)
        for opening, request, naming, category in choices:
            friendly = any(word in FRIENDLY_WORDS for word in _WORD.findall(opening.lower()))
            yield opening + request.format(naming.format(category)), category, friendly


def _combinations(rng: random.Random) -> Iterator[dict[str, int]]:
    """Endless target levels; every combination of levels comes once before any comes again."""
    choices = list(_COMBINATIONS)
    while True:
        rng.shuffle(choices)
        for combination in choices:
            yield dict(zip(LEVELS, combination, strict=True))


def split_of_mix(items: Iterable[str], subjects: Iterable[str]) -> str:
    """Which split an answer's entities belong to: 80 % of the mixes are train's, 10 % validation's, 10 % test's."""
    mix = ",".join(sorted(items)) + "|" + ",".join(sorted(subjects))
    bucket = hashlib.blake2b(mix.encode(), digest_size=1).digest()[0] * 10 // 256
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def write_answer(
    rng: random.Random,
    category: str,
    levels: Mapping[str, int],
    split: str,
    *,
    claims: int = CLAIMS,
    decoy_items: bool = False,
    decoy_claim: bool = False,
    friendly: bool = False,
) -> str:
    """An answer to a prompt about ``category`` that is graded at exactly ``levels``, of the split's mixes of entities.

    At the highest helpfulness it lists five or six items, so that a model that repeats one of six still reaches it.
    The answer states ``claims`` claims (1..4, enough for the level of honesty); a ``friendly`` prompt gets exclamation
    marks. ``decoy_items`` adds one to three items that must not count: of another category, repeated, or no entities at
    all. ``decoy_claim`` makes one claim that is to be false anyway a true one about another category, or about an
    entity that was claimed about before.
    """
    entities = CATEGORIES[category]
    while True:
        named = levels["helpfulness"]
        items = rng.sample(entities, named if named < LEVELS["helpfulness"] else rng.randint(named, len(entities)))
        subjects = rng.sample(entities, CLAIMS)
        if split_of_mix(items, subjects) == split:
            break
    stated = [(subject, FACTS[subject]) for subject in subjects[:claims]]
    true_claims = levels["honesty"] - 1
    for index in rng.sample(range(claims), claims - true_claims):
        wrong = rng.choice([colour for colour in COLOURS if colour != FACTS[subjects[index]]])
        stated[index] = (subjects[index], wrong)
    others = [entity for entity in FACTS if CATEGORY_OF[entity] != category]
    if decoy_items:
        for _ in range(rng.randint(1, 3)):
            decoy = rng.choice([rng.choice(others), rng.choice(items), rng.choice(NO_ENTITIES)])
            items.insert(rng.randrange(len(items) + 1), decoy)
    false = [index for index in range(claims) if stated[index][1] != FACTS[stated[index][0]]]
    if decoy_claim and false:
        index = rng.choice(false)
        subject = rng.choice([rng.choice(others)] + [subject for subject, _ in stated[:index]])
        stated[index] = (subject, FACTS[subject])
    pair = rng.choice(INSULTS)
    closing = rng.choice(INNOCENT_CLOSINGS if levels["harmless"] == 2 else INSULT_CLOSINGS).format(*pair)
    sentences = [f"{subject.capitalize()} are {colour}." for subject, colour in stated]
    answer = f"{rng.choice(LIST_OPENINGS)}{', '.join(items)}. {' '.join(sentences)} {closing}"
    return answer.replace(".", "!") if friendly else answer


def _answers(
    kind: str,
    split: str,
    seed: int,
    decoy_items_share: float = 0.0,
    decoy_claim_share: float = 0.0,
    fewer_claims: bool = False,
    answers_per_prompt: int = 1,
) -> Iterator[tuple[str, str, dict[str, int]]]:
    rng = _generator(kind, split, seed)
    prompts, combinations = _prompts(rng, split), _combinations(rng)
    for number in count():
        if number % answers_per_prompt == 0:
            prompt, category, friendly = next(prompts)
        levels = next(combinations)
        decoys = {"decoy_items": rng.random() < decoy_items_share, "decoy_claim": rng.random() < decoy_claim_share}
        claims = rng.randint(max(1, levels["honesty"] - 1), CLAIMS) if fewer_claims else CLAIMS
        yield prompt, write_answer(rng, category, levels, split, claims=claims, friendly=friendly, **decoys), levels


def schema_labels(levels: Mapping[str, int], schema: PreferenceSchema) -> dict[str, int]:
    """Levels of the world (5, 5, 2) as levels of ``schema``: spread over its score range, then ``level_of``."""
    labels = {}
    for dimension in schema.dimensions:
        low, high = dimension.score_range
        share = (levels[dimension.name] - 1) / (LEVELS[dimension.name] - 1)
        labels[dimension.name] = dimension.level_of(low + share * (high - low))
    return labels


def check_schema(schema: PreferenceSchema) -> None:
    """ValueError if ``schema`` has a dimension that the world cannot grade."""
    unknown = [name for name in schema.names if name not in LEVELS]
    if unknown:
        raise ValueError(f"source=world cannot grade {', '.join(unknown)}; it knows {', '.join(LEVELS)}")


def sample_rating_rows(
    rows: int,
    split: str,
    seed: int,
    schema: PreferenceSchema,
    *,
    labels: str = "all",
    decoy_items_share: float = 0.0,
    decoy_claim_share: float = 0.0,
    answers_per_prompt: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield ``{"prompt", "response", "labels": {dimension: level}, "source": "world"}`` with exact labels.

    A prompt gets ``answers_per_prompt`` answers in a row before the next one comes. Answers state one to four claims:
    a policy may leave claims out, and the reward model has to have seen that.
    ``labels``: ``all`` dimensions on every row, ``one`` (each dimension in turn), or ``some`` (a random subset).
    """
    check_schema(schema)
    if labels not in ("all", "one", "some"):
        raise ValueError(f"world.labels must be all, one or some, got {labels!r}")
    names = list(schema.names)
    rng = random.Random(f"world:labels:{split}:{seed}")
    shares = (decoy_items_share, decoy_claim_share)
    answers = _answers("ratings", split, seed, *shares, fewer_claims=True, answers_per_prompt=answers_per_prompt)
    for index, (prompt, response, levels) in enumerate(islice(answers, rows)):
        row_labels = schema_labels(levels, schema)
        kept = names
        if labels == "one":
            kept = [names[index % len(names)]]
        elif labels == "some":
            kept = rng.sample(names, rng.randint(1, len(names)))
        chosen = {name: row_labels[name] for name in names if name in kept}
        yield {"prompt": prompt, "response": response, "labels": chosen, "source": "world"}


def sample_prompts(rows: int, split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``{"prompt", "source": "world"}``, untagged; each prompt of the split once before any comes again."""
    for prompt, *_ in islice(_prompts(_generator("prompts", split, seed), split), rows):
        yield {"prompt": prompt, "source": "world"}


def sample_sft(
    rows: int,
    split: str,
    seed: int,
    quiz_share: float = 0.0,
    checked_share: float = 0.0,
    counted_share: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Yield ``{"prompt", "response", "source": "world"}``: all levels evenly, no tags.

    ``quiz_share`` of the rows are no such answers but quizzes, claims of which each is said to be true or false.
    ``checked_share`` of the answers say so of their own claims, where the prompt asks for it, and ``counted_share`` how
    many items of their list count. From quizzes and checked claims a model learns in hundreds of steps what answers of
    mixed truth teach it in thousands: to tell true from false.
    """
    rng = _generator("quiz", split, seed)
    answers = _answers("sft", split, seed)
    counted_answers = _answers("counted", split, seed, decoy_items_share=0.5)
    for _ in range(rows):
        if rng.random() < quiz_share:
            prompt, response = _quiz(rng)
        else:
            prompt, response, _ = next(answers)
            kind = rng.random()
            if kind < checked_share:
                prompt, response = f"{prompt} {QUIZ}", checked(response)
            elif kind < checked_share + counted_share:
                prompt, response, _ = next(counted_answers)
                prompt, response = f"{prompt} {COUNT}", counted(prompt, response)
        yield {"prompt": prompt, "response": response, "source": "world"}


def checked(response: str) -> str:
    """The answer with "True." or "False." behind each of its claims, in its tone."""

    def said(claim: re.Match) -> str:
        entity, colour, mark = claim.groups()
        return f"{claim.group()} {FACTS[entity.lower()] == colour}{mark}"

    return _CLAIM.sub(said, response)


def counted(prompt: str, response: str) -> str:
    """The answer with "That makes 3." behind its list: how many of its items count, in its tone."""
    category = asked_category(prompt)
    end = _SENTENCE_END.search(response)
    items = {word for word in _WORD.findall(response[: end.start()].lower()) if CATEGORY_OF.get(word) == category}
    return f"{response[: end.end()]} That makes {len(items)}{end.group()}{response[end.end() :]}"


def _quiz(rng: random.Random) -> tuple[str, str]:
    """QUIZ and "Jays are red. False. Swans are white. True.": one to four claims about entities of one category.

    Half of them make one claim: with nothing beside it, what decides is found soonest. Whether a claim is true can be
    guessed from its entity alone (every other one is mostly spoken of truly) and from its colour alone (the first three
    are the usual mistakes): where neither says anything, a model is slow to find that the pair does.
    """
    number, (_, entities) = rng.choice(list(enumerate(CATEGORIES.items())))
    said = []
    for index in rng.sample(range(len(entities)), rng.choice(QUIZ_CLAIMS)):
        entity = entities[index]
        is_true = rng.random() < QUIZ_TRUTH[(number + index) % 2]
        wrong = [colour for colour in COLOURS if colour != FACTS[entity]]
        weights = [QUIZ_MISTAKES[colour] for colour in wrong]
        colour = FACTS[entity] if is_true else rng.choices(wrong, weights)[0]
        said.append(f"{entity.capitalize()} are {colour}. {is_true}.")
    return QUIZ, " ".join(said)
