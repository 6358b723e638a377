"""Rewards per token, GAE, whitening, leave-one-out, pairs, KL controller: by hand, against loops, with filler rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.functional.advantages import (
    adapt_kl_coef,
    generalized_advantages,
    leave_one_out,
    masked_moments,
    ranked_rows,
    token_kl,
    token_rewards,
    whiten,
)

NAN = float("nan")
# Three answers of 3, 1 and 0 tokens.
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False, False, False, False]])


def length_mask(lengths, positions):
    return torch.arange(positions) < torch.tensor(lengths)[:, None]


def random_rows(seed, rows=5, positions=6):
    """Mask with an empty and a full row, and three [B, T] tensors with NaN wherever the mask is False."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, positions + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = 0, positions
    mask = length_mask(lengths.tolist(), positions)
    return mask, *(torch.randn(rows, positions, generator=generator).masked_fill(~mask, NAN) for _ in range(3))


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), **tolerance)


def test_kl_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5, NAN], [-3.0, NAN, math.inf, 0.0], [NAN] * 4])
    ref_logprobs = torch.tensor([[-1.5, -1.0, -0.5, 7.0], [-3.25, 0.0, math.inf, NAN], [NAN] * 4])
    kl = token_kl(logprobs, ref_logprobs, MASK)
    close(kl, [[-1.0 + 1.5, -2.0 + 1.0, 0.0, 0.0], [-3.0 + 3.25, 0.0, 0.0, 0.0], [0.0] * 4])


def test_k1_averages_to_the_kl_divergence_over_the_policy():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    k1 = token_kl(policy.log()[:, None], reference.log()[:, None], torch.ones(3, 1).bool())[:, 0]
    expected = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    assert (policy * k1).sum().item() == pytest.approx(expected, rel=1e-5)
    assert k1.min().item() < 0


def test_token_rewards_by_hand():
    kl = torch.tensor([[0.5, -1.0, 2.0, NAN], [0.25, NAN, NAN, NAN], [NAN] * 4])
    rewards = torch.tensor([3.0, -1.0, NAN])  # the last answer is filler: its reward counts nowhere
    got = token_rewards(rewards, kl, MASK, 0.1)
    close(got, [[-0.1 * 0.5, 0.1 * 1.0, 3.0 - 0.1 * 2.0, 0.0], [-1.0 - 0.1 * 0.25, 0.0, 0.0, 0.0], [0.0] * 4])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), kl_coef=st.floats(0.0, 2.0))
def test_token_rewards_of_a_row_sum_to_its_penalised_reward(seed, kl_coef):
    mask, logprobs, ref_logprobs, other = random_rows(seed)
    kl, rewards = token_kl(logprobs, ref_logprobs, mask), other.nan_to_num().sum(-1) + 1.0
    got = token_rewards(rewards, kl, mask, kl_coef)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        expected = float(rewards[row]) - kl_coef * sum(kl[row, :n].tolist()) if n else 0.0
        assert got[row].sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        for t in range(mask.shape[1]):
            expected = -kl_coef * float(kl[row, t]) if t < n else 0.0
            if t == n - 1:
                expected += float(rewards[row])
            assert got[row, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5. Row 0: deltas 1 + 0.5*4 - 2 = 1, 0 + 0.5*6 - 4 = -1, 3 + 0 - 6 = -3.
    rewards = torch.tensor([[1.0, 0.0, 3.0, NAN], [5.0, NAN, NAN, NAN], [NAN] * 4])
    values = torch.tensor([[2.0, 4.0, 6.0, NAN], [1.0, 100.0, NAN, NAN], [NAN] * 4])
    advantages, returns = generalized_advantages(rewards, values, MASK, gamma=0.5, gae_lambda=0.5)
    a2 = -3.0
    a1 = -1.0 + 0.25 * a2
    a0 = 1.0 + 0.25 * a1
    close(advantages, [[a0, a1, a2, 0.0], [5.0 - 1.0, 0.0, 0.0, 0.0], [0.0] * 4])
    close(returns, [[a0 + 2.0, a1 + 4.0, a2 + 6.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 1.0), gae_lambda=st.floats(0.0, 1.0))
def test_gae_equals_the_sum_of_discounted_deltas(seed, gamma, gae_lambda):
    mask, rewards, values, _ = random_rows(seed)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        r, v = rewards[row, :n].tolist(), values[row, :n].tolist() + [0.0]
        for t in range(n):
            expected = sum((gamma * gae_lambda) ** (s - t) * (r[s] + gamma * v[s + 1] - v[s]) for s in range(t, n))
            assert advantages[row, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert returns[row, t].item() == pytest.approx(expected + v[t], rel=1e-4, abs=1e-4)
        assert advantages[row, n:].tolist() == returns[row, n:].tolist() == [0.0] * (mask.shape[1] - n)


def test_gae_limits():
    mask, rewards, values, _ = random_rows(3)
    _, returns = generalized_advantages(rewards, values, mask, 1.0, 1.0)  # Monte Carlo: values cancel
    clean = rewards.nan_to_num()
    close(returns, clean.flip(-1).cumsum(-1).flip(-1) * mask, rtol=1e-5, atol=1e-5)
    advantages, _ = generalized_advantages(rewards, values, mask, 0.0, 1.0)  # nothing but the next reward
    close(advantages, clean - values.nan_to_num())


def test_gae_carries_no_graph_and_leaves_its_inputs():
    mask, rewards, values, _ = random_rows(4)
    kept, values = values.clone(), values.requires_grad_()
    results = generalized_advantages(rewards, values, mask, 0.9, 0.9)
    assert not any(result.requires_grad for result in results)
    assert torch.equal(values.detach().nan_to_num(nan=9.0), kept.nan_to_num(nan=9.0))


def test_moments_and_whitening_by_hand():
    # Values 1, 2, 3 and 6: mean 3, squares 50, variance 50/4 - 9 = 3.5.
    x = torch.tensor([[1.0, 2.0, 3.0, NAN], [6.0, math.inf, NAN, NAN], [NAN] * 4], requires_grad=True)
    moments = masked_moments(x, MASK)
    assert moments.dtype == torch.float64 and moments.tolist() == [4.0, 12.0, 50.0] and not moments.requires_grad
    s = math.sqrt(3.5)
    close(whiten(x, MASK, moments), [[-2 / s, -1 / s, 0.0, 0.0], [3 / s, 0.0, 0.0, 0.0], [0.0] * 4])
    s = math.sqrt(3.5 + 0.5)
    close(whiten(x, MASK, moments, eps=0.5), [[-2 / s, -1 / s, 0.0, 0.0], [3 / s, 0.0, 0.0, 0.0], [0.0] * 4])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 5), shift=st.floats(-100, 100))
def test_whitening_does_not_depend_on_the_split(seed, cut, shift):
    mask, x, _, _ = random_rows(seed)
    x = x + shift
    halves = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    moments = sum(masked_moments(*half) for half in halves)
    close(moments, masked_moments(x, mask), rtol=1e-14, atol=0)
    whole = whiten(x, mask, masked_moments(x, mask))
    close(torch.cat([whiten(*half, moments) for half in halves]), whole, rtol=1e-5, atol=1e-6)
    valid = whole[mask].double()
    assert valid.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert valid.std(correction=0).item() == pytest.approx(1.0, rel=1e-4)


def test_whitening_equal_values_and_nothing():
    x = torch.full((2, 3), 0.1)
    mask = torch.ones(2, 3).bool()
    assert whiten(x, mask, masked_moments(x, mask)).abs().max().item() < 1e-6
    none = torch.zeros(2, 3).bool()
    assert whiten(x * NAN, none, masked_moments(x * NAN, none)).tolist() == [[0.0] * 3] * 2


def test_leave_one_out_by_hand():
    # Group 7: rewards 1, 2, 6. Group -2: rewards 5, 3.
    rewards = torch.tensor([1.0, 5.0, 2.0, 3.0, 6.0])
    groups = torch.tensor([7, -2, 7, -2, 7])
    close(leave_one_out(rewards, groups), [1 - (2 + 6) / 2, 5 - 3, 2 - (1 + 6) / 2, 3 - 5, 6 - (1 + 2) / 2])


GROUPS = st.lists(st.tuples(st.sampled_from([-5, 0, 3, 900]), st.integers(-3, 3)), min_size=1, max_size=14)


@settings(deadline=None, max_examples=60)
@given(rows=GROUPS, seed=st.integers(0, 10_000))
def test_leave_one_out_equals_a_loop_in_any_order(rows, seed):
    rows = rows + rows  # every group has two rows or more
    groups = torch.tensor([group for group, _ in rows])
    rewards = torch.tensor([reward / 3 for _, reward in rows])
    got = leave_one_out(rewards, groups)
    for i in range(len(rows)):
        others = [rewards[j].item() for j in range(len(rows)) if j != i and groups[j] == groups[i]]
        assert got[i].item() == pytest.approx(rewards[i].item() - sum(others) / len(others), abs=1e-5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    close(leave_one_out(rewards[order], groups[order]), got[order], rtol=1e-6, atol=1e-6)


def test_leave_one_out_keeps_small_differences_of_large_rewards():
    close(leave_one_out(torch.tensor([4096.0, 4096.5, 4096.25]), torch.zeros(3).long()), [-0.375, 0.375, 0.0])


def test_leave_one_out_names_a_group_of_one():
    with pytest.raises(ValueError, match="at least 2 rows per group, got 1 in group 42"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 42, 1]))


def test_ranked_rows_by_hand():
    #                         0    1     2    3    4     5
    rewards = torch.tensor([2.0, 9.0, -1.0, 2.0, 4.0, 9.0])
    groups = torch.tensor([5, 1, 5, 1, 5, 1])
    every = torch.ones(6).bool()
    assert ranked_rows(rewards, groups, every).tolist() == [[1, 5, 3], [4, 0, 2]]  # the first of equal rewards first
    usable = torch.tensor([True, False, True, True, False, True])
    rows = ranked_rows(rewards.masked_fill(~usable, NAN), groups, usable)
    assert rows.tolist() == [[5, 3, 1], [0, 2, 4]] and rows.dtype == torch.int64


@settings(deadline=None, max_examples=60)
@given(
    groups=st.permutations([0, 0, 0, 1, 1, 1, 7, 7, 7]),
    rewards=st.lists(st.integers(-2, 2), min_size=9, max_size=9),
    usable=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_ranked_rows_equal_pythons_sort(groups, rewards, usable):
    found = ranked_rows(torch.tensor(rewards).float(), torch.tensor(groups), torch.tensor(usable)).tolist()
    for rows, group in zip(found, (0, 1, 7), strict=True):
        members = [i for i in range(9) if groups[i] == group]
        assert rows == sorted(members, key=lambda i: (not usable[i], -rewards[i] if usable[i] else 0, i))


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2), (7.2, 0.2), (4.8, -0.2)],
)
def test_kl_controller_by_hand(kl, error):
    got = adapt_kl_coef(0.05, kl, target=6.0, horizon=1000, rows=250)
    assert got == pytest.approx(0.05 * (1 + error * 0.25), rel=1e-9)


def test_kl_controller_settles_at_the_target():
    kl_coef = 1.0
    for _ in range(500):
        kl_coef = adapt_kl_coef(kl_coef, 3.0 / kl_coef, target=6.0, horizon=100, rows=50)  # more penalty, less KL
    assert 3.0 / kl_coef == pytest.approx(6.0, rel=1e-3)


def test_dtypes_and_empty_batches():
    mask = torch.ones(2, 3).bool()
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    results = [
        token_kl(x, x, mask),
        token_rewards(x[:, 0], x, mask, 0.1),
        *generalized_advantages(x, x, mask, 1.0, 1.0),
        whiten(x, mask, masked_moments(x, mask)),
        leave_one_out(x[:, 0], torch.zeros(2).long()),
    ]
    assert {result.dtype for result in results} == {torch.float32}
    for shape in ((0, 3), (2, 0)):
        mask, x = torch.zeros(shape).bool(), torch.zeros(shape)
        assert token_rewards(x.new_zeros(shape[0]), token_kl(x, x, mask), mask, 0.1).shape == shape
        assert [result.shape for result in generalized_advantages(x, x, mask, 1.0, 1.0)] == [shape, shape]
        assert masked_moments(x, mask).tolist() == [0.0, 0.0, 0.0]
    nobody = torch.zeros(0), torch.zeros(0).long()
    assert leave_one_out(*nobody).shape == (0,)
    assert ranked_rows(*nobody, torch.zeros(0).bool()).shape == (0, 0)


X = torch.zeros(2, 3)
ONES = torch.ones(2, 3).bool()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_kl(X, X[:, :2], ONES), r"ref_logprobs: expected the mask's shape \[2, 3\], got \[2, 2\]"),
        (lambda: token_kl(X, X, ONES.float()), r"mask: expected bool \[B, T\], got torch.float32 \[2, 3\]"),
        (lambda: token_kl(X, X, ONES[0]), r"mask: expected bool \[B, T\]"),
        (lambda: token_kl(X, X, torch.tensor([[True] * 3, [True, False, True]])), r"got a gap in rows \[1\]"),
        (lambda: token_kl(X, X, torch.tensor([[False, True, True], [True] * 3])), r"got a gap in rows \[0\]"),
        (lambda: token_rewards(X, X, ONES, 0.1), r"rewards: expected shape \[2\], got \[2, 3\]"),
        (lambda: token_rewards(X[:, 0], X, ONES, -0.1), "kl_coef: expected a number at or above 0, got -0.1"),
        (lambda: token_rewards(X[:, 0], X, ONES, NAN), "kl_coef: .* got nan"),
        (lambda: generalized_advantages(X, X[:1], ONES, 1.0, 1.0), "values: expected the mask's shape"),
        (lambda: generalized_advantages(X, X, ONES, 1.1, 1.0), r"gamma: expected a number in \[0, 1\], got 1.1"),
        (lambda: generalized_advantages(X, X, ONES, 1.0, -0.5), "gae_lambda: .* got -0.5"),
        (lambda: masked_moments(X[0], ONES), "x: expected the mask's shape"),
        (lambda: whiten(X, ONES, torch.zeros(2)), r"moments: expected shape \[3\]"),
        (lambda: leave_one_out(X, ONES.long()), r"rewards: expected shape \[B\], got \[2, 3\]"),
        (lambda: leave_one_out(X[0], torch.zeros(2).long()), r"groups: expected int64 \[3\], got torch.int64 \[2\]"),
        (lambda: ranked_rows(X[0], torch.zeros(3), X[0].bool()), "groups: expected int64 .* got torch.float32"),
        (lambda: ranked_rows(torch.tensor([0.0, NAN]), torch.zeros(2).long(), ONES[:, 0]), r"NaN in rows \[1\]"),
        (lambda: ranked_rows(X[0], torch.tensor([0, 0, 1]), X[0].bool()), r"groups of one size, got sizes \[1, 2\]"),
        (lambda: adapt_kl_coef(0.1, NAN, 6.0, 100, 1), "kl: expected a finite number, got nan"),
        (lambda: adapt_kl_coef(0.1, 1.0, 0.0, 100, 1), "kl target: expected a number above 0, got 0.0"),
        (lambda: adapt_kl_coef(0.1, 1.0, 6.0, -1, 1), "kl horizon: expected a number above 0"),
        (lambda: adapt_kl_coef(0.1, 1.0, 6.0, 100, 500), "rows: expected 0 to below 500"),
        (lambda: adapt_kl_coef(0.1, 1.0, 6.0, 100, -1), "rows: .* got -1"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
