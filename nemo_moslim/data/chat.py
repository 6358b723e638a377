"""Text to token ids: the tokenizer's chat template around a prompt, and the answer that follows it.

The template's own pieces are encoded with special tokens; the user's text never is, so a prompt that contains the
characters `<|im_end|>` cannot end its turn.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

Message = dict[str, str]
Prompt = str | list[Message]

TEMPLATES_KEPT = 128  # sequences of roles whose template stays encoded; data has far fewer


def load_tokenizer(folder: str | Path):
    """A Hugging Face fast tokenizer with what training needs.

    Raises:
        ValueError: no tokenizer there, no fast version, no chat template, no EOS token, or no pad token.
    """
    from transformers import AutoTokenizer

    if Path(folder).is_dir() and not (Path(folder) / "tokenizer_config.json").is_file():
        raise ValueError(f"tokenizer={folder}: not a Hugging Face tokenizer folder (no tokenizer_config.json there)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=Path(folder).is_dir())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer={folder}: not a Hugging Face tokenizer folder ({str(error).splitlines()[0][:200]})"
        ) from None
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer={folder}: it has no fast version: give a folder with tokenizer.json")
    for attribute, verb in (("chat_template", "add"), ("eos_token", "set"), ("pad_token", "set")):
        if not getattr(tokenizer, attribute, None):
            raise ValueError(f"tokenizer={folder}: it has no {attribute}: {verb} {attribute} in tokenizer_config.json")
    return tokenizer


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as chat messages: plain text is one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def vocabulary_digest(tokenizer) -> str:
    """The same for tokenizers that give every token the same number."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


class ChatEncoder:
    """Encodes prompts and responses with one tokenizer."""

    def __init__(self, tokenizer):
        from tokenizers import Tokenizer

        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._template_pieces = lru_cache(TEMPLATES_KEPT)(self._encode_template)

    def _encode_template(self, roles: tuple[str, ...]) -> list[list[int]]:
        """Token ids of the template before, between and after the messages' texts: len(roles) + 1 lists."""
        markers = [f"\ue000{i}\ue001" for i in range(len(roles))]
        messages = [{"role": role, "content": marker} for role, marker in zip(roles, markers, strict=True)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces, end = [], 0
        for marker in markers:
            start = text.find(marker, end)
            if start < 0:
                raise ValueError(f"the tokenizer's chat template drops a message of the roles {roles}")
            pieces.append(text[end:start])
            end = start + len(marker)
        encode = self.tokenizer.backend_tokenizer.encode
        return [encode(piece, add_special_tokens=False).ids for piece in [*pieces, text[end:]]]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts; special tokens' strings are ordinary characters here."""
        return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def without_first(self, text: str, count: int) -> str:
        """The text less its first `count` tokens (1 or more); a character that the cut would split goes too.

        It is an end of the text itself, not of decoded tokens, and shorter than it by a character or more.
        """
        offsets = self._plain.encode(text, add_special_tokens=False).offsets
        return text[max(1, offsets[count - 1][1]) :]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts inside the chat template, up to where the assistant's answer starts."""
        chats = [as_messages(prompt) for prompt in prompts]
        texts = iter(self.encode_texts([m["content"] for chat in chats for m in chat]))
        encoded = []
        for chat in chats:
            pieces = self._template_pieces(tuple(m["role"] for m in chat))
            ids = list(pieces[0])
            for after in pieces[1:]:
                ids += next(texts)
                ids += after
            encoded.append(ids)
        return encoded

    def encode_responses(self, responses: Sequence[str]) -> list[list[int]]:
        """Token ids of answers, each closed by the EOS token, which belongs to the answer."""
        return [ids + [self.eos_id] for ids in self.encode_texts(responses)]
