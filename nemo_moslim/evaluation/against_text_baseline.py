"""`evaluate.py task=text_baseline`: a reward model against TF-IDF with logistic regression on the same rows."""

import json
from pathlib import Path

import numpy as np

from nemo_moslim.config import to_plain
from nemo_moslim.data.ratings import load_ratings
from nemo_moslim.evaluation.agreement import accuracy
from nemo_moslim.evaluation.baseline_text import text_baseline
from nemo_moslim.evaluation.bootstrap import paired_bootstrap, paired_bootstrap_macro_f1
from nemo_moslim.evaluation.reward_accuracy import confusion_matrix, hard_labels, macro_f1, predicted_levels
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import write_atomically

SEED = 1


def against_text_baseline(config: EvaluateConfig) -> None:
    """Train the baseline on `train`, predict `data`, and compare with the predictions beside `result`.

    Writes `output`: per dimension n, both accuracies and macro-F1s, the majority class of train and of data, and
    paired-bootstrap 95 % intervals of the differences (model minus baseline). Also prints them.

    Raises:
        ValueError: a missing key or file, or predictions of other rows.
    """
    from nemo_moslim.evaluation.evaluate_reward import predictions_file

    for key in ("train", "data", "result", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=text_baseline needs {key}=FILE")
    schema = PreferenceSchema.from_dict(to_plain(config.preferences))
    train, rows = load_ratings(config.train, schema), load_ratings(config.data, schema)
    file = predictions_file(config.result)
    if not file.is_file():
        raise ValueError(f"result={config.result}: no {file.name} beside it; run task=reward with that output first")
    stored = np.load(file)
    if stored["rows"].max() >= len(rows):
        raise ValueError(f"result={config.result}: its predictions are of another file than data={config.data}")
    rows = [rows[i] for i in stored["rows"]]
    model = predicted_levels(stored["probabilities"], schema)
    baseline = predicted_levels(text_baseline(train, rows, schema), schema)
    train_labels = hard_labels([row["labels"] for row in train], schema)
    labels = hard_labels([row["labels"] for row in rows], schema)
    report = {
        dimension.name: compare_head(
            labels[:, head], model[:, head], baseline[:, head], train_labels[:, head], dimension.levels, config
        )
        for head, dimension in enumerate(schema.dimensions)
    }
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(report, indent=2, allow_nan=False) + "\n")
    for name, head in report.items():
        print(head_line(name, head))


def head_line(name: str, head: dict) -> str:
    """One head's comparison for the terminal; a dash is what its rows do not define."""
    shown = {key: _number(value, ".4f") for key, value in head.items() if not isinstance(value, dict)}
    gain, f1_gain = (
        f"[{_number(head[key]['low'], '+.4f')}, {_number(head[key]['high'], '+.4f')}]"
        for key in ("accuracy_gain", "macro_f1_gain")
    )
    return (
        f"{name} (n={head['n']}): accuracy {shown['accuracy']} against {shown['baseline_accuracy']} {gain}, "
        f"majority {shown['majority']}, of train {shown['majority_train']}; "
        f"macro-F1 {shown['macro_f1']} against {shown['baseline_macro_f1']} {f1_gain}"
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def compare_head(
    truth: np.ndarray, model: np.ndarray, baseline: np.ndarray, train: np.ndarray, levels: int, config: EvaluateConfig
) -> dict:
    """One head's comparison; levels are 1-based, 0 is unlabelled; all arrays int [R], `train` int [rows of train].

    None is what cannot be said: everything but n without labelled rows, majority_train without them in train.
    """
    rated, learnt = truth > 0, train[train > 0]
    truth, model, baseline = truth[rated], model[rated], baseline[rated]
    most_common = np.full_like(truth, np.bincount(learnt, minlength=levels + 1).argmax())
    counts = np.bincount(truth, minlength=levels + 1)[1:]
    samples = config.bootstrap_samples
    return {
        "n": int(rated.sum()),
        "accuracy": accuracy(truth, model),
        "baseline_accuracy": accuracy(truth, baseline),
        "majority": float(counts.max() / counts.sum()) if len(truth) else None,
        "majority_train": accuracy(truth, most_common) if len(learnt) else None,
        "accuracy_gain": paired_bootstrap(model == truth, baseline == truth, samples, SEED),
        "macro_f1": _macro_f1(truth, model, levels),
        "baseline_macro_f1": _macro_f1(truth, baseline, levels),
        "macro_f1_gain": paired_bootstrap_macro_f1(truth, model, baseline, levels, samples, SEED),
    }


def _macro_f1(truth: np.ndarray, predicted: np.ndarray, levels: int) -> float | None:
    return float(macro_f1(confusion_matrix(truth, predicted, levels))) if len(truth) else None
