"""Answers to prompts, spread over the data-parallel ranks: for training, for evaluation and for people who ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nemo_moslim.config import GenerationConfig, ParallelConfig
from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
from nemo_moslim.data.prompt_dataset import PromptDataset, check_asked
from nemo_moslim.models.policy import PolicyModel
from nemo_moslim.parallel.layout import data_parallel_place, gather_over_data_ranks
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.generate import Generation, Generator, MegatronGenerator
from nemo_moslim.rollout.open_model import open_policy


def answer_ends(encoder: ChatEncoder, model: PolicyModel, generation: GenerationConfig) -> list[int]:
    """Ids of the tokens that end an answer: EOS, those of the folder that the policy began as, generation.stop_tokens.

    Raises:
        ValueError: a stop token that is not one token of the tokenizer.
    """
    ends = {encoder.eos_id, *(model.config.stop_ids or ())}
    for text in generation.stop_tokens:
        ids = encoder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(
                f"generation.stop_tokens={generation.stop_tokens}: {text!r} is {len(ids)} tokens of the policy's "
                f"tokenizer: give texts of one token each, as {encoder.tokenizer.eos_token!r}"
            )
        ends.update(ids)
    return sorted(ends)


def answers_over_ranks(
    generator: Generator,
    prompts: Sequence[np.ndarray],
    seed: tuple[int, ...],
    samples: int,
    numbers: Sequence[int] | None = None,
) -> Generation:
    """`samples` answers to every prompt, adjacent, on every rank; each rank generates its share.

    The draws of an answer depend on (seed, number of the prompt, number of the sample) alone; a prompt's number is its
    place unless `numbers` are given.
    """
    rank, ranks = data_parallel_place()
    own = list(range(rank, len(prompts), ranks))
    numbers = range(len(prompts)) if numbers is None else numbers
    seeds = [(*seed, numbers[place], sample) for place in own for sample in range(samples)]
    made = generator.generate([prompts[place] for place in own], seeds, samples)
    total = len(prompts) * samples
    result = Generation([None] * total, [None] * total, np.zeros(total, dtype=bool))
    for other, share in enumerate(gather_over_data_ranks((made.tokens, made.logprobs, made.finished))):
        places = [p * samples + s for p in range(other, len(prompts), ranks) for s in range(samples)]
        for place, tokens, logprobs, finished in zip(places, *share, strict=True):
            result.tokens[place], result.logprobs[place], result.finished[place] = tokens, logprobs, finished
    return result


class Answers(NamedTuple):
    """One answer per row."""

    texts: list[str]
    lengths: list[int]  # tokens
    prompts_cut: int  # rows whose prompt lost its beginning


class Answerer:
    """A policy ready to answer."""

    def __init__(self, model: PolicyModel, tokenizer: Path, generation: GenerationConfig):
        """
        Raises:
            ValueError: no room for a prompt beside generation.max_new_tokens; or as `answer_ends`.
        """
        asked = model.config.asked
        self.asked = None if asked is None else PreferenceSchema.from_dict(asked)
        self.max_length = model.config.seq_length
        self.encoder = ChatEncoder(load_tokenizer(tokenizer))
        self.room = self.max_length - generation.max_new_tokens
        if self.room < 1:
            raise ValueError(
                f"generation.max_new_tokens={generation.max_new_tokens} leaves no room for a prompt in the policy's "
                f"{self.max_length} tokens: lower it"
            )
        ends = answer_ends(self.encoder, model, generation)
        self.generator = MegatronGenerator(model.module, generation, ends, len(self.encoder.tokenizer), self.max_length)

    def answer(
        self,
        rows: Sequence[dict],
        schema: PreferenceSchema,
        seed: int,
        long_prompts: str,
        origin: str,
        numbers: Sequence[int] | None = None,
    ) -> Answers:
        """One answer per row ({"prompt", "preferences"}).

        Args:
            numbers: see `answers_over_ranks`.

        Raises:
            ValueError: a prompt too long for the policy (with long_prompts="raise"), or a dimension that it was trained
                to follow on another scale, or not at all.
        """
        if self.asked is not None:
            check_asked(rows, schema, self.asked)
        data = PromptDataset.build(rows, schema, self.encoder, self.room, long_prompts, origin)
        made = answers_over_ranks(self.generator, data.tokens, (seed,), 1, numbers)
        decode = self.encoder.tokenizer.decode
        texts = [decode(tokens, skip_special_tokens=True) for tokens in made.tokens]
        return Answers(texts, [len(tokens) for tokens in made.tokens], data.cut)


def open_answerer(policy: str, parallel: ParallelConfig, precision: str, generation: GenerationConfig) -> Answerer:
    """From a run or a Hugging Face folder; `parallel.layout.initialize` comes first. Raises as `open_policy`."""
    return Answerer(*open_policy(policy, parallel, precision), generation)
