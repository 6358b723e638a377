"""A rollout of four answers, one of which the length limit cut, for tests of what algorithms learn."""

import numpy as np
import torch

from nemo_moslim.batches import Rollout

FINISHED = np.array([True, False, True, True])
LENGTHS = (2, 3, 1, 2)


def rollout(rewards, finished=FINISHED, lengths=LENGTHS):
    """Two answers to each prompt; the generator gave each token of row r the log-probability -1 - r / 10."""
    rows = len(rewards)
    return Rollout(
        prompts=["p"] * rows,
        preferences=[{}] * rows,
        prompt_tokens=[np.array([9], dtype=np.int32)] * rows,
        plain_prompt_tokens=[np.array([9], dtype=np.int32)] * rows,
        answers=[np.full(length, 5, dtype=np.int32) for length in lengths],
        texts=["a"] * rows,
        finished=finished,
        generator_logprobs=[np.full(n, -1 - r / 10, dtype=np.float32) for r, n in enumerate(lengths)],
        groups=torch.arange(rows) // 2,
        rewards=torch.tensor(rewards),
        parts=torch.zeros(rows, 1),
        obtained=torch.ones(rows, 1),
        asked=torch.zeros(rows, 1),
        probabilities=torch.zeros(rows, 2),
        cut_for_scoring=0,
    )
