"""A byte-level BPE tokenizer in Hugging Face's fast format, with ChatML turns, trained on the texts of data files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_moslim.data.folder import open_output
from nemo_moslim.data.sources import read_rows, sha256_of, with_progress

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)
ROLES = ("user", "assistant")  # counted once per text, so that each turn of CHAT_TEMPLATE costs one token for its role
BYTES = 256
MAX_LENGTH = 1 << 20  # tokens; models set their own limit

# How Qwen2 cuts text into pieces before merging: contractions, words, single digits, punctuation, white space.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEXT_FIELDS = ("prompt", "response", "instruction", "input", "output", "chosen", "rejected", "text")


def read_texts(sources: Sequence[str]) -> Iterator[str]:
    """Yield every text of the prompt and response fields (of any layout) of the files, and the lines of ``.txt`` files.

    Raises:
        ValueError: a row that cannot be read (file, line, reason), or a file without any text field.
    """
    for source in sources:
        found = 0
        for source_row in with_progress(read_rows(source), source):
            if source_row.row is None:
                raise ValueError(f"{source_row.file}:{source_row.line}: {source_row.error}")
            for text in _texts_of(source_row.row):
                found += 1
                yield text.encode("utf-8", "replace").decode("utf-8")
        if not found:
            raise ValueError(f"{source}: no text found; expected one of the fields {', '.join(_TEXT_FIELDS)}")


def _texts_of(row: dict[str, Any]) -> Iterator[str]:
    values = [row.get(name) for name in _TEXT_FIELDS]
    completions = row.get("completions")
    if isinstance(completions, list):
        values += [item.get("response") for item in completions if isinstance(item, dict)]
    for value in values:
        if isinstance(value, str) and value:
            yield value
        elif isinstance(value, list):
            yield from (m["content"] for m in value if isinstance(m, dict) and isinstance(m.get("content"), str))


def train_tokenizer(sources: Sequence[str], output: str, vocab_size: int, tags: Sequence[str] = ()) -> dict[str, Any]:
    """Train on the texts of ``sources``, write the tokenizer's folder, and return its manifest.

    Each of ``tags`` (``<helpfulness 5>``) becomes one token, so that a policy has one thing to learn per level.
    ``vocab_size`` counts them, the three special tokens and the 256 bytes; a small text may not have enough pairs to
    merge: then the manifest's ``vocab_size`` is under ``vocab_size_asked``. Decoding an encoded text gives it back.

    Raises:
        ValueError: a vocab_size that cannot hold bytes and special tokens, an unreadable row, an output of others.
    """
    smallest = BYTES + len(SPECIAL_TOKENS) + len(tags)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest} (256 bytes, 3 special tokens, {len(tags)} tags), got {vocab_size}"
        )
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = 0

    def counted() -> Iterator[str]:
        nonlocal texts
        for text in read_texts(sources):
            texts += 1
            yield text
            yield from ROLES

    with open_output(output) as folder:
        tokenizer.train_from_iterator(counted(), trainer)
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
        save_tokenizer(tokenizer, str(folder.path), tags)
        inputs = [{"path": path, "sha256": sha256_of(path) if Path(path).is_file() else None} for path in sources]
        return folder.write_manifest(
            {
                "task": "tokenizer",
                "inputs": inputs,
                "texts": texts,
                "vocab_size": tokenizer.get_vocab_size(),
                "vocab_size_asked": vocab_size,
            }
        )


def save_tokenizer(tokenizer: Any, folder: str, tags: Sequence[str] = ()) -> None:
    """Write a ``tokenizers.Tokenizer`` as a folder that ``AutoTokenizer`` loads, chat template included."""
    path = Path(folder)
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"pad_token": PAD, "eos_token": TURN_END, "additional_special_tokens": [TURN_START, TURN_END]}
    config = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **entry, "special": token in SPECIAL_TOKENS}
            for token in (*SPECIAL_TOKENS, *tags)
        },
        **names,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
