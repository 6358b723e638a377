"""The floor a reward model must beat: TF-IDF of word 1- and 2-grams and logistic regression, one per dimension."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_moslim.data.chat import Prompt, as_messages
from nemo_moslim.evaluation.reward_accuracy import hard_labels
from nemo_moslim.preferences import PreferenceSchema

MAX_FEATURES = 200_000
INVERSE_REGULARISATION = 4.0
MAX_ITERATIONS = 1000


def row_text(prompt: Prompt, response: str) -> str:
    """The text that the baseline reads of one row: of a dialogue its messages, then the answer."""
    return "\n".join([*(message["content"] for message in as_messages(prompt)), response])


def text_baseline(
    train_rows: Sequence[Mapping[str, Any]], validation_rows: Sequence[Mapping[str, Any]], schema: PreferenceSchema
) -> NDArray[np.float64]:
    """Fit on prepared training rows, return class probabilities for the validation rows.

    Args:
        train_rows, validation_rows: mappings with `prompt` (text or messages), `response` (text); training rows also
            have `labels`, dimension -> level or distribution (a distribution counts as its most probable level).
        schema: the dimensions, in head order.

    Returns:
        [B, C] probabilities, each head summing to one, for every validation row, labelled or not: what
        `reward_metrics(..., loss="per_head")` reads. A head without training rows is uniform; one with a single
        level in training is certain of it.

    Raises:
        ValueError: see `hard_labels`; or no training row has a label.
    """
    labels = hard_labels([row["labels"] for row in train_rows], schema)
    train_texts = [row_text(row["prompt"], row["response"]) for row in train_rows]
    texts = [row_text(row["prompt"], row["response"]) for row in validation_rows]
    return fit_text_baseline(train_texts, labels, texts, schema)


def fit_text_baseline(
    train_texts: Sequence[str], train_labels: NDArray[np.integer], texts: Sequence[str], schema: PreferenceSchema
) -> NDArray[np.float64]:
    """`text_baseline` on arrays: R training texts, their [R, N] levels (0 = unlabelled), B texts -> [B, C]."""
    if train_labels.shape != (len(train_texts), len(schema.names)):
        raise ValueError(
            f"labels: expected shape [{len(train_texts)}, {len(schema.names)}], got {list(train_labels.shape)}"
        )
    if not (train_labels > 0).any():
        raise ValueError("text baseline: no training row carries a label; give a ratings file with labelled rows")
    result = np.zeros((len(texts), schema.num_classes))
    for head, name in enumerate(schema.names):
        rows = np.flatnonzero(train_labels[:, head])
        head_texts = [train_texts[row] for row in rows]
        levels = schema.dimension(name).levels
        result[:, schema.slices[name]] = _fit_head(head_texts, train_labels[rows, head], texts, levels)
    return result


def _fit_head(train: list[str], truth: NDArray[np.integer], texts: Sequence[str], levels: int) -> NDArray[np.float64]:
    """[B, K] probabilities of one head, its features chosen on its own training rows."""
    seen = np.unique(truth)
    if len(seen) == 0 or len(texts) == 0:
        return np.full((len(texts), levels), 1.0 / levels)
    result = np.zeros((len(texts), levels))
    if len(seen) == 1:
        result[:, seen[0] - 1] = 1.0
        return result
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    counter, weights = CountVectorizer(ngram_range=(1, 2)), TfidfTransformer(sublinear_tf=True)
    counts = counter.fit_transform(train)
    kept = most_frequent(counts.sum(0).A1, MAX_FEATURES)
    classifier = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS)
    classifier.fit(weights.fit_transform(counts[:, kept]), truth)
    chosen = weights.transform(counter.transform(texts)[:, kept])
    result[:, classifier.classes_ - 1] = classifier.predict_proba(chosen)
    return result


def most_frequent(counts: NDArray[np.integer], limit: int) -> NDArray[np.integer]:
    """The columns, ascending, of the `limit` terms that occur most; `counts` [terms] in the terms' alphabetical order.

    Of terms that occur as often as each other the first in the alphabet are kept. (`max_features` of scikit-learn
    leaves these ties to a sort that is not stable: to the machine.)
    """
    return np.sort(np.argsort(-counts, kind="stable")[:limit])
