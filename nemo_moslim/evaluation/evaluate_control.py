"""`evaluate.py task=controllability`: a policy's answers against the levels that its prompts ask for."""

import json
from pathlib import Path

from nemo_moslim.config import to_plain
from nemo_moslim.data.ratings import read_prompts
from nemo_moslim.data.world import grade_rows, schema_labels
from nemo_moslim.evaluation.control_plots import plot_confusion, plot_control, plot_pairs
from nemo_moslim.evaluation.controllability import check_names, control_report
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.judging.open_judge import open_judge
from nemo_moslim.judging.verdicts import Answer, Judge, check_scored, count_statuses, level_of
from nemo_moslim.judging_config import RubricConfig
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.start import start
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.answer import open_answerer
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalScorer
from nemo_moslim.run_folder import write_atomically

ASKED = ("endpoint", "scripted")  # judges whose scores become levels


def evaluate_control(config: EvaluateConfig) -> None:
    """Answer the prompts of `data`, judge the answers, write control.json, answers.jsonl and plots to `output`.

    Raises:
        ValueError: a missing key, prompts that the schema does not fit, a judge that cannot be.
    """
    for key in ("policy", "data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=controllability needs {key}=…")
    schema, scorer = PreferenceSchema.from_dict(to_plain(config.preferences)), None
    if not config.reward:  # which brings its own
        check_names(schema)
    start(config.parallel, config.seed, config.cpu_threads)
    if config.reward:
        model, tokenizer = open_reward_model(config.reward, config.parallel, config.precision)
        scorer = LocalScorer(model, tokenizer, "total", config.batch_size, offload=False)
        schema = scorer.schema
        check_names(schema)
    rows = read_prompts(config.data, schema)
    judge = chosen_judge(config, rows)
    asked = open_judge(config) if judge in ASKED else None
    every_level = at_every_level(rows[: config.every_level], schema)
    rows = [*rows, *({**row, "preferences": {}} for row in rows[: config.untagged]), *every_level]
    seen = seen_combinations(config.train, schema)
    answerer = open_answerer(config.policy, config.parallel, config.precision, config.generation)
    texts, lengths, prompts_cut = answerer.answer(rows, schema, config.seed, config.long_prompts, config.data)
    told: dict = {"judge": judge, "prompts_cut": prompts_cut}
    if asked:
        leave_process_group()  # a server may take long: the other ranks need not wait
        if not is_rank_zero():
            return
        levels, verdicts = levels_by_verdict(asked, rows, texts, schema, config.rubrics)
        told |= verdicts
    else:
        levels, cut = judged(judge, rows, texts, schema, scorer)
        told["cut_for_scoring"] = cut / len(rows)
    graded = [
        {
            "prompt": row["prompt"],
            "preferences": row["preferences"],
            "response": text,
            "levels": obtained,
            "length": length,
            "unseen": bool(seen) and frozenset(row["preferences"].items()) not in seen,
        }
        if obtained
        else None
        for row, text, obtained, length in zip(rows, texts, levels, lengths, strict=True)
    ]
    if is_rank_zero():
        counted = len(graded) - len(every_level)
        kept = [[row for row in part if row] for part in (graded[:counted], graded[counted:])]
        write_control(*kept, schema, told, config)
    leave_process_group()


def at_every_level(rows: list[dict], schema: PreferenceSchema) -> list[dict]:
    """The prompts, each once for every level of every dimension alone."""
    asked = [{d.name: level} for d in schema.dimensions for level in range(1, d.levels + 1)]
    return [{**row, "preferences": preferences} for row in rows for preferences in asked]


def chosen_judge(config: EvaluateConfig, rows: list[dict]) -> str:
    """world, reward_model, or one of `ASKED`.

    Raises:
        ValueError: the reward model is to judge and none is given, or prompts that the world does not know.
    """
    from_world = all(row.get("source") == "world" for row in rows)
    judge = config.judge or ("world" if from_world else "reward_model")
    if judge == "reward_model" and not config.reward:
        raise ValueError(
            "reward is not set: answers to these prompts are judged by a reward model, give reward=RUN|HF_DIR"
        )
    if judge == "world" and not from_world:
        raise ValueError(f"judge=world: prompts of {config.data} are not the world's; use judge=reward_model")
    return judge


def seen_combinations(train: str | None, schema: PreferenceSchema) -> set[frozenset]:
    """The combinations of levels that training prompts ask for, whatever their order."""
    rows = read_prompts(train, schema) if train else []
    return {frozenset(row["preferences"].items()) for row in rows}


def judged(
    judge: str, rows: list[dict], texts: list[str], schema: PreferenceSchema, scorer: LocalScorer | None
) -> tuple[list[dict[str, int]], int]:
    """The obtained level of every dimension of the schema, per answer; how many the judge could not read whole."""
    if judge == "world":
        pairs = ({"prompt": row["prompt"], "response": text} for row, text in zip(rows, texts, strict=True))
        return [schema_labels(graded, schema) for graded in grade_rows(pairs)], 0
    prompts = [row["prompt"] for row in rows]
    scores = scorer.score(prompts, texts, [{}] * len(rows))
    return [dict(zip(schema.names, row, strict=True)) for row in scores.obtained.tolist()], scores.cut


def levels_by_verdict(
    judge: Judge, rows: list[dict], texts: list[str], schema: PreferenceSchema, rubrics: dict[str, RubricConfig]
) -> tuple[list[dict[str, int] | None], dict]:
    """Levels of every dimension per answer from a judge's scores, and what control.json tells of the judging.

    An answer that lacks a score on any dimension has no levels (None): it is left out, and counted.

    Raises:
        ValueError: a dimension without a rubric, or no answer with a score.
    """
    for name in schema.names:
        if name not in rubrics:
            raise ValueError(f"rubrics has no {name!r}: say what it is judged by with +rubrics.{name}={{…}}")
    answers = [Answer(row["prompt"], text) for row, text in zip(rows, texts, strict=True)]
    verdicts = judge.judge(answers, schema.names)
    check_scored([verdict for found in verdicts for verdict in found.values()])
    found = [{d.name: level_of(v[d.name], d, rubrics[d.name]) for d in schema.dimensions} for v in verdicts]
    levels = [row if all(row.values()) else None for row in found]
    counts = {name: count_statuses(v[name] for v in verdicts) for name in schema.names}
    return levels, {"left_out": levels.count(None), "verdicts": counts, "judged_by": judge.report()}


def write_control(
    graded: list[dict], every_level: list[dict], schema: PreferenceSchema, told: dict, config: EvaluateConfig
) -> None:
    """The answers, those at every level, the report on them, three plots and a table on the terminal.

    `told` goes into the report's "overall": `judge`, `prompts_cut`, and what the judge has to tell, of all rows.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    # first what took long: nothing that the report trips over may cost it
    for name, rows in (("answers", graded), ("every_level", every_level)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(output / f"{name}.jsonl", lines)
    report = control_report(graded, schema, config.bootstrap_samples, config.seed)
    report["overall"] |= {**told, "policy": config.policy, "data": config.data}
    write_atomically(output / "control.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    if config.plots:
        plot_control(report, schema, output / "control.png")
        plot_confusion(report, schema, output / "control_confusion.png")
        plot_pairs(report, schema, output / "control_pairs.png")
    print_control(report, schema)


def print_control(report: dict, schema: PreferenceSchema) -> None:
    """One line per dimension."""
    from rich.console import Console
    from rich.table import Table

    table = Table("dimension", "n", "Spearman", "95 %", "hit rate", "95 %", "leakage")
    for name in schema.names:
        entry = report[name]
        intervals = ["-" if None in entry["intervals"][k] else "{:.3f} to {:.3f}".format(*entry["intervals"][k])
                     for k in ("spearman", "hit_rate")]  # fmt: skip
        leakage = " ".join(f"{other} {_number(value)}" for other, value in entry["leakage"].items())
        table.add_row(name, str(entry["n"]), _number(entry["spearman"]), intervals[0], _number(entry["hit_rate"]),
                      intervals[1], leakage)  # fmt: skip
    console = Console()
    console.print(table)
    overall = report["overall"]
    if overall["prompts_cut"] or overall.get("cut_for_scoring"):
        console.print(
            f"prompts that lost their beginning: {overall['prompts_cut']}; answers that the reward model could not "
            f"read whole: {overall.get('cut_for_scoring', 0.0):.1%}"
        )
    console.print(f"all asked dimensions hit: {_number(overall['all_hit'])}; judge: {overall['judge']}")
    if overall.get("left_out"):
        console.print(f"{overall['left_out']} answers left out: a dimension without a score")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
