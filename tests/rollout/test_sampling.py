import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.rollout.sampling import BLOCK, sample_tokens, uniform_draws

PROBABILITIES = torch.tensor([[0.1, 0.4, 0.3, 0.2]])


def sample(draw, temperature=1.0, top_p=1.0, top_k=0, logits=None):
    logits = PROBABILITIES.log() if logits is None else logits
    tokens, logprobs = sample_tokens(logits, torch.tensor([draw], dtype=torch.float64), temperature, top_p, top_k)
    return int(tokens[0]), float(logprobs[0].exp())


@pytest.mark.parametrize(
    ("draw", "token"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.999, 3)]
)
def test_inverse_of_the_cumulative_distribution(draw, token):
    assert sample(draw) == (token, pytest.approx(float(PROBABILITIES[0, token]), rel=1e-5))


def test_temperature_zero_takes_the_most_likely_token():
    assert sample(0.99, temperature=0.0) == (1, pytest.approx(0.4))


def test_temperature_sharpens_and_logprobs_follow_it():
    sharp = PROBABILITIES[0] ** 2 / (PROBABILITIES[0] ** 2).sum()  # temperature 0.5
    token, probability = sample(0.5, temperature=0.5)
    assert token == 1 and probability == pytest.approx(float(sharp[1]), rel=1e-5)


def test_top_k_and_top_p_drop_the_tail_and_keep_the_whole_softmaxs_logprobs():
    for draw in np.linspace(0, 0.999, 50):
        assert sample(draw, top_k=2)[0] in (1, 2)
        assert sample(draw, top_p=0.5)[0] in (1, 2)  # 0.4 alone is under 0.5
        assert sample(draw, top_p=0.3)[0] == 1
        assert sample(draw, top_k=1)[0] == 1
    assert sample(0.999, top_k=2) == (2, pytest.approx(0.3))
    assert sample(0.999, top_k=9)[0] == 3


def test_frequencies_are_the_probabilities():
    draws = torch.from_numpy(np.random.default_rng(0).random(20000))
    tokens, _ = sample_tokens(PROBABILITIES.log().expand(20000, 4), draws, 1.0, 1.0, 0)
    shares = torch.bincount(tokens, minlength=4) / 20000
    assert torch.allclose(shares, PROBABILITIES[0], atol=0.015)  # 4 standard deviations of 0.0035


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 3 * BLOCK + 5), rows=st.integers(1, 5), seed=st.integers(0, 10**6),
    temperature=st.sampled_from([1.0, 0.5, 2.0]), kept=st.sampled_from([(1.0, 0), (0.7, 0), (1.0, 3), (0.5, 70)]),
)  # fmt: skip
def test_blocks_find_the_token_that_a_walk_over_all_finds(size, rows, seed, temperature, kept):
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(4 * random.standard_normal((rows, size))).float()
    logits[torch.from_numpy(random.random((rows, size))) < 0.2] = -torch.inf
    logits[:, random.integers(size)] = 0.0  # some token is possible
    draws, (top_p, top_k) = torch.from_numpy(random.random(rows)), kept
    tokens, logprobs = sample_tokens(logits, draws, temperature, top_p, top_k)
    p = (logits.double() / temperature).softmax(-1)
    for row in range(rows):
        order = sorted(range(size), key=lambda token: -p[row, token])
        before = np.concatenate([[0], np.cumsum(p[row][order])])
        allowed = {t for place, t in enumerate(order) if before[place] < top_p and (not top_k or place < top_k)}
        total, walked = sum(float(p[row, t]) for t in allowed), 0.0
        chosen = int(tokens[row])
        for token in range(chosen):
            walked += float(p[row, token]) if token in allowed else 0.0
        assert chosen in allowed and p[row, chosen] > 0
        target = float(draws[row]) * total
        assert walked - 1e-6 <= target <= walked + float(p[row, chosen]) + 1e-6
        assert float(logprobs[row]) == pytest.approx(float(p[row, chosen].log()), abs=1e-5)


def test_a_token_of_probability_zero_is_never_taken():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert sample(1 - 1e-16, logits=logits)[0] == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 0.9, 3), (0.0, 1.0, 0)])
def test_logits_that_make_no_distribution_are_told_by_the_logprob(bad, temperature, top_p, top_k):
    logits = torch.zeros(4, BLOCK + 3)
    logits[1] = bad
    logits[2, 5] = bad
    draws = torch.full((4,), 0.999, dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, draws, temperature, top_p, top_k)
    assert logprobs.isnan().tolist() == [False, True, True, False] and tokens[1:3].tolist() == [0, 0]
    nothing = torch.full((1, 4), -torch.inf)
    assert sample_tokens(nothing, draws[:1], temperature, top_p, top_k)[1].isnan().all()


def test_draws_depend_on_the_rows_own_seed_alone():
    together = uniform_draws([(1, 2, 3), (1, 2, 4), (1, 3, 3)], 8)
    alone = uniform_draws([(1, 2, 4)], 8)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(uniform_draws([(1, 2, 4)], 20)[:, :8], alone)
    assert len({tuple(row.tolist()) for row in together}) == 3 and bool(((together >= 0) & (together < 1)).all())
