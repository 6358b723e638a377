import math

import pytest

from nemo_moslim.training.optimizer import learning_rate_factor

# (updates made so far, factor of the next one) for 4 steps of warm-up and 12 in all, down to a tenth
WARMUP = [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)]
EIGHTHS = {"linear": lambda k: 1 - k / 8, "cosine": lambda k: (1 + math.cos(math.pi * k / 8)) / 2}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warm_up_then_decay_to_the_floor(schedule):
    for step, factor in WARMUP:
        assert learning_rate_factor(step, schedule, 4, 12, 0.1) == pytest.approx(factor)
    for step in range(4, 12):
        expected = 0.1 + 0.9 * EIGHTHS[schedule](step - 3)
        assert learning_rate_factor(step, schedule, 4, 12, 0.1) == pytest.approx(expected)
    assert learning_rate_factor(11, schedule, 4, 12, 0.1) == pytest.approx(0.1)
    assert learning_rate_factor(50, schedule, 4, 12, 0.1) == pytest.approx(0.1)


def test_values_by_hand():
    assert learning_rate_factor(7, "cosine", 4, 12, 0.0) == pytest.approx(0.5)
    assert learning_rate_factor(7, "linear", 4, 12, 0.2) == pytest.approx(0.6)


def test_constant_and_no_warm_up():
    assert [learning_rate_factor(step, "constant", 2, 12, 0.1) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate_factor(0, "linear", 0, 10, 0.0) == pytest.approx(0.9)


def test_warm_up_as_long_as_the_run():
    assert learning_rate_factor(9, "cosine", 10, 10, 0.0) == 1.0
    assert learning_rate_factor(10, "cosine", 10, 10, 0.0) == pytest.approx(0.0)
