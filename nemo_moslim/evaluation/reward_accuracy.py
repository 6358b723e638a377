"""How well a reward model classifies: MOSLIM's Table 1 (preference and intensity accuracy) and per-head metrics.

numpy only at heart: nothing here imports torch. Shapes: B rows, N heads (preference dimensions), K levels of one head,
C classes (the sum of K over the heads). Levels are 1-based; 0 is "unlabelled".

Numbers that are undefined on the given rows (no rows, a constant rank correlation) are None, never NaN: the result
dumps with `json.dumps(..., allow_nan=False)`.
"""

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_moslim.preferences import PreferenceSchema

ECE_BINS = 15
SUM_TOLERANCE = 1e-3  # how far from one the given probabilities may sum
TABLE1_KEYS = ("preference_accuracy", "preference_majority", "intensity_accuracy", "intensity_majority")
RESERVED = (*TABLE1_KEYS, "per_source")  # keys beside the dimensions in the result


def reward_metrics(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    schema: PreferenceSchema,
    loss: str,
    sources: Sequence[str] | None = None,
    majority_classes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """All numbers of `evaluate task=reward`.

    Inside a head the classifier is p divided by its sum over the head (with `per_head` that sum is one already); of a
    tie the lowest level is taken.

    Args:
        probabilities: [B, C] float, the softmax that belongs to the loss.
        labels: [B, N] integer levels, 0 = unlabelled.
        schema: the dimensions, in head order.
        loss: `per_head` (each head sums to one), `joint` or `aligned` (all classes sum to one).
        sources: B strings that group the rows, or None.
        majority_classes: dimension -> the training set's most frequent level (`most_frequent_levels`); adds
            `majority_train`.

    Returns:
        Per dimension name: `accuracy`; `majority`, the accuracy of always answering the most frequent level of these
        rows, and `majority_train` likewise with the training set's; `macro_f1`, over the levels that occur in labels or
        predictions; `spearman`, of the expected level with the label; `ece`, with 15 equal bins of the top level's
        probability; `n` labelled rows; `confusion` [K][K], true level by predicted level; `per_level`, keyed by
        level, with `n`, `predicted`, `precision`, `recall`, `f1`; `reliability`, the bins of the ECE.
        `intensity_accuracy`: share of labelled (row, head) pairs whose level is exact (Table 1, Intensity);
        `intensity_majority`: that of always answering each head's most frequent level of these rows.
        `preference_accuracy`: share of rows with exactly one label whose dimension holds the highest of all C
        probabilities (Table 1, Preference); None without such rows. With `per_head` the heads do not compete in
        training, so heads with few levels win easily: compare it across models of one loss only;
        `preference_majority`: that of always answering the dimension that labels most of these rows.
        `per_source`: source -> the same numbers without `confusion`, `per_level` and `reliability`.

    Raises:
        ValueError: shapes do not fit, probabilities are not those of the loss, a level is out of range, a dimension
            of `majority_classes` is unknown, or a dimension's name is a key of the result.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    _check_inputs(probabilities, labels, schema, loss)
    majority_classes = _checked_majority(majority_classes, schema)
    if sources is not None and len(sources) != len(labels):
        raise ValueError(f"sources: expected {len(labels)} entries (one per row), got {len(sources)}")
    result = _group_metrics(probabilities, labels, schema, majority_classes, details=True)
    result["per_source"] = {}
    if sources is not None:
        names = np.array([str(source) for source in sources], dtype=object)
        for source in sorted(set(names)):
            rows = names == source
            result["per_source"][source] = _group_metrics(
                probabilities[rows], labels[rows], schema, majority_classes, details=False
            )
    return result


def hard_labels(labels: Sequence[Mapping[str, Any]], schema: PreferenceSchema) -> NDArray[np.int64]:
    """[B, N] levels from rows of dimension -> level or distribution over levels; 0 where a row has no label.

    A distribution stands for its most probable level; of a tie, the lowest.

    Raises:
        ValueError: unknown dimension, a level out of range, a distribution of the wrong length or not finite; names
            the row (counted from 0) and the dimension.
    """
    head_of = {name: head for head, name in enumerate(schema.names)}
    hard = np.zeros((len(labels), len(schema.names)), dtype=np.int64)
    for row, row_labels in enumerate(labels):
        for name, label in row_labels.items():
            if name not in head_of:
                raise ValueError(
                    f"label of row {row}: unknown dimension {name!r}, expected one of {', '.join(schema.names)}"
                )
            if label is None:
                continue
            count = schema.dimension(name).levels
            if isinstance(label, list | tuple | np.ndarray):
                shares = np.asarray(label, dtype=np.float64)
                if shares.shape != (count,) or not np.isfinite(shares).all():
                    raise ValueError(f"label of row {row}, {name}: expected {count} finite shares, got {label}")
                label = int(shares.argmax()) + 1
            if isinstance(label, bool) or not isinstance(label, Integral) or not 1 <= label <= count:
                raise ValueError(f"label of row {row}, {name}: expected a level from 1 to {count}, got {label!r}")
            hard[row, head_of[name]] = int(label)
    return hard


def most_frequent_levels(labels: NDArray[np.integer], schema: PreferenceSchema) -> dict[str, int]:
    """Dimension -> the most frequent level in [B, N] levels (0 = unlabelled), of a tie the lowest; where it has any."""
    counts = {name: np.bincount(labels[:, head])[1:] for head, name in enumerate(schema.names)}
    return {name: int(count.argmax()) + 1 for name, count in counts.items() if len(count)}


def predicted_levels(probabilities: NDArray[np.floating], schema: PreferenceSchema) -> NDArray[np.int64]:
    """[B, N]: the most probable level inside each head of [B, C] probabilities; of a tie, the lowest."""
    heads = [np.asarray(probabilities)[:, schema.slices[name]].argmax(-1) + 1 for name in schema.names]
    return np.stack(heads, axis=1).astype(np.int64)


def reliability_bins(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = ECE_BINS
) -> dict[str, list[Any]]:
    """Equal bins of confidence over [0, 1], each (low, high] and the first with 0.

    Returns:
        `count`, and per bin the means `confidence` and `accuracy` (None for an empty bin); lists of length `bins`.
    """
    index = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    confidence_sum = np.bincount(index, weights=confidence, minlength=bins)
    correct_sum = np.bincount(index, weights=np.asarray(correct, dtype=float), minlength=bins)
    return {
        "count": count.tolist(),
        "confidence": [float(s / n) if n else None for s, n in zip(confidence_sum, count, strict=True)],
        "accuracy": [float(s / n) if n else None for s, n in zip(correct_sum, count, strict=True)],
    }


def expected_calibration_error(reliability: Mapping[str, Sequence[Any]]) -> float | None:
    """Mean over rows of |accuracy - confidence| of their bin; None without rows."""
    bins = zip(reliability["count"], reliability["confidence"], reliability["accuracy"], strict=True)
    gaps = [(count, abs(accuracy - confidence)) for count, confidence, accuracy in bins if count]
    total = sum(count for count, _ in gaps)
    return sum(count * gap for count, gap in gaps) / total if total else None


def _group_metrics(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.integer],
    schema: PreferenceSchema,
    majority_classes: Mapping[str, int] | None,
    details: bool,
) -> dict[str, Any]:
    """The numbers of one group of rows, `per_source` left out."""
    result: dict[str, Any] = {}
    for head, name in enumerate(schema.names):
        rows = labels[:, head] > 0
        numbers = _head_metrics(probabilities[rows][:, schema.slices[name]], labels[rows, head], details)
        if majority_classes is not None:
            numbers["majority_train"] = _mean(labels[rows, head] == majority_classes.get(name))
        result[name] = numbers
    labelled = labels > 0
    exact = (predicted_levels(probabilities, schema) == labels)[labelled]
    single = labelled.sum(-1) == 1
    head_of_class = np.repeat(np.arange(len(schema.names)), [schema.dimension(name).levels for name in schema.names])
    winner = head_of_class[probabilities[single].argmax(-1)]
    asked = labelled[single].argmax(-1)
    levels = most_frequent_levels(labels, schema)
    majority = np.array([levels.get(name, 0) for name in schema.names])
    result["preference_accuracy"] = _mean(winner == asked)
    result["preference_majority"] = _mean(asked == np.bincount(asked, minlength=1).argmax())
    result["intensity_accuracy"] = _mean(exact)
    result["intensity_majority"] = _mean((majority == labels)[labelled])
    return result


def _head_metrics(head: NDArray[np.float64], truth: NDArray[np.integer], details: bool) -> dict[str, Any]:
    """One head's numbers over its labelled rows: head [n, K] probabilities, truth [n] levels."""
    n, levels = head.shape
    total = head.sum(-1, keepdims=True)
    head = np.where(total > 0, head / np.where(total > 0, total, 1.0), 1.0 / levels)
    predicted = head.argmax(-1) + 1
    correct = predicted == truth
    confusion = confusion_matrix(truth, predicted, levels)
    reliability = reliability_bins(head.max(-1) if n else np.zeros(0), correct)
    numbers: dict[str, Any] = {
        "accuracy": _mean(correct),
        "majority": float(confusion.sum(1).max() / n) if n else None,
        "macro_f1": _none_if_nan(macro_f1(confusion)),
        "spearman": spearman(head @ np.arange(1, levels + 1), truth),
        "ece": expected_calibration_error(reliability),
        "n": n,
    }
    if details:
        numbers["confusion"] = confusion.tolist()
        numbers["per_level"] = _per_level(confusion)
        numbers["reliability"] = reliability
    return numbers


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], levels: int) -> NDArray[np.int64]:
    """[K, K] counts: true level by predicted level, both 1-based [n]."""
    cells = (np.asarray(truth) - 1) * levels + np.asarray(predicted) - 1
    return np.bincount(cells, minlength=levels * levels).reshape(levels, levels).astype(np.int64)


def macro_f1(confusion: NDArray[np.number]) -> NDArray[np.float64] | float:
    """Mean F1 over the levels that occur in labels or predictions (scikit-learn's default choice of classes).

    Args:
        confusion: [..., K, K] counts, true by predicted; leading dimensions are kept.

    Returns:
        [...] float, NaN where the matrix is empty.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    support = confusion.sum(-1) + confusion.sum(-2)  # [..., K]: labelled plus predicted
    present = support > 0
    f1 = np.divide(2.0 * hits, support, out=np.zeros_like(hits), where=present)
    count = present.sum(-1)
    return np.where(count > 0, f1.sum(-1) / np.maximum(count, 1), np.nan)[()]


def spearman(score: NDArray[np.floating], truth: NDArray[np.integer]) -> float | None:
    """Rank correlation; None where it is undefined (fewer than two rows, or one side constant)."""
    if len(truth) < 2 or np.ptp(score) == 0 or np.ptp(truth) == 0:
        return None
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _none_if_nan(float(spearmanr(score, truth).statistic))


def _per_level(confusion: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each level, keyed by the level as text (JSON keys are text)."""
    result: dict[str, dict[str, Any]] = {}
    for index in range(len(confusion)):
        hits = int(confusion[index, index])
        actual, predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        result[str(index + 1)] = {
            "n": actual,
            "predicted": predicted,
            "precision": hits / predicted if predicted else None,
            "recall": hits / actual if actual else None,
            "f1": 2 * hits / (actual + predicted) if actual + predicted else None,
        }
    return result


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _none_if_nan(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _check_inputs(
    probabilities: NDArray[np.float64], labels: NDArray[Any], schema: PreferenceSchema, loss: str
) -> None:
    rows, heads, classes = len(probabilities), len(schema.names), schema.num_classes
    clash = [name for name in schema.names if name in RESERVED]
    if clash:
        raise ValueError(f"preferences: {clash[0]!r} is a key of the metrics, give the dimension another name")
    if loss not in ("per_head", "joint", "aligned"):
        raise ValueError(f"loss: expected per_head, joint or aligned, got {loss!r}")
    if probabilities.shape != (rows, classes):
        raise ValueError(f"probabilities: expected shape [B, {classes}], got {list(probabilities.shape)}")
    if labels.shape != (rows, heads) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected integers of shape [{rows}, {heads}], got {labels.dtype} {list(labels.shape)}"
        )
    for head, name in enumerate(schema.names):
        levels = schema.dimension(name).levels
        outside = np.flatnonzero((labels[:, head] < 0) | (labels[:, head] > levels))
        if len(outside):
            raise ValueError(
                f"labels: expected {name} levels 0 (unlabelled) to {levels}, "
                f"got {labels[outside[0], head]} in row {outside[0]}"
            )
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(1) | (probabilities < 0).any(1))[0])
        raise ValueError(
            f"probabilities: expected finite numbers of at least 0, got {probabilities[row].tolist()} in row {row}"
        )
    spans = {name: schema.slices[name] for name in schema.names} if loss == "per_head" else {"all classes": slice(None)}
    for name, span in spans.items():
        total = probabilities[:, span].sum(-1)
        off = np.flatnonzero(np.abs(total - 1.0) > SUM_TOLERANCE)
        if len(off):
            raise ValueError(
                f"probabilities: with loss={loss} expected a sum of 1 over {name}, "
                f"got {total[off[0]]:.4g} in row {off[0]}; were they computed for another loss?"
            )


def _checked_majority(majority: Mapping[str, int] | None, schema: PreferenceSchema) -> Mapping[str, int] | None:
    for name, level in (majority or {}).items():
        if name not in schema.names or not 1 <= level <= schema.dimension(name).levels:
            raise ValueError(
                f"majority_classes: {name}: {level!r} is no dimension and level of the preferences "
                f"({', '.join(schema.names)})"
            )
    return majority
