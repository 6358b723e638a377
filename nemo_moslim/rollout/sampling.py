"""From next-token logits to a sampled token. Draws are uniform numbers given from outside, one per token.

Shapes: B rows, V vocabulary entries.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def uniform_draws(seeds: Sequence[tuple[int, ...]], count: int) -> Tensor:
    """One stream of uniform numbers in [0, 1) per row, fp64 [B, count].

    A row's stream depends on its own seed alone, so its answer does not depend on the rows beside it, on the size of
    the batch, or on the number of ranks.
    """
    draws = np.stack([np.random.Generator(np.random.Philox(np.random.SeedSequence(s))).random(count) for s in seeds])
    return torch.from_numpy(draws)


def sample_tokens(logits: Tensor, draws: Tensor, temperature: float, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Sample by the inverse of the cumulative distribution.

    Args:
        logits: [B, V], over entries that exist.
        draws: fp64 [B] in [0, 1).
        temperature: 0 takes the most likely token.
        top_p: keeps the most likely tokens whose probabilities sum to it; 1 keeps all.
        top_k: keeps that many most likely tokens; 0 keeps all.

    Returns:
        tokens int64 [B]; logprobs fp32 [B] under the softmax at this temperature before top_p and top_k (1 in place of
        a temperature of 0), which is what the policy's update compares with.
    """
    scaled = logits.float() / (temperature or 1.0)
    logprobs = scaled.log_softmax(-1)
    if temperature == 0:
        tokens = scaled.argmax(-1)
    else:
        kept = _truncated(logprobs.double().exp(), top_p, top_k)
        cumulative = kept.cumsum(-1)
        threshold = draws.to(cumulative.device) * cumulative[:, -1]
        tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
        last = kept.shape[1] - 1 - (kept.flip(-1) > 0).int().argmax(-1)
        tokens = torch.minimum(tokens, last)  # rounding must not reach a token of probability 0
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _truncated(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities with the tail set to 0, fp64 [B, V]; not normalised."""
    size = probabilities.shape[1]
    if top_p >= 1.0 and not 0 < top_k < size:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_p < 1.0:
        keep = ordered.cumsum(-1) - ordered < top_p  # the most likely one is always kept
    if 0 < top_k < size:
        keep[:, top_k:] = False
    return torch.zeros_like(probabilities).scatter(1, order, ordered * keep)
