import numpy as np
import pytest
import torch

from nemo_moslim.rollout.sampling import sample_tokens, uniform_draws

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


def test_a_token_of_probability_zero_is_never_taken():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert sample(1 - 1e-16, logits=logits)[0] == 1


def test_draws_depend_on_the_rows_own_seed_alone():
    together = uniform_draws([(1, 2, 3), (1, 2, 4), (1, 3, 3)], 8)
    alone = uniform_draws([(1, 2, 4)], 8)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(uniform_draws([(1, 2, 4)], 20)[:, :8], alone)
    assert len({tuple(row.tolist()) for row in together}) == 3 and bool(((together >= 0) & (together < 1)).all())
