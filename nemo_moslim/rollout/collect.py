"""One step's answers: prompts of this rank are answered, all ranks' answers are brought together, scored and mapped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from nemo_moslim.batches import Rollout, SampledAnswers
from nemo_moslim.clock import Clock
from nemo_moslim.data.prompt_dataset import PromptDataset
from nemo_moslim.rollout.answer import answers_over_ranks
from nemo_moslim.rollout.generate import Generator
from nemo_moslim.rollout.scorer import Scorer, Scores, asked_levels

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
        """`sample`, `send`, and wait for the scores."""
        return self.send(self.sample(data, prompts, step), step)()

    def sample(self, data: PromptDataset, prompts: np.ndarray, step: int) -> SampledAnswers:
        """Answer the prompts with these indices, `samples` answers each.

        Raises:
            FloatingPointError: logits that are not finite.
        """
        tokens = [data.tokens[i] for i in prompts]
        with self.clock.phase("generation"):
            try:
                made = answers_over_ranks(self.generator, tokens, (self.seed, step), self.samples)
            except FloatingPointError as error:
                raise FloatingPointError(f"{step_name(step)}, generation: {error}") from None
        rows = np.repeat(prompts, self.samples)
        asked = [data.preferences[i] for i in rows]
        return SampledAnswers(
            prompts=[data.prompts[i] for i in rows],
            preferences=asked,
            prompt_tokens=[data.tokens[i] for i in rows],
            plain_prompt_tokens=[data.plain_tokens[i] for i in rows],
            answers=made.tokens,
            texts=[self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in made.tokens],
            finished=made.finished,
            generator_logprobs=made.logprobs,
            groups=torch.arange(len(prompts)).repeat_interleave(self.samples),
            asked=asked_levels(asked, self.scorer.schema),
        )

    def send(self, answers: SampledAnswers, step: int) -> Callable[[], Rollout]:
        """Have answers scored; what is returned waits for the scores the first time. Every rank calls both.

        Raises (what is returned):
            FloatingPointError: a reward that is not finite.
            ServiceError: see `RewardService.start`.
        """
        with self.clock.phase("scoring"):
            started = self.scorer.start(answers.prompts, answers.texts, answers.preferences)

        def scored() -> Rollout:
            with self.clock.phase("scoring"):
                scores = started()
            return self._rollout(answers, scores, step)

        return cache(scored)

    def _rollout(self, answers: SampledAnswers, scores: Scores, step: int) -> Rollout:
        rewards = scores.rewards - self.cut_penalty * torch.from_numpy(~answers.finished)
        check_finite(rewards, answers.prompts, step_name(step))
        return Rollout(
            **vars(answers),
            rewards=rewards,
            parts=scores.parts,
            obtained=scores.obtained,
            probabilities=scores.probabilities,
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
