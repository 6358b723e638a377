"""Means, fronts, hypervolumes and lines: by hand, against loops, and their intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.comparison.control import control_samples
from nemo_moslim.comparison.fronts import (
    draws,
    follows_weights,
    hypervolume,
    hypervolumes,
    interval,
    line_report,
    on_front,
    rank_correlation,
    resampled_means,
)


def test_the_first_sample_is_the_estimate():
    levels = np.arange(2 * 3 * 4 * 2, dtype=float).reshape(2, 3, 4, 2)
    means = resampled_means(levels, draws(2, list("abcd"), 50, seed=1))
    assert means.shape == (51, 3, 2)
    np.testing.assert_allclose(means[0], levels.mean((0, 2)))
    assert means[1:].std(0).min() > 0


def test_a_sample_equals_a_loop_over_its_draws():
    rng = np.random.default_rng(0)
    levels, drawn = rng.random((3, 2, 5, 2)), draws(3, list("abcde"), 4, seed=2)
    means = resampled_means(levels, drawn)
    for sample in range(5):
        seeds = np.repeat(np.arange(3), np.rint(drawn.seeds[sample] * 3).astype(int))
        prompts = np.repeat(np.arange(5), np.rint(drawn.prompts[sample] * 5).astype(int))
        assert len(seeds) == 3 and len(prompts) == 5
        picked = [[levels[r, p, q] for r in seeds for q in prompts] for p in range(2)]
        np.testing.assert_allclose(means[sample], np.mean(picked, 1))


def test_rows_of_one_prompt_are_drawn_together():
    drawn = draws(1, ["a", "b", "a", "c"], 200, seed=3)
    np.testing.assert_allclose(drawn.prompts[0], 0.25)
    np.testing.assert_allclose(drawn.prompts.sum(1), 1.0)
    assert (drawn.prompts[:, 0] == drawn.prompts[:, 2]).all() and (drawn.prompts[:, 0] != drawn.prompts[:, 1]).any()
    rng = np.random.default_rng(0)
    answers = np.repeat((rng.random((1, 1, 50, 1)) < 0.5).astype(float), 4, axis=2)  # four equal rows a prompt
    apart, together = (
        interval(resampled_means(answers, draws(1, names, 2000, seed=1))[:, 0, 0])
        for names in ([str(n) for n in range(200)], [str(n // 4) for n in range(200)])
    )
    wider = (together["high"] - together["low"]) / (apart["high"] - apart["low"])
    assert wider == pytest.approx(2.0, rel=0.2)  # as of a fourth of the rows


def test_control_equals_a_loop_over_its_draws():
    rng = np.random.default_rng(5)
    requested = rng.integers(0, 3, (12, 2))
    obtained = rng.integers(1, 3, (2, 12, 2))
    drawn = draws(2, [f"p{i // 2}" for i in range(12)], 6, seed=4)
    found = control_samples(requested, obtained, [2, 2], drawn)
    for sample in range(7):
        weights = np.outer(drawn.seeds[sample], drawn.prompts[sample])
        for index in range(2):
            asked = np.broadcast_to(requested[:, index] > 0, weights.shape)
            hits = (obtained[..., index] == requested[:, index]) & asked
            assert found.hit_rate[sample, index] == pytest.approx(weights[hits].sum() / weights[asked].sum())
    first = [(r, o) for row in obtained for r, o in zip(requested[:, 0], row[:, 0], strict=True) if r]
    assert found.spearman[0, 0] == pytest.approx(rank_correlation(*zip(*first, strict=True)))
    tagged = (requested > 0).any(1)
    exact = ((obtained == requested) | (requested == 0)).all(2)[:, tagged]
    assert found.all_hit[0] == pytest.approx(exact.mean())
    constant = control_samples(requested, np.ones_like(obtained), [2, 2], drawn)
    assert np.isnan(constant.spearman).all() and np.isfinite(constant.hit_rate).all()


def test_intervals_cover_the_truth_and_shrink_with_prompts():
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for trial in range(60):
        levels = (rng.random((1, 1, 200, 1)) < 0.3).astype(float)
        found = interval(resampled_means(levels, draws(1, [str(n) for n in range(200)], 300, seed=trial))[:, 0, 0])
        covered += found["low"] <= 0.3 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 50 <= covered <= 60 and np.mean(widths) == pytest.approx(2 * 1.96 * (0.21 / 200) ** 0.5, rel=0.1)
    assert interval(np.array([np.nan, 1.0])) == {"mean": None, "low": None, "high": None}


def test_hypervolume_by_hand():
    # Boxes of 0.5 x 1 and 1 x 0.25 that share 0.5 x 0.25.
    assert hypervolume(np.array([[0.5, 1.0], [1.0, 0.25]])) == pytest.approx(0.5 + 0.25 - 0.125)
    assert hypervolume(np.array([[0.5, 0.5, 0.5], [0.4, 0.5, 0.5]])) == pytest.approx(0.125)
    assert hypervolume(np.array([[0.0, 1.0, 1.0]])) == 0.0 and hypervolume(np.ones((1, 3))) == 1.0
    np.testing.assert_allclose(hypervolumes(np.array([[[0.5, 0.5]], [[1.0, 0.5]]])), [0.25, 0.5])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_hypervolume_equals_inclusion_and_exclusion(seed, count):
    points = np.random.default_rng(seed).random((count, 3))
    expected = 0.0
    for size in range(1, count + 1):
        for chosen in itertools.combinations(points, size):
            expected += (-1) ** (size + 1) * np.min(chosen, 0).prod()
    assert hypervolume(points) == pytest.approx(expected, abs=1e-9)


def test_front_by_hand():
    points = np.array([[0.5, 0.5], [0.6, 0.4], [0.5, 0.4], [0.5, 0.5], [0.1, 0.9]])
    assert on_front(points).tolist() == [True, True, False, True, True]  # of two equal points none beats the other


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_points_off_the_front_add_no_volume(seed):
    points = np.random.default_rng(seed).integers(0, 4, (7, 3)) / 3
    assert hypervolume(points[on_front(points)]) == pytest.approx(hypervolume(points))


def test_rank_correlations():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation([1, 1], [1, 2]))
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    means = np.stack([weights * 0.3, weights[::-1]])
    np.testing.assert_allclose(follows_weights(weights, means), [[1.0, 1.0], [-1.0, -1.0]])


def test_lines_by_hand():
    # The first objective falls 0.8, 0.7, 0.2 (chord 0.5 in the middle), the second rises 0.1, 0.05, 0.5.
    report = line_report([0.0, 0.5, 1.0], np.array([[0.8, 0.1], [0.7, 0.05], [0.2, 0.5]]))
    np.testing.assert_allclose(report.gaps, [[0.0, 0.0], [0.2, -0.25], [0.0, 0.0]], atol=1e-12)
    assert report.rising == (1.0, 0.5) and report.flat == (0.0, 0.0)
    level = line_report([0.0, 0.5, 1.0], np.array([[0.8, 0.1], [0.8, 0.1], [0.2, 0.1]]))
    assert level.rising == (0.5, 0.0) and level.flat == (0.5, 1.0)
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        line_report([0.0, 0.5], np.zeros((2, 2)))
