"""Prompts with the levels asked of their answers, as token ids of the tagged prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nemo_moslim.data.chat import ChatEncoder, Prompt, as_messages
from nemo_moslim.preferences import PreferenceSchema


def tag_prompt(prompt: Prompt, preferences: dict[str, int], schema: PreferenceSchema) -> Prompt:
    """The prompt with its tags before the user's text; in a dialogue, before its last message."""
    if isinstance(prompt, str):
        return schema.tag(prompt, preferences)
    *before, last = prompt
    return [*before, {**last, "content": schema.tag(last["content"], preferences)}]


def shorten_left(prompt: Prompt, excess: int, encoder: ChatEncoder) -> Prompt | None:
    """The prompt less `excess` tokens (or more) of its beginning: messages first, then text; None if all would go."""
    messages = as_messages(prompt)
    while len(messages) > 1 and excess > 0:
        whole, rest = encoder.encode_prompts([messages, messages[1:]])
        excess, messages = excess - (len(whole) - len(rest)), messages[1:]
    if excess > 0:
        text = messages[0]["content"]
        rest = encoder.without_first(text, excess) if excess < len(encoder.encode_texts([text])[0]) else ""
        if not rest:
            return None
        messages = [{**messages[0], "content": rest}]
    return messages[0]["content"] if isinstance(prompt, str) else messages


def fit_left(prompt: Prompt, room: int, encoder: ChatEncoder, dress: Callable[[Prompt], Prompt]) -> Prompt | None:
    """The prompt less as much of its beginning as `dress(prompt)`, with its tags, has over `room` tokens.

    Every round takes a message or a character at least, so that there is a last one. None: nothing would be left.
    """
    while (excess := len(encoder.encode_prompts([dress(prompt)])[0]) - room) > 0:
        prompt = shorten_left(prompt, excess, encoder)
        if prompt is None:
            return None
    return prompt


@dataclass(frozen=True)
class PromptDataset:
    """P prompts. The reward model reads `prompts`, the policy `tokens`."""

    prompts: list[Prompt]  # without preference tags
    preferences: list[dict[str, int]]  # asked levels, 1-based; {} where the prompt is untagged
    tokens: list[np.ndarray]  # int32: chat template around the tagged prompt
    plain_tokens: list[np.ndarray]  # int32: the same without tags
    cut: int  # prompts that were shortened
    dropped: int  # prompts that were left out

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def build(
        cls,
        rows: Sequence[dict],
        schema: PreferenceSchema,
        encoder: ChatEncoder,
        max_tokens: int,
        long_prompts: str,
        origin: str,
    ) -> "PromptDataset":
        """Encode rows ({"prompt", "preferences"}).

        Args:
            max_tokens: room for a prompt. A longer one is refused, dropped, or loses the beginning of its text (not its
                tags), as `long_prompts` says: raise, drop, cut_left.

        Raises:
            ValueError: a prompt that is too long (file and row are named), or none left.
        """
        prompts, tagged = [row["prompt"] for row in rows], []
        for start in range(0, len(rows), 2048):
            part = rows[start : start + 2048]
            tagged += encoder.encode_prompts([tag_prompt(r["prompt"], r["preferences"], schema) for r in part])
        kept, cut = [], 0
        for index, row in enumerate(rows):
            place = f"{origin}: row {index + 1}"
            if len(tagged[index]) > max_tokens and long_prompts == "raise":
                raise ValueError(
                    f"{place} has {len(tagged[index])} tokens, over the {max_tokens} that the model's length leaves "
                    "beside generation.max_new_tokens: lower that, or choose long_prompts=cut_left (train_policy.py: "
                    "drop too, or a higher max_length)"
                )
            if len(tagged[index]) > max_tokens and long_prompts == "drop":
                continue
            if len(tagged[index]) > max_tokens:
                cut += 1
                dress = partial(tag_prompt, preferences=row["preferences"], schema=schema)
                shorter = fit_left(prompts[index], max_tokens, encoder, dress)
                if shorter is None:
                    raise ValueError(f"{place}: its tags and the chat template alone take over {max_tokens} tokens")
                prompts[index], tagged[index] = shorter, encoder.encode_prompts([dress(shorter)])[0]
            kept.append(index)
        if not kept:
            raise ValueError(f"{origin}: no prompt to use ({len(rows)} dropped as over {max_tokens} tokens)")
        return cls(
            prompts=[prompts[i] for i in kept],
            preferences=[dict(rows[i]["preferences"]) for i in kept],
            tokens=[np.asarray(tagged[i], dtype=np.int32) for i in kept],
            plain_tokens=[np.asarray(t, dtype=np.int32) for t in encoder.encode_prompts([prompts[i] for i in kept])],
            cut=cut,
            dropped=len(rows) - len(kept),
        )


def prompts_of_step(rows: int, step: int, per_step: int, seed: int) -> np.ndarray:
    """Indices of the prompts of a step: one random permutation of all after another, int64 [per_step]."""
    start = step * per_step
    first, last = start // rows, (start + per_step - 1) // rows
    epochs = [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(first, last + 1)]
    return np.concatenate(epochs)[start - first * rows :][:per_step]


def check_asked(rows: Sequence[dict], schema: PreferenceSchema, trained: PreferenceSchema) -> None:
    """Rows {"prompt", "preferences"} ask, by `schema`, only for what a policy was `trained` to follow.

    Raises:
        ValueError: a dimension that it does not follow, or on another number of levels.
    """
    known = {dimension.name: dimension.levels for dimension in trained.dimensions}
    for name in sorted({name for row in rows for name in row["preferences"]}):
        levels = schema.dimension(name).levels
        if known.get(name) != levels:
            follows = ", ".join(f"{other} in {count} levels" for other, count in known.items())
            raise ValueError(
                f"preferences: prompts ask for {name} in {levels} levels, and the policy was trained to follow "
                f"{follows}: give the preferences= of its training"
            )
