"""Made-up questions in the layouts of the published benchmarks, and judgments in FastChat's."""

from pathlib import Path

from made_rows import write_rows

MT_BENCH = [
    {"question_id": 1, "category": "math", "turns": ["red apple", "and pears?"], "reference": ["one", ""]},
    {"question_id": 2, "category": "writing", "turns": ["name some fruits", "tell me about them"]},
    {"question_id": 3, "category": "writing", "turns": ["I tell you", "are they nice"]},
]
HALUEVAL = [
    {"domain": "Science", "id": 1, "user_query": "is the apple red"},
    {"domain": "Finance", "id": 1, "user_query": "is the pear good"},
]
HACKAPROMPT = [
    {"level": "level_1", "prompt": "say {prompt} now", "model": "x"},
    {"level": "level_9", "prompt": "ab", "model": "x"},
    {"level": "level_1", "prompt": "say {prompt} now", "model": "y"},
]
TENSOR_TRUST = [
    {"sample_id": 7, "pre_prompt": "guard it", "attack": "let me in", "post_prompt": "", "access_code": "red"},
    {"sample_id": 8, "pre_prompt": "guard it", "attack": "now", "post_prompt": "was that it?", "access_code": "red"},
]
HARMFUL = [
    {"seq": 0, "instruction": "< harmlessness: 0 > tell me bad", "prompt_level": 1},
    {"seq": 0, "instruction": "< harmlessness: 1 > tell me bad", "prompt_level": 1},
]
OWN = [
    {"prompt": "red?", "category": "colours", "preferences": {"helpfulness": 2}, "reference": "yes"},
    {"turns": ["green?", "blue?"], "id": "two"},
]
LAYOUTS = {
    "mt_bench": MT_BENCH, "halueval": HALUEVAL, "hackaprompt": HACKAPROMPT, "prompt_injection": TENSOR_TRUST,
    "harmful": HARMFUL, "prompts": OWN,
}  # fmt: skip


ONE = """[Instruction]
Judge it.

[Question]
{u1}

[The Start of Assistant's Answer]
{a1}
[The End of Assistant's Answer]"""
ONE_WITH_REFERENCE = ONE.replace(
    "\n\n[The Start of Ass", "\n\n[The Start of Reference Answer]\nthe right one\n[The End of Reference Answer]\n\n"
    "[The Start of Ass"
)  # fmt: skip
TWO = """<|The Start of Assistant A's Conversation with User|>

### User:
{u1}

### Assistant A:
{a1}

### User:
{u2}

### Assistant A:
{a2}

<|The End of Assistant A's Conversation with User|>"""
REFERENCE_OF_TWO = """<|The Start of Reference Answer|>

### User:
{u1}

### Reference answer:
first

### User:
{u2}

### Reference answer:
second

<|The End of Reference Answer|>


"""


def write_benchmarks(folder: Path) -> dict[str, str]:
    """A file per benchmark: name -> path."""
    for name, rows in LAYOUTS.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return {name: str(folder / f"{name}.jsonl") for name in LAYOUTS}


def write_judgments(path: Path) -> dict[str, str]:
    """Eight judgments in FastChat's layout, each text with 3 and with 8, and one without a score; the texts."""
    texts = dict(u1="one?\n\nstill one", a1="first\n\nanswer", u2="two?", a2="second\n\nanswer")
    prompts = [ONE, ONE_WITH_REFERENCE, TWO, REFERENCE_OF_TWO + TWO]
    rows = [
        {"question_id": q, "model": f"m{i % 2}", "turn": 1 + (i > 1), "user_prompt": text.format(**texts), "score": s}
        for q, s in ((81, 3), (82, 8))
        for i, text in enumerate(prompts)
    ]
    write_rows(path, [*rows, {**rows[0], "score": -1}])
    return texts
