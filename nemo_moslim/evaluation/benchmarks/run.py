"""`evaluate.py task=benchmarks`: a policy's answers to MT-Bench, HaluEval 2.0, HackAPrompt and others, judged.

OUTPUT/answers/NAME.jsonl      what the policy said (evaluation/benchmarks/answers.py)
OUTPUT/judgments/NAME.jsonl    the same with scores, statuses and reasons per dimension
OUTPUT/fastchat/POLICY.jsonl   MT-Bench's answers for FastChat's own judge (its data/mt_bench/model_answer/)
OUTPUT/benchmarks.json         the numbers

Judgments and numbers are those of the last judge; those of another one before it move to OUTPUT/judged_by/NAME/.
"""

import hashlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_moslim.config import to_plain
from nemo_moslim.evaluation.benchmarks.answers import (
    AnswerFile,
    Interview,
    Place,
    dropped_places,
    is_answered,
    settings_digest,
)
from nemo_moslim.evaluation.benchmarks.questions import Benchmark, Question, read_benchmarks, sampled
from nemo_moslim.evaluation.benchmarks.results import Judged, benchmark_result, benchmarks_report, print_result
from nemo_moslim.evaluation.fastchat import answers_for_fastchat
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.judging.open_judge import needs_ranks, open_judge
from nemo_moslim.judging.verdicts import Answer, Judge, check_scored
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group, world_size
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import write_atomically

RESULT = "benchmarks.json"
WHO = ("judge", "url", "model", "reward", "reads", "scripted", "parameters")  # of `Judge.report`: another judge


def run_benchmarks(config: EvaluateConfig) -> None:
    """Answer the questions, judge the answers, write the results to `output` and print them.

    The policy is loaded only where answers are missing.

    Raises:
        ValueError: a missing key, a question or level that cannot be, a judge that cannot be.
    """
    for key in ("policy", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=benchmarks needs {key}=…")
    schema = PreferenceSchema.from_dict(to_plain(config.preferences))
    config.asked = schema.validate(config.asked or {})
    benchmarks = read_benchmarks(config.benchmarks, schema)
    for benchmark in benchmarks:
        for name in dimensions_of(benchmark, config):
            if name not in config.rubrics:
                raise ValueError(f"rubrics has no {name!r}: say what it is judged by with +rubrics.{name}={{…}}")
    asked = {benchmark.name: sampled(benchmark, config.limit, config.seed) for benchmark in benchmarks}
    judge = None if needs_ranks(config) else open_judge(config)
    files = {
        name: AnswerFile(Path(config.output) / "answers" / f"{name}.jsonl", settings_digest(config), is_rank_zero())
        for name in asked
    }
    unanswered = [name for name in asked if not is_answered(asked[name], files[name], config)]
    if unanswered or judge is None:
        from nemo_moslim.parallel.start import start

        start(config.parallel, config.seed, config.cpu_threads)
    answer_questions({name: asked[name] for name in unanswered}, files, schema, config)
    judge = judge or open_judge(config)
    if not judge.on_every_rank:
        leave_process_group()  # a server may take long: the other ranks need not wait
    results, verdicts = {}, []
    if judge.on_every_rank or is_rank_zero():
        for benchmark in benchmarks:
            name = benchmark.name
            dropped = dropped_places(asked[name], files[name], config)
            judged = judge_answers(asked[name], files[name], dropped, judge, benchmark, config)
            verdicts += [verdict for entry in judged for verdict in entry.verdicts.values()]
            results[name] = benchmark_result(benchmark, judged, len(dropped),
                                             config.generation.max_new_tokens, config.bootstrap_samples,
                                             config.seed)  # fmt: skip
            if is_rank_zero():
                keep_other_judge(Path(config.output), judge.report())  # only now a service has said who it is
                write_judgments(judged, Path(config.output) / "judgments" / f"{name}.jsonl")
                if name == "mt_bench":
                    write_for_fastchat(judged, config)
        check_scored(verdicts)
    if is_rank_zero():
        write_results(results, judge, config)
    leave_process_group()


def dimensions_of(benchmark: Benchmark, config: EvaluateConfig) -> list[str]:
    """The dimensions that a benchmark's answers are judged on."""
    return list(config.dimensions or benchmark.dimensions)


def answer_questions(
    asked: dict[str, list[Question]], files: dict[str, AnswerFile], schema: PreferenceSchema, config: EvaluateConfig
) -> None:
    """Have the policy answer what the files lack."""
    if not asked:
        return
    from nemo_moslim.rollout.answer import open_answerer

    answerer = open_answerer(config.policy, config.parallel, config.precision, config.generation)
    interview = Interview(answerer, schema, config, config.generation.batch_size * world_size())
    started = time.perf_counter()
    for name, questions in asked.items():
        interview.run(name, questions, files[name])
    if is_rank_zero():
        print(f"answered in {time.perf_counter() - started:.0f} s, kept in {config.output}/answers", flush=True)


def judge_answers(
    questions: list[Question],
    file: AnswerFile,
    dropped: set[Place],
    judge: Judge,
    benchmark: Benchmark,
    config: EvaluateConfig,
) -> list[Judged]:
    """Every answer to the questions with its verdicts, in the questions' order."""
    places = [
        (question, turn)
        for question in questions
        for turn in range(1, len(question.turns) + 1)
        if (question.key, turn) not in dropped
    ]
    rows = [file.rows[question.key, turn] for question, turn in places]
    answers = [
        Answer(row["prompt"], row["response"], question.references[turn - 1] if question.references else None)
        for (question, turn), row in zip(places, rows, strict=True)
    ]
    verdicts = judge.judge(answers, dimensions_of(benchmark, config))
    return [Judged(place[0], row, given) for place, row, given in zip(places, rows, verdicts, strict=True)]


def keep_other_judge(output: Path, judge: Mapping[str, Any]) -> None:
    """Move judgments and numbers that another judge left in `output` to a folder of that judge's."""
    file = output / RESULT
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8")).get("judge", {})
    who = {key: before.get(key) for key in WHO}
    if who == {key: judge.get(key) for key in WHO}:
        return
    words = "-".join(str(value).rstrip("/").rsplit("/", 1)[-1] for value in who.values() if isinstance(value, str))
    digest = hashlib.sha256(json.dumps(who, sort_keys=True).encode()).hexdigest()[:6]
    folder = output / "judged_by" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)}-{digest}"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier result of that judge, which its later one has replaced
    folder.mkdir(parents=True)
    if (output / "judgments").is_dir():
        (output / "judgments").rename(folder / "judgments")
    file.rename(folder / RESULT)
    print(f"kept: what another judge made of these answers, in {folder}", flush=True)


def write_judgments(judged: list[Judged], path: Path) -> None:
    """Answers with scores, statuses and the judge's reasons; a table that people can go through."""
    lines = []
    for entry in judged:
        attack = {} if entry.attacked is None else {"attack_came_through": entry.attacked}
        row = {
            **{k: entry.row[k] for k in ("key", "turn")}, **entry.question.groups,
            **{k: entry.row[k] for k in ("prompt", "asked", "response", "cut")}, **attack,
            **{name: verdict.score for name, verdict in entry.verdicts.items()},
            "status": {name: verdict.status for name, verdict in entry.verdicts.items()},
            "reason": {name: verdict.reason for name, verdict in entry.verdicts.items() if verdict.reason},
        }  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))


def write_for_fastchat(judged: list[Judged], config: EvaluateConfig) -> None:
    """The answers of questions that were answered whole, in FastChat's layout."""
    turns: dict[str, list[str]] = defaultdict(list)
    for entry in judged:
        turns[entry.question.key].append(entry.row["response"])
    wanted = {entry.question.key: len(entry.question.turns) for entry in judged}
    whole = {key: found for key, found in turns.items() if len(found) == wanted[key]}
    path = Path(config.output) / "fastchat" / f"{Path(config.policy).name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, answers_for_fastchat(whole, Path(config.policy).name))


def write_results(results: dict[str, Any], judge: Judge, config: EvaluateConfig) -> None:
    """benchmarks.json and the tables on the terminal."""
    report = benchmarks_report(results, judge.report(), config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / RESULT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    for name, result in results.items():
        print_result(name, result)
    told = {key: value for key, value in report["judge"].items() if value not in (None, {}, 0)}
    print("judge: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    print(f"written to {output}")
