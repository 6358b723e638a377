"""`evaluate.py task=reward`: a reward model on rated answers, measured like the paper's Table 1."""

import json
from pathlib import Path

import numpy as np

from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
from nemo_moslim.data.ratings import load_ratings
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.evaluation.plots import save_confusion_plot, save_reliability_plot
from nemo_moslim.evaluation.reward_accuracy import hard_labels, most_frequent_levels, reward_metrics
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.layout_checks import row_multiple
from nemo_moslim.parallel.start import start
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import score_rows
from nemo_moslim.run_folder import write_atomically


def evaluate_reward(config: EvaluateConfig) -> None:
    """Score `data` with `run` and write `output` (JSON) with plots beside it.

    Raises:
        ValueError: a missing key, data that the schema does not fit, a model that is none.
    """
    for key in ("run", "data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=reward needs {key}=…")
    start(config.parallel, 1, config.cpu_threads)
    model, tokenizer = open_reward_model(config.run, config.parallel, config.precision)
    schema = model.config.schema
    ratings = load_ratings(config.data, schema)
    majority_classes = None
    if config.train:
        learnt = hard_labels([row["labels"] for row in load_ratings(config.train, schema)], schema)
        majority_classes = most_frequent_levels(learnt, schema)
    encoder = ChatEncoder(load_tokenizer(tokenizer))
    multiple = row_multiple(config.parallel, config.precision)
    dataset = RewardDataset.build(
        ratings, schema, encoder, model.config.seq_length, config.long_rows, multiple, origin=config.data
    )
    probabilities = score_rows(model, dataset, config.batch_size).cpu().numpy()
    if is_rank_zero():
        kept = [ratings[i]["labels"] for i in dataset.rows.kept]
        sources = dataset.sources if any(dataset.sources) else None
        metrics = reward_metrics(
            probabilities, hard_labels(kept, schema), schema, model.config.loss, sources, majority_classes
        )
        save_predictions(config.output, probabilities, dataset.rows.kept)
        metrics["measured"] = {"run": config.run, "data": config.data}
        metrics["rows"] = {"scored": len(dataset), "cut": dataset.rows.cut, "dropped": dataset.rows.dropped}
        write_report(metrics, schema, config)
    leave_process_group()


def predictions_file(output: str | Path) -> Path:
    """Where `task=reward` with this output keeps the probabilities of every row."""
    output = Path(output)
    return output.with_name(output.stem + "_predictions.npz")


def save_predictions(output: str, probabilities: np.ndarray, rows: np.ndarray) -> None:
    """Probabilities [R, C] and the index of each of the R rows in the data file, beside the JSON file."""
    file = predictions_file(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, probabilities=probabilities, rows=rows)


def write_report(metrics: dict, schema, config: EvaluateConfig) -> None:
    """The JSON file, two plots beside it, and a table on the terminal."""
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    if config.plots:
        name = Path(config.run).name
        save_confusion_plot(metrics, schema, output.with_name(output.stem + "_confusion.png"), f"{name}: confusion")
        save_reliability_plot(
            metrics, schema, output.with_name(output.stem + "_reliability.png"), f"{name}: reliability"
        )
    print_metrics(metrics, schema)


def print_metrics(metrics: dict, schema) -> None:
    """One line per head."""
    from rich.console import Console
    from rich.table import Table

    table = Table("dimension", "n", "accuracy", "majority", "macro-F1", "Spearman", "ECE")
    for dimension in schema.dimensions:
        row = metrics[dimension.name]
        cells = [row[key] for key in ("accuracy", "majority", "macro_f1", "spearman", "ece")]
        table.add_row(dimension.name, str(row["n"]), *("-" if cell is None else f"{cell:.4f}" for cell in cells))
    console = Console()
    console.print(table)
    for kind in ("preference", "intensity"):
        values = [metrics[f"{kind}_{what}"] for what in ("accuracy", "majority")]
        accuracy, majority = ("-" if value is None else f"{value:.4f}" for value in values)
        console.print(f"{kind} accuracy: {accuracy} (majority {majority})")
