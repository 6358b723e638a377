"""Running statistics of Eq. 11 against numpy loops; invariance to order, split and ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.functional.statistics import (
    Moments,
    batch_moments,
    check_floor,
    ema_update,
    empty_statistics,
    exact_update,
    mean_std,
)

LEVELS = (3, 2)
HEAD_OF_CLASS = (0, 0, 0, 1, 1)


def random_rows(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(rows, sum(LEVELS), generator=generator)
    return probabilities, torch.rand(rows, len(LEVELS), generator=generator) < 0.6


def columns(probabilities, mask):
    """Per class the counted values, by a loop."""
    values = [[] for _ in HEAD_OF_CLASS]
    for row in range(len(probabilities)):
        for c, head in enumerate(HEAD_OF_CLASS):
            if mask[row, head]:
                values[c].append(float(probabilities[row, c]))
    return values


def test_moments_by_hand():
    probabilities = torch.tensor([[0.2, 0.3, 0.5, 0.9, 0.1], [0.4, 0.4, 0.2, 0.5, 0.5]])
    mask = torch.tensor([[True, False], [True, True]])
    n, s1, s2 = batch_moments(probabilities, mask, LEVELS)
    assert n.tolist() == [2, 2, 2, 1, 1]
    torch.testing.assert_close(s1, torch.tensor([0.6, 0.7, 0.7, 0.5, 0.5]).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(s2, torch.tensor([0.2, 0.25, 0.29, 0.25, 0.25]).double(), atol=1e-7, rtol=0)


def test_moments_ignore_what_masked_rows_hold_and_carry_no_graph():
    probabilities = torch.full((2, 5), float("nan"), requires_grad=True)
    moments = batch_moments(probabilities, torch.zeros(2, 2, dtype=torch.bool), LEVELS)
    for value in moments:
        assert value.tolist() == [0.0] * 5 and not value.requires_grad


def test_moments_of_ranks_add_up_one_of_them_empty():
    probabilities, mask = random_rows(0, 23)
    whole = batch_moments(probabilities, mask, LEVELS)
    ranks = [
        torch.stack(batch_moments(probabilities[r], mask[r], LEVELS)) for r in (slice(0, 9), slice(9, 9), slice(9, 23))
    ]
    reduced = Moments(*sum(ranks))
    for one, other in zip(whole, reduced, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_exact_equals_numpy():
    probabilities, mask = random_rows(1, 50)
    state = exact_update(empty_statistics(5), batch_moments(probabilities, mask, LEVELS))
    avg, std = mean_std(state)
    for c, values in enumerate(columns(probabilities, mask)):
        assert avg[c].item() == pytest.approx(np.mean(values), rel=1e-6)
        assert std[c].item() == pytest.approx(np.std(values), rel=1e-5)
        assert state.weight[c].item() == len(values)
    assert avg.dtype == std.dtype == torch.float32


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 60), max_size=5), reverse=st.booleans())
def test_exact_does_not_depend_on_split_or_order(seed, cuts, reverse):
    probabilities, mask = random_rows(seed, 60)
    edges = [0, *sorted(cuts), 60]
    batches = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    state = empty_statistics(5)
    for rows in reversed(batches) if reverse else batches:
        state = exact_update(state, batch_moments(probabilities[rows], mask[rows], LEVELS))
    whole = exact_update(empty_statistics(5), batch_moments(probabilities, mask, LEVELS))
    for got, expected in zip(state, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_exact_is_stable_where_p_hardly_moves():
    # p = 0.9 +- 1e-4: in fp32 the difference of raw moments would be rounding noise (1e-8 beside 0.81).
    values = 0.9 + 1e-4 * (torch.arange(1000) % 2 * 2 - 1)
    probabilities = values[:, None].double().expand(-1, 5)
    state = empty_statistics(5)
    for start in range(0, 1000, 50):
        state = exact_update(state, batch_moments(probabilities[start : start + 50], torch.ones(50, 2).bool(), LEVELS))
    torch.testing.assert_close(mean_std(state)[1], torch.full((5,), 1e-4), rtol=1e-3, atol=0)


def oracle_ema(batches, decay):
    """Weights (1 - decay) decay^age over batches, normalised; each batch's rows share its weight evenly."""
    result = []
    for c in range(5):
        seen = [columns(*batch)[c] for batch in batches]
        seen = [values for values in seen if values]
        weights = [(1 - decay) * decay ** (len(seen) - 1 - index) for index in range(len(seen))]
        first = sum(w * np.mean(v) for w, v in zip(weights, seen, strict=True)) / sum(weights)
        second = sum(w * np.mean(np.square(v)) for w, v in zip(weights, seen, strict=True)) / sum(weights)
        result.append((first, np.sqrt(second - first**2), sum(weights)))
    return result


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_equals_a_loop(decay):
    batches = [random_rows(seed, rows) for seed, rows in enumerate((8, 3, 12, 5, 9))]
    batches[2][1][:, 1] = False  # no row of head 1: its classes keep their state
    state = empty_statistics(5)
    for probabilities, mask in batches:
        state = ema_update(state, batch_moments(probabilities, mask, LEVELS), decay)
    avg, std = mean_std(state)
    for c, (mean, deviation, weight) in enumerate(oracle_ema(batches, decay)):
        assert avg[c].item() == pytest.approx(mean, rel=1e-5)
        assert std[c].item() == pytest.approx(deviation, rel=1e-4)
        assert state.weight[c].item() == pytest.approx(weight, rel=1e-5)


def test_ema_by_hand():
    # Batch means 0.2 then 0.6 with variances 0.01 and 0: weights 0.25 and 0.5, so shares 1/3 and 2/3.
    first = batch_moments(torch.tensor([[0.1], [0.3]]), torch.ones(2, 1).bool(), (1,))
    second = batch_moments(torch.tensor([[0.6]]), torch.ones(1, 1).bool(), (1,))
    state = ema_update(empty_statistics(1), first, 0.5)
    avg, std = mean_std(state)  # bias-corrected: one batch gives that batch's numbers
    assert avg.item() == pytest.approx(0.2) and std.item() == pytest.approx(0.1)
    avg, std = mean_std(ema_update(state, second, 0.5))
    assert avg.item() == pytest.approx(0.2 / 3 + 0.6 * 2 / 3)
    assert std.item() ** 2 == pytest.approx(0.01 / 3 + (1 / 3) * (2 / 3) * 0.4**2, rel=1e-5)


@pytest.mark.parametrize("update", [exact_update, lambda state, moments: ema_update(state, moments, 0.9)])
def test_a_class_without_rows_is_left_unchanged(update):
    probabilities, mask = random_rows(2, 10)
    state = update(empty_statistics(5), batch_moments(probabilities, mask, LEVELS))
    later, _ = random_rows(3, 4)
    only_first = torch.tensor([[True, False]]).expand(4, 2)
    after = update(state, batch_moments(later, only_first, LEVELS))
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[3:], new[3:]) and not torch.equal(old[:3], new[:3])
    untouched = update(state, batch_moments(later[:0], only_first[:0], LEVELS))
    for old, new in zip(state, untouched, strict=True):
        assert torch.equal(old, new)


def test_floor_names_every_bad_class():
    names = ["<helpfulness 1>", "<helpfulness 2>", "<harmless 1>"]
    check_floor(torch.tensor([0.1, 0.2, 0.001]), 0.001 - 1e-9, names)
    with pytest.raises(ValueError) as error:
        check_floor(torch.tensor([0.1, 1e-6, float("nan")]), 1e-3, names)
    assert "<helpfulness 2>" in str(error.value) and "<harmless 1>" in str(error.value)
    assert "<helpfulness 1>" not in str(error.value) and "0.001" in str(error.value)


def test_a_class_never_seen_fails_the_floor():
    _, std = mean_std(empty_statistics(2))
    with pytest.raises(ValueError, match="harmless 1"):
        check_floor(std, 1e-4, ["<harmless 1>", "<harmless 2>"])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="decay"):
        ema_update(empty_statistics(1), batch_moments(torch.rand(1, 1), torch.ones(1, 1).bool(), (1,)), 1.0)
    with pytest.raises(ValueError, match="probabilities: expected shape"):
        batch_moments(torch.rand(2, 4), torch.ones(2, 2).bool(), LEVELS)
    with pytest.raises(ValueError, match="row_mask: expected bool"):
        batch_moments(torch.rand(2, 5), torch.ones(2, 2), LEVELS)
    with pytest.raises(ValueError, match="floor"):
        check_floor(torch.ones(1), 0.0, ["<a 1>"])
    with pytest.raises(ValueError, match="one std per class"):
        check_floor(torch.ones(2), 0.1, ["<a 1>"])
