"""Values and loss of the critic that foresees levels, by hand and against loops with their gradients."""

import math

import pytest
import torch

from nemo_moslim.functional.level_values import level_prediction_loss, level_values
from nemo_moslim.functional.reward_mapping import map_rewards

LEVELS = [2, 3]
AVG = torch.tensor([0.5, 0.5, 0.2, 0.3, 0.5])
STD = torch.tensor([0.5, 0.25, 0.1, 0.2, 0.4])


def test_values_by_hand():
    p = torch.tensor([[[0.25, 0.75, 0.1, 0.2, 0.7], [1.0, 0.0, 0.0, 1.0, 0.0], [math.nan] * 5]])
    mask = torch.tensor([[True, True, False]])
    both = level_values(p, torch.tensor([[2, 3]]), AVG, STD, LEVELS, "total", mask)
    # ((0.75 - 0.5) / 0.25 + (0.7 - 0.5) / 0.4) / 2; ((0 - 0.5) / 0.25 + (0 - 0.5) / 0.4) / 2
    assert both.tolist() == [[pytest.approx(0.75), pytest.approx(-1.625), 0.0]]
    one = level_values(p, torch.tensor([[0, 2]]), AVG, STD, LEVELS, "active", mask)
    assert one.tolist() == [[pytest.approx(-0.5), pytest.approx(3.5), 0.0]]


def test_the_value_is_the_expected_reward():
    """Answers that end in one of several ways: the value of the mean p is the mean of their rewards."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.cat([torch.rand(4, k, generator=generator).softmax(-1) for k in LEVELS], -1)
    asked = torch.tensor([[1, 3]])
    rewards, _ = map_rewards(ends, asked.expand(4, -1), AVG, STD, LEVELS, "total")
    value = level_values(ends.mean(0)[None, None], asked, AVG, STD, LEVELS, "total", torch.tensor([[True]]))
    assert value.item() == pytest.approx(rewards.mean().item(), abs=1e-6)


def test_loss_and_gradient_against_loops():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 4, 5, generator=generator).requires_grad_()
    final = torch.rand(3, 5, generator=generator).softmax(-1)
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    loss = level_prediction_loss(logits.softmax(-1), final, mask)
    expected = torch.zeros((), dtype=torch.float64)
    gradient = torch.zeros(3, 4, 5)
    for b in range(3):
        for t in range(4):
            if mask[b, t]:
                p = logits[b, t].detach().double().softmax(-1)
                expected += -(final[b] * p.log()).sum()
                gradient[b, t] = final[b].sum() * p.float() - final[b]  # of the cross-entropy in the logits
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert torch.allclose(logits.grad, gradient, atol=1e-6)


def test_what_stands_outside_the_mask_is_never_read():
    p = torch.full((1, 2, 5), 0.2)
    p[0, 1] = math.nan
    p.requires_grad_()
    loss = level_prediction_loss(p, torch.full((1, 5), 0.2), torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.2)) and torch.isfinite(p.grad).all()
    nothing = level_prediction_loss(torch.zeros(1, 1, 5), torch.full((1, 5), 0.2), torch.tensor([[True]]))
    assert math.isfinite(nothing.item())  # a probability of 0 is surprising, not infinitely so
