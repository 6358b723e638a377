"""Prompt and response pairs as token ids, held flat: 4 bytes a token, whatever the number of rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nemo_moslim.data.chat import ChatEncoder

ENCODE_BATCH = 2048


@dataclass(frozen=True)
class EncodedRows:
    """R rows. Row i is `tokens[offsets[i]:offsets[i + 1]]`: its prompt, then its response with the closing EOS."""

    tokens: np.ndarray  # int32 [total tokens]
    offsets: np.ndarray  # int64 [R + 1]
    prompt_lengths: np.ndarray  # int64 [R]: tokens before the response
    kept: np.ndarray  # int64 [R]: index of each row in the input
    shortened: np.ndarray  # bool [R]: rows that lost text
    dropped: int  # rows that were left out

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [R]."""
        return np.diff(self.offsets)

    @property
    def cut(self) -> int:
        """Rows that were shortened."""
        return int(self.shortened.sum())

    def row(self, index: int) -> np.ndarray:
        """Token ids of one row, int32 [length]."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def shorten(
    prompt: list[int], response: list[int], max_length: int, long_rows: str
) -> tuple[list[int], list[int]] | None:
    """Bring a row to `max_length` tokens as `long_rows` says; None where it is dropped.

    cut_prompt drops tokens from the left of the prompt, down to a quarter of max_length, and, where that is not enough,
    from the left of the response; cut_response drops tokens from the left of the response, so that its end and its EOS
    stay; a prompt over half of max_length makes room first, down to that half.

    Raises:
        ValueError: the row is too long and long_rows is "raise".
    """
    excess = len(prompt) + len(response) - max_length
    if excess <= 0:
        return prompt, response
    if long_rows == "raise":
        raise ValueError(
            f"{len(prompt) + len(response)} tokens, over the model's {max_length}: choose "
            "long_rows=drop|cut_prompt|cut_response (in a training batch.long_rows, or a higher model.max_length)"
        )
    if long_rows == "drop":
        return None
    if long_rows == "cut_prompt":
        prompt = prompt[min(excess, max(len(prompt) - max_length // 4, 0)) :]
    else:
        kept = max(max_length // 2, max_length - len(response))
        prompt = prompt[max(len(prompt) - kept, 0) :]
    room = max_length - len(prompt)
    return prompt, response[max(len(response) - room, 0) :]


def encode_rows(
    rows: Iterable[dict], encoder: ChatEncoder, max_length: int, long_rows: str, origin: str
) -> EncodedRows:
    """Encode rows with `prompt` and `response`.

    Args:
        origin: the file's name, for messages.

    Raises:
        ValueError: no rows, or a row over max_length with long_rows="raise"; the message names the file and the row.
    """
    tokens, lengths, prompt_lengths, kept, shortened = [], [], [], [], []
    dropped = 0
    iterator, index = iter(rows), -1
    while batch := list(islice(iterator, ENCODE_BATCH)):
        prompts = encoder.encode_prompts([row["prompt"] for row in batch])
        responses = encoder.encode_responses([row["response"] for row in batch])
        for prompt, response in zip(prompts, responses, strict=True):
            index += 1
            try:
                short = shorten(prompt, response, max_length, long_rows)
            except ValueError as error:
                raise ValueError(f"{origin}: row {index + 1} has {error}") from None
            if short is None:
                dropped += 1
                continue
            shortened.append(len(short[0]) + len(short[1]) < len(prompt) + len(response))
            tokens.append(np.asarray(short[0] + short[1], dtype=np.int32))
            lengths.append(len(tokens[-1]))
            prompt_lengths.append(len(short[0]))
            kept.append(index)
    if not tokens:
        raise ValueError(f"{origin}: no rows to use ({dropped} dropped as over the model's {max_length} tokens)")
    return EncodedRows(
        tokens=np.concatenate(tokens),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=np.asarray(prompt_lengths),
        kept=np.asarray(kept),
        shortened=np.asarray(shortened),
        dropped=dropped,
    )
