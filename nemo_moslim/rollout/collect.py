"""One step's answers: prompts of this rank are answered, all ranks' answers are brought together, scored and mapped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nemo_moslim.batches import Rollout
from nemo_moslim.clock import Clock
from nemo_moslim.data.prompt_dataset import PromptDataset
from nemo_moslim.rollout.answer import answers_over_ranks
from nemo_moslim.rollout.generate import Generator
from nemo_moslim.rollout.scorer import Scorer, asked_levels

VALIDATION_STEP = 2**31  # seeds of validation answers are none of a training step's


@dataclass
class Collector:
    """Samples and scores; the outcome depends on the seed and the step and not on the number of ranks."""

    generator: Generator
    scorer: Scorer
    tokenizer: object
    samples: int
    seed: int
    cut_penalty: float
    clock: Clock

    def collect(self, data: PromptDataset, prompts: np.ndarray, step: int) -> Rollout:
        """Answer and score the prompts with these indices, `samples` answers each.

        Raises:
            FloatingPointError: logits or a reward that are not finite.
        """
        tokens, place = [data.tokens[i] for i in prompts], step_name(step)
        with self.clock.phase("generation"):
            try:
                made = answers_over_ranks(self.generator, tokens, (self.seed, step), self.samples)
            except FloatingPointError as error:
                raise FloatingPointError(f"{place}, generation: {error}") from None
        rows = np.repeat(prompts, self.samples)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made.tokens]
        asked = [data.preferences[i] for i in rows]
        plain = [data.prompts[i] for i in rows]
        with self.clock.phase("scoring"):
            scores = self.scorer.score(plain, texts, asked)
        rewards = scores.rewards.cpu() - self.cut_penalty * torch.from_numpy(~made.finished)
        check_finite(rewards, plain, place)
        return Rollout(
            prompts=plain,
            preferences=asked,
            prompt_tokens=[data.tokens[i] for i in rows],
            plain_prompt_tokens=[data.plain_tokens[i] for i in rows],
            answers=made.tokens,
            texts=texts,
            finished=made.finished,
            generator_logprobs=made.logprobs,
            groups=torch.arange(len(prompts)).repeat_interleave(self.samples),
            rewards=rewards,
            parts=scores.parts.cpu(),
            obtained=scores.obtained.cpu(),
            asked=asked_levels(asked, self.scorer.schema),
            probabilities=scores.probabilities.cpu(),
            cut_for_scoring=scores.cut,
        )


def step_name(step: int) -> str:
    """How messages call a step."""
    return "validation" if step == VALIDATION_STEP else f"step {step + 1}"


def check_finite(rewards: torch.Tensor, prompts: Sequence, place: str) -> None:
    """FloatingPointError naming the first prompt whose reward is NaN or infinite."""
    bad = (~torch.isfinite(rewards)).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(
            f"{place}: the reward of {len(bad)} answers is not finite, first for the prompt "
            f"{prompts[bad[0]]!r}; weights are left as they were, the last checkpoint stays; look at the reward model"
        )
