"""DPO's and MODPO's losses by hand, against loops with their gradients; CDPO's controlled score and its pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.functional.preference_losses import controlled_scores, dpo_loss, modpo_loss, preferred_answers

NAN = float("nan")
GARBAGE = [NAN, math.inf, -math.inf, 1e30]


def random_pairs(seed, count, pairs=9):
    """[P] mask and `count` [P] tensors with garbage wherever the mask is False."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(pairs, generator=generator) < 0.7
    valid[0], valid[1] = True, False
    garbage = torch.tensor(GARBAGE)[torch.randint(0, 4, (pairs,), generator=generator)]
    return valid, [torch.where(valid, torch.randn(pairs, generator=generator), garbage) for _ in range(count)]


def numbers(metrics):
    return {name: value.item() for name, value in metrics.items()}


def test_dpo_by_hand():
    chosen = torch.tensor([1.0, -2.0, 0.5, NAN], requires_grad=True)
    rejected = torch.tensor([-1.0, 2.0, 0.5, math.inf], requires_grad=True)
    valid = torch.tensor([True, True, True, False])
    loss, metrics = dpo_loss(chosen, rejected, valid, 0.5)
    # Margins 0.5 * 2 = 1, 0.5 * -4 = -2 and 0.
    terms = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), math.log(2)]
    assert loss.item() == pytest.approx(sum(terms), rel=1e-6)
    assert numbers(metrics) == pytest.approx({"count": 3, "accuracy": 1, "margin": 1 - 2 + 0}, rel=1e-6)
    loss.backward()  # d/d chosen = -beta * sigmoid(-margin)
    expected = [-0.5 / (1 + math.exp(1)), -0.5 / (1 + math.exp(-2)), -0.25, 0.0]
    torch.testing.assert_close(chosen.grad, torch.tensor(expected))
    torch.testing.assert_close(rejected.grad, -torch.tensor(expected))


def test_a_pair_that_is_believed_in_part_by_hand():
    """The loss is the cross-entropy of the belief, least where sigmoid(margin) is the belief."""
    beliefs = torch.tensor([0.75, 1.0, 0.75, NAN])
    chosen = torch.tensor([1.0, -2.0, 2 * math.log(3), NAN], requires_grad=True)  # margins 1, -1 and logit(0.75)
    rejected, valid = torch.tensor([-1.0, 0.0, 0.0, NAN]), torch.tensor([True, True, True, False])
    loss, metrics = dpo_loss(chosen, rejected, valid, 0.5, beliefs)
    nats = [0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1)), math.log(1 + math.exp(1))]
    nats.append(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert loss.item() == pytest.approx(sum(nats), rel=1e-6)
    assert numbers(metrics) == pytest.approx({"count": 3, "accuracy": 2, "margin": 1 - 1 + math.log(3)}, rel=1e-6)
    loss.backward()  # d/d chosen = beta * (sigmoid(margin) - belief)
    expected = [0.5 * (1 / (1 + math.exp(-1)) - 0.75), -0.5 / (1 + math.exp(-1)), 0.0, 0.0]
    torch.testing.assert_close(chosen.grad, torch.tensor(expected), atol=1e-7, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.01, 2.0), weight=st.floats(0.1, 1.0))
def test_modpo_equals_a_loop(seed, beta, weight):
    valid, (chosen, rejected, margins) = random_pairs(seed, 3)
    x, y = chosen.clone().requires_grad_(), chosen.double().requires_grad_()
    loss, metrics = modpo_loss(x, rejected, margins, valid, beta, weight)
    expected_loss, accuracy, total = 0.0, 0, 0.0
    for pair in valid.nonzero().flatten().tolist():
        margin = (beta * (y[pair] - rejected[pair].double()) - margins[pair].double()) / weight
        expected_loss = expected_loss + (1 + (-margin).exp()).log()
        accuracy += chosen[pair].item() > rejected[pair].item()
        total += margin.item()
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-4, atol=1e-4)
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(x.grad.double()[valid], y.grad[valid], rtol=1e-4, atol=1e-4)
    assert x.grad[~valid].eq(0).all()
    expected = {"count": int(valid.sum()), "accuracy": accuracy, "margin": total}
    assert numbers(metrics) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_modpo_by_hand():
    # beta 0.5, weight 0.5: margins (0.5 * 2 - 0.4) / 0.5 = 1.2 and (0.5 * -4 + 1) / 0.5 = -2.
    chosen = torch.tensor([1.0, -2.0], requires_grad=True)
    rejected, margins = torch.tensor([-1.0, 2.0]), torch.tensor([0.4, -1.0], requires_grad=True)
    loss, metrics = modpo_loss(chosen, rejected, margins, torch.ones(2).bool(), 0.5, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.2)) + math.log(1 + math.exp(2)), rel=1e-6)
    assert numbers(metrics) == pytest.approx({"count": 2, "accuracy": 1, "margin": 1.2 - 2.0}, rel=1e-6)
    loss.backward()  # d/d chosen = -beta / weight * sigmoid(-margin)
    torch.testing.assert_close(chosen.grad, -torch.tensor([1 / (1 + math.exp(1.2)), 1 / (1 + math.exp(-2))]))
    assert margins.grad is None


def test_modpo_moves_the_optimum_by_the_margin():
    """At the minimum over a Bradley-Terry label of probability q: beta * difference = weight * logit(q) + margin."""
    beta, weight, margin, q = 0.2, 0.4, 0.7, 0.8
    d = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([d], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        m, ones, zero = torch.full((1,), margin), torch.ones(1).bool(), torch.zeros(1)
        # the pair the other way round has the opposite margin
        total = q * modpo_loss(d, zero, m, ones, beta, weight)[0]
        total = total + (1 - q) * modpo_loss(zero, d, -m, ones, beta, weight)[0]
        total.backward()
        return total

    optimizer.step(closure)
    assert beta * d.item() == pytest.approx(weight * math.log(q / (1 - q)) + margin, rel=1e-3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.01, 2.0))
def test_dpo_is_modpo_without_other_objectives(seed, beta):
    valid, (chosen, rejected) = random_pairs(seed, 2)
    loss, metrics = dpo_loss(chosen, rejected, valid, beta)
    same, theirs = modpo_loss(chosen, rejected, torch.zeros(len(valid)), valid, beta, 1.0)
    assert loss.equal(same) and numbers(metrics) == numbers(theirs)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 9))
def test_losses_add_up_over_any_split(seed, cut):
    valid, columns = random_pairs(seed, 3)
    whole, parts = [], []
    for rows in (slice(None), slice(cut), slice(cut, None)):
        loss, metrics = modpo_loss(*(c[rows] for c in columns), valid[rows], 0.5, 0.3)
        (whole if rows == slice(None) else parts).append([loss.item(), *numbers(metrics).values()])
    assert whole[0] == pytest.approx([a + b for a, b in zip(*parts, strict=True)], rel=1e-5, abs=1e-4)


def test_nothing_but_filler_gives_zeros_and_a_zero_gradient():
    x = torch.tensor(GARBAGE).requires_grad_()
    loss, metrics = modpo_loss(x, x.detach(), x.detach(), torch.zeros(4).bool(), 0.1, 0.5)
    loss.backward()
    assert loss.item() == 0.0 and set(numbers(metrics).values()) == {0.0} and x.grad.eq(0).all()


def test_bf16_logratios_give_an_fp32_loss():
    x = torch.rand(3, dtype=torch.bfloat16, requires_grad=True)
    loss, metrics = dpo_loss(x, x.detach(), torch.ones(3).bool(), 0.1)
    assert loss.dtype == torch.float32 and loss.shape == () and loss.requires_grad
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in metrics.values())


def test_dpo_is_stable_for_huge_margins():
    chosen = torch.tensor([-5e3, 5e3], requires_grad=True)
    loss, _ = dpo_loss(chosen, torch.zeros(2), torch.ones(2).bool(), 1.0)
    loss.backward()
    assert loss.item() == 5e3 and chosen.grad.tolist() == [-1.0, 0.0]


def test_controlled_score_by_hand():
    # Asked for 2 and, in the third dimension, for 0; the second is left open.
    ratings = torch.tensor([[2.0, 5.0, 1.0], [4.0, 1.0, 0.0]])
    asked = torch.tensor([[2.0, NAN, 0.0], [2.0, NAN, 0.0]])
    scores = controlled_scores(ratings, asked, torch.tensor([1.0, 1.0, 3.0]))
    assert scores.tolist() == [0.0 + 5.0 - 3.0, -2.0 + 1.0 + 0.0]  # an exact match is 0: nothing in its place


def test_an_exact_match_beats_a_higher_rating():
    """A distance of 0 must not fall back to the plain rating (which would prefer 5 to the wanted 2)."""
    one = torch.ones(1)
    exact, high = torch.tensor([[2.0]]), torch.tensor([[5.0]])
    better, valid = preferred_answers(exact, high, torch.tensor([[2.0]]), one)
    assert better.item() and valid.item()
    better, valid = preferred_answers(exact, high, torch.tensor([[NAN]]), one)
    assert not better.item() and valid.item()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_pairs_equal_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (12, 3)
    first, second, asked = (torch.randint(1, 4, shape, generator=generator).float() for _ in range(3))
    for x, share in ((first, 0.2), (second, 0.2), (asked, 0.5)):
        x[torch.rand(shape, generator=generator) < share] = NAN
    weights = torch.tensor([1.0, 0.5, 2.0])
    better, valid = preferred_answers(first, second, asked, weights)
    for pair in range(shape[0]):
        scores, usable = [0.0, 0.0], True
        for i in range(shape[1]):
            a, b, c = (x[pair, i].item() for x in (first, second, asked))
            if math.isnan(a) or math.isnan(b):
                usable &= math.isnan(c)
                continue
            for side, rating in enumerate((a, b)):
                gain = rating if math.isnan(c) else -abs(rating - c)
                scores[side] += weights[i].item() * gain
        assert valid[pair].item() == (usable and scores[0] != scores[1])
        if valid[pair]:
            assert better[pair].item() == (scores[0] > scores[1])


X, ONES = torch.zeros(3), torch.ones(3).bool()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(X, X[:2], ONES, 0.1), r"rejected_logratios: expected shape \[3\], got \[2\]"),
        (lambda: dpo_loss(X, X, X, 0.1), r"valid: expected bool \[P\], got torch.float32"),
        (lambda: dpo_loss(X[None], X[None], ONES[None], 0.1), r"valid: expected bool \[P\], got torch.bool \[1, 3\]"),
        (lambda: dpo_loss(X, X, ONES, NAN), "beta: expected a number above 0, got nan"),
        (lambda: modpo_loss(X, X, X[:1], ONES, 0.1, 1.0), r"margins: expected shape \[3\], got \[1\]"),
        (lambda: modpo_loss(X, X, X, ONES, 0.1, 0.0), "weight: expected a number above 0, got 0.0"),
        (lambda: controlled_scores(X, X[:2], X), r"got \[\[3\], \[2\], \[3\]\]"),
        (lambda: controlled_scores(X * NAN, X, X), "ratings: expected a number for every dimension, got NaN"),
        (lambda: controlled_scores(X, X, X - 1), "weights: expected values of 0 or above"),
        (lambda: preferred_answers(X[None], X[None, :2], X[None], X), r"second: expected the shape of first \[1, 3\]"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
