"""Eq. 11 by hand, against a loop, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.functional.reward_mapping import map_rewards

LEVELS = (2, 3)
P = torch.tensor([[0.2, 0.8, 0.1, 0.3, 0.6]])
AVG = torch.tensor([0.5, 0.5, 0.2, 0.3, 0.4])
STD = torch.tensor([0.1, 0.2, 0.05, 0.1, 0.4])


@pytest.mark.parametrize(
    ("asked", "total", "active"),
    [
        ((2, 3), [1.5 / 2, 0.5 / 2], [1.5 / 2, 0.5 / 2]),
        ((1, 0), [-3.0 / 2, 0.0], [-3.0, 0.0]),
        ((0, 1), [0.0, -2.0 / 2], [0.0, -2.0]),
        ((0, 0), [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_by_hand(asked, total, active):
    for normalize, expected in (("total", total), ("active", active)):
        rewards, parts = map_rewards(P, torch.tensor([asked]), AVG, STD, LEVELS, normalize)
        torch.testing.assert_close(parts, torch.tensor([expected]), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rewards, torch.tensor([sum(expected)]), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), normalize=st.sampled_from(["total", "active"]))
def test_equals_a_loop(seed, normalize):
    generator = torch.Generator().manual_seed(seed)
    levels = (5, 5, 2)
    p = torch.rand(6, 12, generator=generator)
    avg, std = torch.rand(12, generator=generator), 0.05 + torch.rand(12, generator=generator)
    asked = torch.stack([torch.randint(0, k + 1, (6,), generator=generator) for k in levels], dim=1)
    rewards, parts = map_rewards(p, asked, avg, std, levels, normalize)
    for row in range(6):
        k = 3 if normalize == "total" else sum(int(level) > 0 for level in asked[row])
        reward = 0.0
        for head, level in enumerate(asked[row].tolist()):
            part = 0.0
            if level:
                c = sum(levels[:head]) + level - 1
                part = float((p[row, c].double() - avg[c]) / std[c]) / k
            assert parts[row, head].item() == pytest.approx(part, rel=1e-4, abs=1e-5)
            reward += part
        assert rewards[row].item() == pytest.approx(reward, rel=1e-4, abs=1e-5)


def test_what_a_dimension_not_asked_holds_does_not_matter():
    poisoned = P.clone()
    poisoned[0, 2:] = float("nan")
    rewards, parts = map_rewards(poisoned, torch.tensor([[2, 0]]), AVG, STD, LEVELS)
    torch.testing.assert_close(rewards, torch.tensor([0.75]))
    torch.testing.assert_close(parts, torch.tensor([[0.75, 0.0]]))


def test_dtypes_and_an_empty_batch():
    rewards, parts = map_rewards(P.bfloat16(), torch.tensor([[1, 1]], dtype=torch.int8), AVG, STD, LEVELS)
    assert rewards.dtype == parts.dtype == torch.float32
    rewards, parts = map_rewards(P[:0], torch.zeros(0, 2, dtype=torch.long), AVG, STD, LEVELS, "active")
    assert rewards.shape == (0,) and parts.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": torch.tensor([[3, 0]])}, "levels 0 .not asked. to 2 for dimension 0, got 3 in row 0"),
        ({"preferences": torch.tensor([[0, 4]])}, "to 3 for dimension 1, got 4"),
        ({"preferences": torch.tensor([[0, -1]])}, "dimension 1, got -1"),
        ({"preferences": torch.tensor([[1.0, 1.0]])}, "expected integer levels"),
        ({"preferences": torch.tensor([[1]])}, "preferences: expected shape"),
        ({"probabilities": torch.rand(1, 4)}, "probabilities: expected shape"),
        ({"avg": torch.rand(4)}, "avg: expected shape"),
        ({"std": torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1])}, "std: expected values above 0"),
        ({"std": torch.tensor([0.1, 0.1, float("nan"), 0.1, 0.1])}, r"at classes \[2\]"),
        ({"normalize": "mean"}, "normalize: expected one of total, active"),
    ],
)
def test_refuses(change, message):
    arguments = {"probabilities": P, "preferences": torch.tensor([[1, 1]]), "avg": AVG, "std": STD}
    with pytest.raises(ValueError, match=message):
        map_rewards(**{**arguments, "levels": LEVELS, **change})
