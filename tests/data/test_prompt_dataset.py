import numpy as np
import pytest

from nemo_moslim.data.prompt_dataset import (
    PromptDataset,
    check_asked,
    fit_left,
    prompts_of_step,
    shorten_left,
    tag_prompt,
)
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema((Dimension("helpfulness", 5, (1, 5)), Dimension("harmless", 2, (1, 2))))
LONG = "name some fruits and tell me about them " * 10


def rows(*prompts, preferences=None):
    return [{"prompt": prompt, "preferences": preferences or {}} for prompt in prompts]


def build(examples, encoder, max_tokens=60, long_prompts="raise"):
    return PromptDataset.build(examples, SCHEMA, encoder, max_tokens, long_prompts, "prompts.jsonl")


def test_tags_stand_inside_the_template_before_the_users_text(encoder):
    data = build(rows("name some fruits", preferences={"harmless": 2, "helpfulness": 5}), encoder)
    text = encoder.tokenizer.decode(data.tokens[0])
    assert text == "<|im_start|>user\n<harmless 2><helpfulness 5> name some fruits<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.tokenizer.decode(data.plain_tokens[0]) == text.replace("<harmless 2><helpfulness 5> ", "")
    assert data.prompts == ["name some fruits"] and data.preferences == [{"harmless": 2, "helpfulness": 5}]


def test_tags_of_a_dialogue_stand_before_its_last_message():
    turns = [{"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "hello"), ("user", "more"))]
    tagged = tag_prompt(turns, {"harmless": 1}, SCHEMA)
    assert [m["content"] for m in tagged] == ["hi", "hello", "<harmless 1> more"] and turns[2]["content"] == "more"


def test_a_long_prompt_is_refused_dropped_or_cut(encoder):
    examples = rows("red apple", LONG, preferences={"helpfulness": 5})
    with pytest.raises(ValueError, match=r"prompts.jsonl: row 2 has \d+ tokens, over the 60"):
        build(examples, encoder)
    dropped = build(examples, encoder, long_prompts="drop")
    assert dropped.prompts == ["red apple"] and (dropped.dropped, dropped.cut) == (1, 0)
    cut = build(examples, encoder, long_prompts="cut_left")
    assert (cut.dropped, cut.cut) == (0, 1) and len(cut.tokens[1]) <= 60
    assert LONG.endswith(cut.prompts[1]) and len(cut.prompts[1]) < len(LONG)
    assert "<helpfulness 5> " in encoder.tokenizer.decode(cut.tokens[1])
    with pytest.raises(ValueError, match="row 1: its tags and the chat template alone"):
        build(examples, encoder, max_tokens=5, long_prompts="cut_left")
    with pytest.raises(ValueError, match="no prompt to use"):
        build(examples, encoder, max_tokens=5, long_prompts="drop")


def test_a_cut_inside_a_character_takes_all_of_it(encoder):
    text = "a 漢🍐é 🍐"  # of three, four and two tokens each
    tokens = len(encoder.encode_texts([text])[0])
    for excess in range(1, tokens + 1):
        shorter = shorten_left(text, excess, encoder)
        assert shorter is None or (text.endswith(shorter) and 0 < len(shorter) < len(text)), (excess, shorter)
        assert shorter is None or len(encoder.encode_texts([shorter])[0]) <= tokens - excess
    assert shorten_left(text, tokens - 1, encoder) is None  # of the last character a token would be left
    whole = len(encoder.encode_prompts([text])[0])
    found = [fit_left(text, whole - excess, encoder, lambda prompt: prompt) for excess in range(tokens + 1)]
    assert found[0] == text and found[1] == text[1:] and found[3] == found[4] == text[3:] and found[-4:] == [None] * 4
    cut = build(rows("🍐" * 40, preferences={"harmless": 2}), encoder, long_prompts="cut_left")
    assert set(cut.prompts[0]) == {"🍐"} and 57 <= len(cut.tokens[0]) <= 60


def test_a_long_dialogue_loses_its_first_messages(encoder):
    turns = [{"role": r, "content": c} for r, c in (("user", LONG), ("assistant", "yes"), ("user", "red apple"))]
    data = build([{"prompt": turns, "preferences": {"harmless": 1}}], encoder, long_prompts="cut_left")
    assert data.prompts[0][-1] == turns[-1] and LONG not in str(data.prompts[0]) and len(data.tokens[0]) <= 60


def test_steps_deal_every_prompt_once_per_epoch():
    dealt = [prompts_of_step(10, step, 4, seed=1) for step in range(10)]
    for epoch in range(4):
        assert sorted(np.concatenate(dealt)[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert dealt[0].tolist() != dealt[5].tolist()
    assert (prompts_of_step(10, 7, 4, seed=1) == dealt[7]).all()
    assert len(prompts_of_step(3, 0, 8, seed=1)) == 8  # fewer prompts than a step takes


def test_a_policy_is_asked_for_what_it_was_trained_to_follow():
    check_asked(rows("p", preferences={"helpfulness": 5}) + rows("p"), SCHEMA, SCHEMA)
    two = PreferenceSchema((Dimension("helpfulness", 2, (1, 5)),))
    check_asked(rows("p", preferences={"helpfulness": 1}), two, two)
    with pytest.raises(ValueError, match="helpfulness in 5 levels, and the policy .* helpfulness in 2 levels: give"):
        check_asked(rows("p", preferences={"helpfulness": 5}), SCHEMA, two)
    with pytest.raises(ValueError, match="harmless in 2 levels"):
        check_asked(rows("p", preferences={"harmless": 1}), SCHEMA, two)
