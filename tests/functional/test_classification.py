"""Losses of Eq. 6-10: hand-computed values, naive-loop oracles for values and gradients, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.functional.classification import (
    LOSSES,
    aligned_loss,
    check_levels_for_loss,
    encode_labels,
    joint_loss,
    per_head_loss,
    probabilities,
)

NAMES = ("helpfulness", "honesty", "harmless")
LEVELS = (5, 3, 2)
OFFSETS = (0, 5, 8)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def head_of(logits_row, head):
    return [logits_row[OFFSETS[head] + j] for j in range(LEVELS[head])]


def log_sum_exp(terms):
    return torch.log(sum(torch.exp(term) for term in terms))


def oracle_per_head(logits, targets, mask, weights, smoothing):
    total, count = scalar(0.0), 0
    for row in range(len(logits)):
        for head, k in enumerate(LEVELS):
            if not mask[row, head]:
                continue
            count += 1
            z = head_of(logits[row], head)
            for j in range(k):
                c = OFFSETS[head] + j
                target = (1 - smoothing) * float(targets[row, c]) + smoothing / k
                total = total - float(weights[c]) * target * (z[j] - log_sum_exp(z))
    return total, count


def oracle_joint(logits, targets, mask, weights, smoothing):
    total, count, classes = scalar(0.0), 0, sum(LEVELS)
    for row in range(len(logits)):
        labelled = [head for head in range(len(LEVELS)) if mask[row, head]]
        if not labelled:
            continue
        count += 1
        normaliser = log_sum_exp([logits[row, c] for c in range(classes)])
        for head, k in enumerate(LEVELS):
            for c in range(OFFSETS[head], OFFSETS[head] + k):
                share = float(targets[row, c]) / len(labelled) if head in labelled else 0.0
                target = (1 - smoothing) * share + smoothing / classes
                total = total - float(weights[c]) * target * (logits[row, c] - normaliser)
    return total, count


def oracle_aligned(logits, targets, mask, weights, smoothing):
    total, count, longest = scalar(0.0), 0, max(LEVELS)
    for row in range(len(logits)):
        labelled = [head for head in range(len(LEVELS)) if mask[row, head]]
        if not labelled:
            continue
        count += 1
        numerators = [
            sum(torch.exp(logits[row, OFFSETS[head] + j]) for head, k in enumerate(LEVELS) if j < k)
            for j in range(longest)
        ]
        for j in range(longest):
            having = [head for head, k in enumerate(LEVELS) if j < k]
            mass = 0.0
            for head in having:
                if head in labelled:
                    c = OFFSETS[head] + j
                    mass += float(weights[c]) * float(targets[row, c]) / len(labelled)
            mean_weight = sum(float(weights[OFFSETS[head] + j]) for head in having) / len(having)
            target = (1 - smoothing) * mass + smoothing / longest * mean_weight
            total = total - target * torch.log(numerators[j] / sum(numerators))
    return total, count


ORACLES = {"per_head": oracle_per_head, "joint": oracle_joint, "aligned": oracle_aligned}


def random_batch(seed, rows=7):
    """Random logits and labels: one-hots and distributions, any subset of heads, some rows with no label."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(rows, sum(LEVELS), generator=generator)
    labels = []
    for _ in range(rows):
        row = {}
        for name, k in zip(NAMES, LEVELS, strict=True):
            kind = int(torch.randint(0, 3, (1,), generator=generator))
            if kind == 1:
                row[name] = int(torch.randint(1, k + 1, (1,), generator=generator))
            elif kind == 2:
                row[name] = torch.rand(k, generator=generator).softmax(0).tolist()
        labels.append(row)
    weights = 0.5 + torch.rand(sum(LEVELS), generator=generator)
    targets, mask = encode_labels(labels, NAMES, LEVELS)
    return logits, targets, mask, weights


@pytest.mark.parametrize("loss", list(LOSSES))
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), smoothing=st.sampled_from([0.0, 0.1, 0.5]), weighted=st.booleans())
def test_value_and_gradient_equal_a_naive_loop(loss, seed, smoothing, weighted):
    logits, targets, mask, weights = random_batch(seed, rows=4)
    logits.requires_grad_()
    loss_sum, count = LOSSES[loss](logits, targets, mask, LEVELS, weights if weighted else None, smoothing)
    (gradient,) = torch.autograd.grad(loss_sum, logits)

    loop_logits = logits.detach().double().requires_grad_()
    loop_weights = weights if weighted else torch.ones(sum(LEVELS))
    expected, expected_count = ORACLES[loss](loop_logits, targets, mask, loop_weights, smoothing)
    assert loss_sum.dtype == torch.float32 and count.dtype == torch.int64 and count.item() == expected_count
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    if expected_count:
        (loop_gradient,) = torch.autograd.grad(expected, loop_logits)
        torch.testing.assert_close(gradient.double(), loop_gradient, rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(gradient, torch.zeros_like(gradient))


# One row, heads of 2 and 1 levels, logits chosen so that the exponentials are 1, 3 and 4.
TINY_LOGITS = torch.tensor([[0.0, math.log(3.0), math.log(4.0)]])
BOTH = torch.tensor([[True, True]])


def test_per_head_by_hand():
    targets = torch.tensor([[0.0, 1.0, 1.0]])
    loss, count = per_head_loss(TINY_LOGITS, targets, BOTH, (2, 1))
    assert loss.item() == pytest.approx(-math.log(3 / 4))  # the one-level head adds -log 1
    assert count.item() == 2
    smoothed, _ = per_head_loss(TINY_LOGITS, targets, BOTH, (2, 1), label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))
    weighted, count = per_head_loss(TINY_LOGITS, targets, BOTH, (2, 1), torch.tensor([1.0, 5.0, 1.0]))
    assert weighted.item() == pytest.approx(-5 * math.log(3 / 4))
    assert count.item() == 2  # the count is no sum of weights


def test_joint_by_hand():
    targets = torch.tensor([[0.0, 1.0, 1.0]])
    loss, count = joint_loss(TINY_LOGITS, targets, BOTH, (2, 1))
    assert loss.item() == pytest.approx(-0.5 * math.log(3 / 8) - 0.5 * math.log(4 / 8))
    assert count.item() == 1  # a row, however many labels it carries
    one_label, _ = joint_loss(TINY_LOGITS, targets, torch.tensor([[True, False]]), (2, 1))
    assert one_label.item() == pytest.approx(-math.log(3 / 8))
    smoothed, _ = joint_loss(TINY_LOGITS, targets, torch.tensor([[True, False]]), (2, 1), label_smoothing=0.3)
    assert smoothed.item() == pytest.approx(-0.8 * math.log(3 / 8) - 0.1 * math.log(1 / 8) - 0.1 * math.log(4 / 8))


def test_aligned_by_hand():
    # Position 1 holds exponentials 1 and 4, position 2 holds 3: shares 5/8 and 3/8.
    targets = torch.tensor([[0.0, 1.0, 1.0]])
    loss, count = aligned_loss(TINY_LOGITS, targets, BOTH, (2, 1))
    assert loss.item() == pytest.approx(-0.5 * math.log(3 / 8) - 0.5 * math.log(5 / 8))
    assert count.item() == 1
    weights = torch.tensor([1.0, 2.0, 6.0])
    weighted, _ = aligned_loss(TINY_LOGITS, targets, BOTH, (2, 1), weights)
    assert weighted.item() == pytest.approx(-0.5 * 2 * math.log(3 / 8) - 0.5 * 6 * math.log(5 / 8))
    smoothed, _ = aligned_loss(TINY_LOGITS, targets, torch.tensor([[True, False]]), (2, 1), weights, 0.2)
    assert smoothed.item() == pytest.approx(
        -0.8 * 2 * math.log(3 / 8) - 0.1 * 2 * math.log(3 / 8) - 0.1 * 3.5 * math.log(5 / 8)
    )


def test_aligned_cannot_tell_heads_apart_where_joint_can():
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    first, mask = encode_labels([{"a": 1, "b": 2}], ("a", "b"), (2, 2))
    second, _ = encode_labels([{"a": 2, "b": 1}], ("a", "b"), (2, 2))
    assert aligned_loss(logits, first, mask, (2, 2))[0].item() == aligned_loss(logits, second, mask, (2, 2))[0].item()
    assert abs(joint_loss(logits, first, mask, (2, 2))[0] - joint_loss(logits, second, mask, (2, 2))[0]) > 0.01


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("filler", [0.0, float("inf"), float("nan")])
def test_empty_mask_gives_exact_zeros(loss, rows, filler):
    logits = torch.full((rows, sum(LEVELS)), filler, requires_grad=True)
    mask = torch.zeros(rows, len(LEVELS), dtype=torch.bool)
    targets = torch.ones(rows, sum(LEVELS))  # what an unlabelled head holds must not matter
    weights = torch.ones(sum(LEVELS))
    loss_sum, count = LOSSES[loss](logits, targets, mask, LEVELS, weights, label_smoothing=0.1)
    loss_sum.backward()
    assert loss_sum.item() == 0.0 and count.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_per_head_leaves_unlabelled_heads_without_gradient_and_joint_does_not():
    logits = torch.randn(2, sum(LEVELS), generator=torch.Generator().manual_seed(3)).requires_grad_()
    targets, mask = encode_labels([{"honesty": 2}, {"honesty": 3}], NAMES, LEVELS)
    (per_head,) = torch.autograd.grad(per_head_loss(logits, targets, mask, LEVELS)[0], logits)
    (joint,) = torch.autograd.grad(joint_loss(logits, targets, mask, LEVELS)[0], logits)
    assert torch.equal(per_head[:, :5], torch.zeros(2, 5)) and torch.equal(per_head[:, 8:], torch.zeros(2, 2))
    assert (per_head[:, 5:8] != 0).all() and (joint != 0).all()


@pytest.mark.parametrize("loss", list(LOSSES))
def test_sums_and_counts_add_up_over_any_split(loss):
    logits, targets, mask, weights = random_batch(5, rows=9)
    whole, count = LOSSES[loss](logits, targets, mask, LEVELS, weights, 0.1)
    parts = [LOSSES[loss](logits[r], targets[r], mask[r], LEVELS, weights, 0.1) for r in (slice(0, 2), slice(2, 9))]
    assert sum(part.item() for part, _ in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert sum(n.item() for _, n in parts) == count.item() > 0


@pytest.mark.parametrize("loss", list(LOSSES))
def test_bf16_logits_are_computed_in_fp32(loss):
    logits, targets, mask, _ = random_batch(8)
    rounded = logits.bfloat16()
    low, _ = LOSSES[loss](rounded, targets, mask, LEVELS)
    high, _ = LOSSES[loss](rounded.float(), targets, mask, LEVELS)
    assert low.dtype == torch.float32 and low.item() == high.item()
    assert probabilities(rounded, LEVELS, loss).dtype == torch.float32


def test_probabilities_by_hand():
    torch.testing.assert_close(probabilities(TINY_LOGITS, (2, 1), "per_head"), torch.tensor([[0.25, 0.75, 1.0]]))
    for loss in ("joint", "aligned"):
        torch.testing.assert_close(probabilities(TINY_LOGITS, (2, 1), loss), torch.tensor([[0.125, 0.375, 0.5]]))


def test_probabilities_refuse_bad_input():
    with pytest.raises(ValueError, match="per_head, joint, aligned, got 'softmax'"):
        probabilities(TINY_LOGITS, (2, 1), "softmax")
    with pytest.raises(ValueError, match="last dimension of 4"):
        probabilities(TINY_LOGITS, (2, 2), "joint")


def test_single_level_heads_need_joint():
    datatype1 = {"helpfulness": 1, "honesty": 1, "harmless": 2}
    with pytest.raises(ValueError) as error:
        check_levels_for_loss(datatype1, "per_head")
    for text in ("loss", "preferences.helpfulness.levels", "preferences.honesty.levels", "loss=joint"):
        assert text in str(error.value)
    assert "harmless" not in str(error.value)
    check_levels_for_loss(datatype1, "joint")
    check_levels_for_loss({"helpfulness": 2}, "per_head")
    with pytest.raises(ValueError, match="expected one of"):
        check_levels_for_loss(datatype1, "hinge")


def test_encode_labels_by_hand():
    targets, mask = encode_labels([{"b": 2, "a": [0.25, 0.75]}, {}, {"a": None, "b": 3}], ("a", "b"), (2, 3))
    assert targets.tolist() == [[0.25, 0.75, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert mask.tolist() == [[True, True], [False, False], [False, True]]
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"c": 1}, "unknown dimension 'c'"),
        ({"a": 0}, "row 1, a: expected a level from 1 to 2, got 0"),
        ({"a": 3}, "row 1, a: expected a level from 1 to 2, got 3"),
        ({"a": True}, "expected a level"),
        ({"a": 1.0}, "expected a level"),
        ({"a": "12"}, "expected a level"),
        ({"a": [1.0]}, "2 non-negative shares"),
        ({"a": [0.5, 0.4]}, "sum to 1"),
        ({"a": [1.5, -0.5]}, "non-negative"),
        ({"a": [math.nan, 1.0]}, "shares"),
        ({"a": ["0.5", 0.5]}, "shares"),
    ],
)
def test_encode_labels_refuses(label, message):
    with pytest.raises(ValueError, match=message):
        encode_labels([{}, label], ("a", "b"), (2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 4)}, "logits: expected shape"),
        ({"targets": torch.zeros(1, 3)}, "targets: expected"),
        ({"label_mask": torch.zeros(2, 2)}, "label_mask: expected bool"),
        ({"label_mask": torch.zeros(2, 3, dtype=torch.bool)}, "label_mask: expected bool"),
        ({"class_weights": torch.ones(2)}, "class_weights"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
@pytest.mark.parametrize("loss", list(LOSSES))
def test_losses_refuse_shapes_that_do_not_fit(loss, change, message):
    good = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, 3)}
    good["label_mask"] = torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        LOSSES[loss](**{**good, "levels": (2, 1), **change})
