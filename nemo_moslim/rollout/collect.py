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
            FloatingPointError: a reward that is not finite.
        """
        with self.clock.phase("generation"):
            made = answers_over_ranks(
                self.generator, [data.tokens[i] for i in prompts], (self.seed, step), self.samples
            )
        rows = np.repeat(prompts, self.samples)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made.tokens]
        asked = [data.preferences[i] for i in rows]
        plain = [data.prompts[i] for i in rows]
        with self.clock.phase("scoring"):
            scores = self.scorer.score(plain, texts, asked)
        rewards = scores.rewards.cpu() - self.cut_penalty * torch.from_numpy(~made.finished)
        check_finite(rewards, plain, step)
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


def check_finite(rewards: torch.Tensor, prompts: Sequence, step: int) -> None:
    """FloatingPointError naming the first prompt whose reward is NaN or infinite."""
    bad = (~torch.isfinite(rewards)).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(
            f"step {step + 1}: the reward of {len(bad)} answers is not finite, first for the prompt "
            f"{prompts[bad[0]]!r}; weights are left as they were, the last checkpoint stays; look at the reward model"
        )
