"""How well a policy gives the levels it is asked for: the numbers behind MOSLIM's Figures 5 and 6.

numpy only. Shapes: R rows (one answer each), N dimensions, K levels of one dimension, S bootstrap samples.
Levels are 1-based; 0 is "not asked". Numbers that are undefined on the given rows are None, never NaN: the result dumps
with `json.dumps(..., allow_nan=False)`.

A resample of rows changes only how often each (requested, obtained) cell of the K x K table occurs, so it is one
multinomial draw over the cells. Rank correlations come from the table too: estimate and interval are of one formula.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemo_moslim.evaluation.reward_accuracy import confusion_matrix
from nemo_moslim.preferences import PreferenceSchema

SAMPLES = 2000
RESERVED = ("overall", "pairs")  # keys beside the dimensions in the report


class Graded(NamedTuple):
    """The rows as arrays."""

    requested: NDArray[np.int64]  # [R, N] levels, 0 = not asked
    obtained: NDArray[np.int64]  # [R, N] levels
    length: NDArray[np.float64]  # [R] answer tokens, NaN = not given
    unseen: NDArray[np.bool_]  # [R] the combination of levels did not occur in training

    def of(self, rows: NDArray[np.bool_]) -> "Graded":
        """The rows where the [R] mask is true."""
        return Graded(*(values[rows] for values in self))


def control_report(
    rows: Sequence[Mapping[str, Any]], schema: PreferenceSchema, samples: int = SAMPLES, seed: int = 1
) -> dict[str, Any]:
    """All numbers of `evaluate task=controllability`.

    Args:
        rows: mappings with `preferences`, the requested levels (any subset of the dimensions; {} = untagged), and
            `levels`, the obtained level of every dimension; optional `length` (answer tokens) and `unseen` (the
            combination of levels did not occur in training prompts). Other keys are left alone.
        schema: the dimensions.
        samples: bootstrap resamples; rows are taken as independent of each other.
        seed: of the resampling; the same seed gives the same intervals.

    Returns:
        Per dimension name, over the rows that ask for it: `n`; `spearman` of requested and obtained level; `hit_rate`,
        the share of exact levels; `mean_absolute_error` in levels; `confusion` [K][K], requested by obtained;
        `curve`, a list of `level`, `n`, and `mean` obtained with its 95 % interval `low`, `high` (Figure 5);
        `monotonicity`, the share of steps from one requested level with rows to the next at which the mean rises;
        `intervals`, the 95 % intervals [low, high] of `spearman` and `hit_rate`; `leakage`, other dimension ->
        Spearman of this one's requested with the other's obtained level (0 is ideal; where rows ask for both, the two
        requests must be independent for it to mean anything); `mean_length`, requested level as text -> mean tokens.
        `overall`: `n`; `all_hit`, the share of tagged rows with every asked level exact; `untagged` with `n` and
        `dimensions` -> `mean` and `shares` [K] of the levels; `unseen`, None without such rows, with `n`, `all_hit`
        and `dimensions` -> `n`, `spearman`, `hit_rate`.
        `pairs`: a list, one entry per pair of dimensions, of `dimensions` and `goals` (Figure 6): the lowest and
        highest levels of both, each with `goal` (dimension -> level), `n` rows that ask for both, whatever else they
        ask for, and `obtained`, the mean level of every dimension as (mean - 1) / (K - 1).

    Raises:
        ValueError: a row lacks a level, names an unknown dimension or a level out of range; a dimension's name is a key
            of the report; samples is below 1.
    """
    check_names(schema)
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    graded = graded_arrays(rows, schema)
    report: dict[str, Any] = {}
    for index, name in enumerate(schema.names):
        asked = graded.of(graded.requested[:, index] > 0)
        # A generator per dimension: its intervals do not depend on the other dimensions' rows.
        report[name] = _dimension(asked, index, schema, samples, np.random.default_rng([seed, index]))
    report["overall"] = _overall(graded, schema)
    report["pairs"] = [_pair(graded, a, b, schema) for a, b in combinations(range(len(schema.names)), 2)]
    return report


def check_names(schema: PreferenceSchema) -> None:
    """ValueError where a dimension's name is a key of the report."""
    clash = [name for name in schema.names if name in RESERVED]
    if clash:
        raise ValueError(f"preferences: {clash[0]!r} is a key of the control report, give the dimension another name")


def graded_arrays(rows: Sequence[Mapping[str, Any]], schema: PreferenceSchema) -> Graded:
    """Rows (see `control_report`) as arrays.

    Raises:
        ValueError: as `control_report`; rows are counted from 0.
    """
    shape = (len(rows), len(schema.names))
    requested, obtained = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    length, unseen = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    for number, row in enumerate(rows):
        requested[number] = _row_levels(row, "preferences", number, schema)
        obtained[number] = _row_levels(row, "levels", number, schema)
        missing = [name for name, level in zip(schema.names, obtained[number], strict=True) if not level]
        if missing:
            raise ValueError(f"row {number}: levels lacks {missing[0]!r}; every dimension of the schema needs one")
        if row.get("length") is not None:
            length[number] = _row_length(row["length"], number)
        unseen[number] = bool(row.get("unseen"))
    return Graded(requested, obtained, length, unseen)


def spearman_of_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rank correlation, ties at their mean rank, of rows that are counted in a table.

    Args:
        counts: [..., K, L] how many rows have the first variable's level k and the second's level l.

    Returns:
        [...] float, NaN where a variable is constant or the table is empty.
    """
    counts = np.asarray(counts, dtype=np.float64)
    n = counts.sum((-2, -1))
    first, second = counts.sum(-1), counts.sum(-2)  # [..., K], [..., L]: margins
    # The mean rank of a level, less the mean rank of all.
    rank_a = first.cumsum(-1) - first / 2 - n[..., None] / 2
    rank_b = second.cumsum(-1) - second / 2 - n[..., None] / 2
    covariance = np.einsum("...k,...kl,...l->...", rank_a, counts, rank_b)
    scale = np.sqrt((first * rank_a**2).sum(-1) * (second * rank_b**2).sum(-1))
    undefined = np.full_like(scale, np.nan)
    return np.clip(np.divide(covariance, scale, out=undefined, where=scale > 0), -1.0, 1.0)


def _spearman(first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    """Rank correlation of two [n] columns of levels; None where it is undefined."""
    levels = int(max(first.max(initial=1), second.max(initial=1)))
    value = float(spearman_of_counts(confusion_matrix(first, second, levels)))
    return None if math.isnan(value) else value


def _dimension(
    asked: Graded, index: int, schema: PreferenceSchema, samples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """One dimension's numbers over the rows that ask for it."""
    requested, obtained = asked.requested[:, index], asked.obtained[:, index]
    levels = schema.dimensions[index].levels
    confusion = confusion_matrix(requested, obtained, levels)
    numbers = _agreement(requested, obtained)
    numbers["mean_absolute_error"] = _mean(np.abs(requested - obtained))
    numbers["confusion"] = confusion.tolist()
    numbers["curve"] = [_curve_point(level + 1, confusion[level], samples, rng) for level in range(levels)]
    numbers["monotonicity"] = monotonicity([point["mean"] for point in numbers["curve"]])
    numbers["intervals"] = _intervals(confusion, numbers["spearman"], samples, rng)
    numbers["leakage"] = {
        name: _spearman(requested, asked.obtained[:, other])
        for other, name in enumerate(schema.names)
        if other != index
    }
    numbers["mean_length"] = {
        str(level): _mean(asked.length[(requested == level) & ~np.isnan(asked.length)])
        for level in range(1, levels + 1)
    }
    return numbers


def _agreement(requested: NDArray[np.int64], obtained: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "n": len(requested),
        "spearman": _spearman(requested, obtained),
        "hit_rate": _mean(requested == obtained),
    }


def _curve_point(level: int, counts: NDArray[np.int64], samples: int, rng: np.random.Generator) -> dict[str, Any]:
    """Mean obtained level and its interval where `level` was asked for; counts [K] of the obtained levels."""
    n = int(counts.sum())
    if not n:
        return {"level": level, "n": 0, "mean": None, "low": None, "high": None}
    values = np.arange(1, len(counts) + 1)
    low, high = _percentiles(rng.multinomial(n, counts / n, size=samples) @ values / n)
    return {"level": level, "n": n, "mean": float(counts @ values / n), "low": low, "high": high}


def monotonicity(means: Sequence[float | None]) -> float | None:
    """Share of steps between neighbouring means (None left out) that rise strictly; None with fewer than two means."""
    known = [mean for mean in means if mean is not None]
    return _mean(np.diff(known) > 0) if len(known) > 1 else None


def _intervals(
    confusion: NDArray[np.int64], point: float | None, samples: int, rng: np.random.Generator
) -> dict[str, list[float | None]]:
    """95 % intervals; that of an undefined Spearman is undefined, and resamples in which it is are left out."""
    n = int(confusion.sum())
    if not n:
        return {"spearman": [None, None], "hit_rate": [None, None]}
    draws = rng.multinomial(n, confusion.ravel() / n, size=samples).reshape(samples, *confusion.shape)  # [S, K, K]
    hits = np.trace(draws, axis1=1, axis2=2) / n
    correlations = np.zeros(0) if point is None else spearman_of_counts(draws)
    return {"spearman": _percentiles(correlations), "hit_rate": _percentiles(hits)}


def _overall(graded: Graded, schema: PreferenceSchema) -> dict[str, Any]:
    tagged = (graded.requested > 0).any(1)
    untagged = graded.of(~tagged)
    unseen = graded.of(tagged & graded.unseen)
    return {
        "n": len(tagged),
        "all_hit": _all_hit(graded.of(tagged)),
        "untagged": {
            "n": len(untagged.obtained),
            "dimensions": {
                dimension.name: _level_shares(untagged.obtained[:, index], dimension.levels)
                for index, dimension in enumerate(schema.dimensions)
            },
        },
        "unseen": _unseen(unseen, schema) if len(unseen.obtained) else None,
    }


def _unseen(unseen: Graded, schema: PreferenceSchema) -> dict[str, Any]:
    dimensions = {}
    for index, name in enumerate(schema.names):
        asked = unseen.requested[:, index] > 0
        dimensions[name] = _agreement(unseen.requested[asked, index], unseen.obtained[asked, index])
    return {"n": len(unseen.obtained), "all_hit": _all_hit(unseen), "dimensions": dimensions}


def _level_shares(obtained: NDArray[np.int64], levels: int) -> dict[str, Any]:
    shares = [_mean(obtained == level) for level in range(1, levels + 1)]
    return {"mean": _mean(obtained), "shares": shares}


def _all_hit(graded: Graded) -> float | None:
    return _mean(((graded.requested == graded.obtained) | (graded.requested == 0)).all(1))


def _pair(graded: Graded, a: int, b: int, schema: PreferenceSchema) -> dict[str, Any]:
    """Mean obtained levels at the extreme goals of two dimensions; a dimension with one level has one goal."""
    first, second = schema.dimensions[a], schema.dimensions[b]
    goals = []
    for level_a, level_b in product(sorted({1, first.levels}), sorted({1, second.levels})):
        rows = graded.of((graded.requested[:, a] == level_a) & (graded.requested[:, b] == level_b))
        obtained = {
            dimension.name: _mean((rows.obtained[:, index] - 1) / (dimension.levels - 1))
            if dimension.levels > 1
            else None
            for index, dimension in enumerate(schema.dimensions)
        }
        goals.append(
            {"goal": {first.name: level_a, second.name: level_b}, "n": len(rows.obtained), "obtained": obtained}
        )
    return {"dimensions": [first.name, second.name], "goals": goals}


def _row_levels(row: Mapping[str, Any], key: str, number: int, schema: PreferenceSchema) -> list[int]:
    """[N] levels of `row[key]`, 0 where a dimension is absent."""
    given = row.get(key)
    if not isinstance(given, Mapping):
        raise ValueError(f"row {number}: expected {key} as a mapping dimension -> level, got {given!r}")
    for name, level in given.items():
        if name not in schema.names:
            raise ValueError(
                f"row {number}, {key}: unknown dimension {name!r}, expected one of {', '.join(schema.names)}"
            )
        count = schema.dimension(name).levels
        if isinstance(level, bool) or not isinstance(level, Integral) or not 1 <= level <= count:
            raise ValueError(f"row {number}, {key}, {name}: expected a level from 1 to {count}, got {level!r}")
    return [int(given.get(name, 0)) for name in schema.names]


def _row_length(length: Any, number: int) -> float:
    if isinstance(length, bool) or not isinstance(length, Real) or not 0 <= length < math.inf:
        raise ValueError(f"row {number}, length: expected a number of tokens, got {length!r}")
    return float(length)


def _percentiles(values: NDArray[np.float64]) -> list[float | None]:
    """2.5th and 97.5th percentile of the values that are defined."""
    values = values[~np.isnan(values)]
    if not len(values):
        return [None, None]
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None
