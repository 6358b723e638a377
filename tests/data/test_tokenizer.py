import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.data import world
from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
from nemo_moslim.data.tokenizer import read_texts, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    with open(root / "train.jsonl", "w", encoding="utf-8") as stream:
        for row in world.sample_sft(300, "train", 1):
            stream.write(json.dumps(row) + "\n")
    for name in ("one", "two"):
        train_tokenizer([str(root / "train.jsonl")], str(root / name), 500)
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder / "one"))


def test_loads_as_a_fast_tokenizer(tokenizer):
    assert tokenizer.is_fast and len(tokenizer) == 500
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer.tokenize(" are green.") == ["Ġare", "Ġgreen", "."]


def test_training_is_deterministic(folder):
    names = sorted(path.name for path in (folder / "one").iterdir())
    assert names == ["manifest.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_chat_template(tokenizer):
    messages = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "Yes"}]
    text = "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    prompted = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompted == "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages)
    assert ids.count(1) == 2 and ids.count(2) == 2


def test_any_text_decodes_to_itself(tokenizer):
    @settings(deadline=None)
    @given(st.text())
    def check(text):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    check()
    check_text = "é e\u0301 日本 🙂 \r\n\t  two  spaces \x00 don't 1234"
    assert tokenizer.decode(tokenizer(check_text)["input_ids"]) == check_text


def test_texts_of_every_layout(tmp_path):
    rows = [
        {"prompt": "p", "response": "r", "labels": {"a": 1}, "source": "not this"},
        {"prompt": [{"role": "user", "content": "m"}]},
        {"instruction": "i", "input": "", "output": "o"},
        {"chosen": "c", "rejected": "d"},
        {"instruction": "j", "completions": [{"response": "k"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text("prompt,score\nq,3\n")
    (tmp_path / "c.txt").write_text("line\n\nlast")
    found = list(read_texts([str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt")]))
    assert found == ["p", "r", "m", "i", "o", "c", "d", "j", "k", "q", "line\n", "last"]


def test_bad_input_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "y"}\n{\n')
    for path, size, match in (
        ("a.jsonl", 300, "no text found"),
        ("b.jsonl", 300, r"b\.jsonl:2: not JSON"),
        ("a.jsonl", 258, "259"),
    ):
        with pytest.raises(ValueError, match=match):
            train_tokenizer([str(tmp_path / path)], str(tmp_path / "out"), size)
    assert not (tmp_path / "out").exists()


def test_a_small_text_is_said_to_be_too_small(tmp_path):
    (tmp_path / "a.txt").write_text("abc\n")
    manifest = train_tokenizer([str(tmp_path / "a.txt")], str(tmp_path / "out"), 1000)
    assert manifest["vocab_size"] < manifest["vocab_size_asked"] == 1000


def test_a_tag_is_one_token_and_text_comes_back(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "Name some fruits.", "response": "Pears and plums."}\n')
    tags = ("<helpfulness 1>", "<helpfulness 2>")
    manifest = train_tokenizer([str(source)], str(tmp_path / "out"), 300, tags)
    assert manifest["vocab_size"] <= 300
    encoder = ChatEncoder(load_tokenizer(tmp_path / "out"))
    text = "<helpfulness 2> Name <helpfulness 3> fruits."
    (ids,) = encoder.encode_texts([text])
    assert encoder.tokenizer.decode(ids[:1]) == "<helpfulness 2>" and encoder.tokenizer.decode(ids) == text
    assert sum(encoder.tokenizer.decode([token]) in tags for token in ids) == 1
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(ValueError, match="256 bytes, 3 special tokens, 2 tags"):
        train_tokenizer([str(source)], str(tmp_path / "small"), 260, tags)
