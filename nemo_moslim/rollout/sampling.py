"""From next-token logits to a sampled token. Draws are uniform numbers given from outside, one per token.

Shapes: B rows, V vocabulary entries.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # tokens whose probabilities are summed before they are looked at one by one


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
        a temperature of 0), which is what the policy's update compares with. Logits that make no distribution (a NaN,
        an infinite one, all -inf) give token 0 with a log-probability of NaN.
    """
    scaled = logits.float()
    if temperature not in (0.0, 1.0):
        scaled = scaled / temperature
    size = logits.shape[1]
    weights = scaled.new_zeros(len(scaled), -(-size // BLOCK) * BLOCK)  # of each token; 0 behind the last
    own = weights[:, :size]
    peak = scaled.amax(-1, keepdim=True)
    torch.sub(scaled, peak, out=own).exp_()
    sums = weights.view(len(weights), -1, BLOCK).sum(-1, dtype=torch.float64)
    normalizer = peak[:, 0] + sums.sum(-1).log().float()
    if temperature == 0:
        tokens = scaled.argmax(-1)
    else:
        if top_p < 1.0 or 0 < top_k < size:
            own.copy_(_truncated(own.double() / sums.sum(-1, keepdim=True), top_p, top_k))
            sums = weights.view(len(weights), -1, BLOCK).sum(-1, dtype=torch.float64)
        tokens = _inverse_cumulative(weights, sums, draws.to(sums.device))
    tokens = tokens.where(normalizer.isfinite(), 0)  # a search among NaNs can end behind the last token
    return tokens, scaled.gather(1, tokens[:, None])[:, 0] - normalizer


def _inverse_cumulative(weights: Tensor, sums: Tensor, draws: Tensor) -> Tensor:
    """The first token whose cumulative weight is above the draw's share of the whole: int64 [B].

    The sums of blocks lead to the block, so that sums over the whole vocabulary are taken block by block alone.

    Args:
        weights: [B, blocks * BLOCK].
        sums: fp64 [B, blocks], of `weights`.
        draws: fp64 [B] in [0, 1).
    """
    threshold = draws * sums.sum(-1)
    block, before = _first_above(sums, threshold)
    inside = weights.view(len(weights), -1, BLOCK)[torch.arange(len(weights), device=weights.device), block].double()
    place, _ = _first_above(inside, threshold - before)
    return block * BLOCK + place


def _first_above(values: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the first index whose cumulative sum is above the threshold, and the sum before it.

    Never one with the value 0, which rounding could reach at the end: then the last with a value above 0.
    """
    cumulative = values.cumsum(-1)
    found = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    last = values.shape[1] - 1 - (values.flip(-1) > 0).int().argmax(-1)
    index = torch.minimum(found, last)[:, None]
    return index[:, 0], (cumulative.gather(1, index) - values.gather(1, index))[:, 0]


def _truncated(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities with the tail set to 0, fp64 [B, V]; not normalised."""
    size = probabilities.shape[1]
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_p < 1.0:
        keep = ordered.cumsum(-1) - ordered < top_p  # the most likely one is always kept
    if 0 < top_k < size:
        keep[:, top_k:] = False
    return torch.zeros_like(probabilities).scatter(1, order, ordered * keep)
