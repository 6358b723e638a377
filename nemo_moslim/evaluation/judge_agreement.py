"""`evaluate.py task=judge_agreement`: a judge against scores that GPT-4 gave, or against a reward model as annotators.

`data` decides: judgments in FastChat's layout are judged again and compared; rated answers are annotated by the judge
and by the reward model, and both are measured on the rows' own labels (the paper's Figure 9).

    OUTPUT/agreement.json, OUTPUT/agreement.png, OUTPUT/judgments.jsonl
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_moslim.config import to_plain
from nemo_moslim.console import table_console
from nemo_moslim.data.ratings import load_ratings
from nemo_moslim.evaluation.agreement import accuracy, shown, spearman, weighted_kappa, with_interval
from nemo_moslim.evaluation.agreement_plots import plot_annotators, plot_judge
from nemo_moslim.evaluation.bootstrap import paired_bootstrap
from nemo_moslim.evaluation.fastchat import SCORES, Judgment, holds_judgments, read_judgments
from nemo_moslim.evaluation.reward_accuracy import hard_labels
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.judging.open_judge import needs_ranks, open_judge
from nemo_moslim.judging.verdicts import Answer, Judge, Verdicts, check_scored, count_statuses, level_of
from nemo_moslim.judging_config import RubricConfig
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.preferences import Dimension, PreferenceSchema
from nemo_moslim.run_folder import write_atomically


def judge_agreement(config: EvaluateConfig) -> None:
    """Judge the answers of `data`, write the comparison to `output` and print it.

    Raises:
        ValueError: a missing key, a row that cannot be used, a judge that cannot be.
    """
    for key in ("data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=judge_agreement needs {key}=…")
    if holds_judgments(config.data):
        against_scores(config)
    else:
        against_reward_model(config)


def against_scores(config: EvaluateConfig) -> None:
    """A judge and the scores that the file's judge gave the same answers."""
    names = config.dimensions or ["helpfulness"]
    if len(names) > 1 or names[0] not in config.rubrics:
        raise ValueError(f"dimensions={names}: scores of FastChat are of one quality; give one of {[*config.rubrics]}")
    judgments, unscored = read_judgments(config.data)
    judgments = _sampled(judgments, config)
    judge = _started(config)
    if not judge.on_every_rank:
        leave_process_group()
    if judge.on_every_rank or is_rank_zero():
        verdicts = judge.judge([judgment.answer for judgment in judgments], names)
        check_scored([verdict[names[0]] for verdict in verdicts])
        if is_rank_zero():
            report = score_report(judgments, verdicts, names[0], config)
            report |= {"rows_without_score": unscored, "judge": judge.report()}
            _write(report, _judgment_rows(judgments, verdicts), config)
            if config.plots:
                plot_judge(report, Path(config.output) / "agreement.png")
            print_scores(report)
    leave_process_group()


def score_report(
    judgments: Sequence[Judgment], verdicts: Sequence[Verdicts], dimension: str, config: EvaluateConfig
) -> dict[str, Any]:
    """Spearman of the scores and quadratically weighted kappa of levels, over all, per turn and per model.

    For kappa both scales are cut into as many levels of equal width as the rubric has scores. The correlation of the
    models' means says whether both judges put models in the same order.
    """
    rubric = config.rubrics[dimension]
    kept = [(j, v[dimension].score) for j, v in zip(judgments, verdicts, strict=True) if v[dimension].score is not None]
    found, scores = [judgment for judgment, _ in kept], np.array([score for _, score in kept])
    given = np.array([judgment.score for judgment in found])
    levels = Dimension("score", len(rubric.meanings), SCORES)
    own = Dimension(dimension, len(rubric.meanings), (rubric.lowest, rubric.highest))
    a = np.array([levels.level_of(float(score)) for score in given], dtype=int)
    b = np.array([own.level_of(_nearest(score, rubric)) for score in scores], dtype=int)

    def agreement(rows: np.ndarray, samples: int = config.bootstrap_samples) -> dict[str, Any]:
        settings = ([found[i].question for i in rows], samples, config.seed)
        return {"n": len(rows), "spearman": with_interval(spearman, given[rows], scores[rows], *settings),
                "kappa": with_interval(weighted_kappa, a[rows], b[rows], *settings)}  # fmt: skip

    def parts(of: Sequence[Any], *samples: int) -> dict[str, Any]:
        rows = {part: np.flatnonzero([other == part for other in of]) for part in sorted(set(of))}
        return {str(part): agreement(places, *samples) for part, places in rows.items()}

    turns, models = [j.turn for j in found], [j.model for j in found]
    means = {
        model: {"given": float(given[rows].mean()), "judge": float(scores[rows].mean()), "n": int(rows.sum())}
        for model in sorted(set(models))
        for rows in [np.array([m == model for m in models])]
    }
    return {
        "data": config.data, "dimension": dimension, "scale": [rubric.lowest, rubric.highest],
        "verdicts": count_statuses(v[dimension] for v in verdicts), **agreement(np.arange(len(found))),
        "per_turn": parts(turns), "per_model": parts(models, 0), "model_means": means,
        "spearman_of_model_means": spearman([m["given"] for m in means.values()], [m["judge"] for m in means.values()]),
        "confusion": _table(given.round().astype(int), b, int(SCORES[1]), len(rubric.meanings)),
    }  # fmt: skip


def against_reward_model(config: EvaluateConfig) -> None:
    """The judge and the reward model as annotators of rated answers."""
    if config.judge in (None, "reward_model") or not config.reward:
        raise ValueError(
            "task=judge_agreement compares two annotators of rated answers: give reward=RUN|HF_DIR|http://… and "
            "judge=endpoint|world|scripted"
        )
    schema = PreferenceSchema.from_dict(to_plain(config.preferences))
    rows = _sampled(load_ratings(config.data, schema), config)
    names = config.dimensions or [d.name for d in schema.dimensions if d.levels > 1]
    for name in names:
        if schema.dimension(name).levels < 2 or name not in config.rubrics:
            raise ValueError(f"dimensions: {name} needs two levels or more (preferences=…), and an entry in rubrics")
    judge = open_judge(config)
    reward = _started(replace(config, judge="reward_model", reward_reads="most_likely"))
    annotations = {}
    if reward.on_every_rank or is_rank_zero():
        annotations["reward_model"] = annotated(reward, rows, names)
    leave_process_group()
    if is_rank_zero():
        annotations[config.judge] = annotated(judge, rows, names)
        check_scored([verdict for found in annotations[config.judge] for verdict in found.values()])
        report = annotator_report(rows, annotations, schema, names, config)
        report |= {"data": config.data, "annotators": {"reward_model": reward.report(), config.judge: judge.report()}}
        _write(report, _annotated_rows(rows, annotations), config)
        if config.plots:
            plot_annotators(report, names, list(annotations), Path(config.output) / "agreement.png")
        print_annotators(report, names, list(annotations))


def annotated(judge: Judge, rows: Sequence[dict], names: Sequence[str]) -> list[Verdicts]:
    """A verdict for every labelled dimension of every row; no other is asked for."""
    verdicts: list[Verdicts] = [{} for _ in rows]
    together: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        together[tuple(name for name in names if name in row["labels"])].append(index)
    for labelled, indices in together.items():
        if not labelled:
            continue
        answers = [Answer(rows[i]["prompt"], rows[i]["response"]) for i in indices]
        for i, found in zip(indices, judge.judge(answers, labelled), strict=True):
            verdicts[i] = found
    return verdicts


def annotator_report(
    rows: Sequence[dict], annotations: dict[str, list[Verdicts]], schema: PreferenceSchema, names: Sequence[str],
    config: EvaluateConfig,
) -> dict[str, Any]:  # fmt: skip
    """Per dimension: each annotator against the labels, and the two against each other, on rows that both scored.

    Scores become levels as ratings do: the scale of the rubric laid on the dimension's score_range, then `level_of`.
    """
    labels = hard_labels([row["labels"] for row in rows], schema)
    report: dict[str, Any] = {"dimensions": {}}
    first, second = annotations
    for name in names:
        truth_of = labels[:, schema.names.index(name)]
        levels = {
            annotator: np.array([level_of(v.get(name), schema.dimension(name), config.rubrics[name]) for v in verdicts])
            for annotator, verdicts in annotations.items()
        }
        rated = np.flatnonzero((truth_of > 0) & (levels[first] > 0) & (levels[second] > 0))
        truth, clusters = truth_of[rated], [str(i) for i in rated]
        settings = (clusters, config.bootstrap_samples, config.seed)
        by = {annotator: found[rated] for annotator, found in levels.items()}
        counts = np.bincount(truth_of[truth_of > 0], minlength=2)
        difference = paired_bootstrap(by[first] == truth, by[second] == truth, config.bootstrap_samples, config.seed)
        report["dimensions"][name] = {
            "labelled": int((truth_of > 0).sum()), "n": len(rated),
            "majority": float(counts.max() / counts.sum()) if counts.sum() else None,
            "annotators": {
                annotator: {
                    "verdicts": count_statuses(v[name] for v in annotations[annotator] if name in v),
                    "accuracy": with_interval(accuracy, truth, found, *settings),
                    "kappa": with_interval(weighted_kappa, truth, found, *settings),
                    "spearman": with_interval(spearman, truth, found, *settings),
                }
                for annotator, found in by.items()
            },
            "between": {"agreement": with_interval(accuracy, by[first], by[second], *settings),
                        "kappa": with_interval(weighted_kappa, by[first], by[second], *settings)},
            f"accuracy_{first}_minus_{second}": difference,
        }  # fmt: skip
    return report


def print_scores(report: dict[str, Any]) -> None:
    """Overall, per turn and per model."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "n", "Spearman (95 %)", "weighted kappa (95 %)")
    parts = {"all": report, **{f"turn {k}": v for k, v in report["per_turn"].items()}, **report["per_model"]}
    for name, part in parts.items():
        table.add_row(Text(name), str(part["n"]), shown(part["spearman"]), shown(part["kappa"]))
    console = table_console()
    console.print(table)
    order = report["spearman_of_model_means"]
    console.print(f"Spearman of the models' means: {'-' if order is None else f'{order:.3f}'}")
    console.print(f"verdicts: {report['verdicts']}")


def print_annotators(report: dict[str, Any], names: Sequence[str], annotators: Sequence[str]) -> None:
    """A line per dimension and annotator."""
    from rich.table import Table

    table = Table("dimension", "annotator", "n", "accuracy (95 %)", "kappa with labels", "between the two: kappa")
    for name in names:
        entry = report["dimensions"][name]
        for annotator in annotators:
            own = entry["annotators"][annotator]
            table.add_row(name, annotator, str(entry["n"]), shown(own["accuracy"]), shown(own["kappa"]),
                          shown(entry["between"]["kappa"]))  # fmt: skip
        majority = "-" if entry["majority"] is None else f"{entry['majority']:.3f}"
        table.add_row(name, "majority level", str(entry["labelled"]), majority, "", "")
    table_console().print(table)


def _started(config: EvaluateConfig) -> Judge:
    """The judge, with this launch's ranks made ready for it where it needs them."""
    if needs_ranks(config):
        from nemo_moslim.parallel.start import start

        start(config.parallel, config.seed, config.cpu_threads)
    return open_judge(config)


def _sampled(rows: list, config: EvaluateConfig) -> list:
    if config.limit is None or config.limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(config.seed).sample(range(len(rows)), config.limit))]


def _nearest(score: float, rubric: RubricConfig) -> int:
    return int(min(rubric.highest, max(rubric.lowest, np.floor(score + 0.5))))


def _table(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> list[list[int]]:
    """Counts [height][width] of 1-based pairs."""
    table = np.zeros((height, width), dtype=int)
    np.add.at(table, (rows - 1, columns - 1), 1)
    return table.tolist()


def _judgment_rows(judgments: Sequence[Judgment], verdicts: Sequence[Verdicts]) -> list[dict[str, Any]]:
    return [
        {"question": j.question, "model": j.model, "turn": j.turn, "prompt": j.answer.prompt,
         "response": j.answer.response, "given": j.score, **_plain(v)}
        for j, v in zip(judgments, verdicts, strict=True)
    ]  # fmt: skip


def _annotated_rows(rows: Sequence[dict], annotations: dict[str, list[Verdicts]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "response": row["response"], "labels": row["labels"],
         **{annotator: _plain(verdicts[index]) for annotator, verdicts in annotations.items()}}
        for index, row in enumerate(rows)
    ]  # fmt: skip


def _plain(verdicts: Verdicts) -> dict[str, Any]:
    plain: dict[str, Any] = {name: verdict.score for name, verdict in verdicts.items()}
    plain["status"] = {name: verdict.status for name, verdict in verdicts.items()}
    plain["reason"] = {name: verdict.reason for name, verdict in verdicts.items() if verdict.reason}
    return plain


def _write(report: dict[str, Any], rows: list[dict[str, Any]], config: EvaluateConfig) -> None:
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "agreement.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_atomically(output / "judgments.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
