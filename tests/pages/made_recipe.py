"""Files of a made-up recipe, in the layout that trainings, evaluate.py and compare.py write."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from nemo_moslim.config import GenerationConfig
from nemo_moslim.evaluation.benchmarks.questions import Benchmark, Question
from nemo_moslim.evaluation.benchmarks.results import Judged, benchmark_result, benchmarks_report
from nemo_moslim.evaluation.controllability import control_report
from nemo_moslim.evaluation.fastchat import Judgment
from nemo_moslim.evaluation.judge_agreement import annotator_report, score_report
from nemo_moslim.evaluation.reward_accuracy import reward_metrics
from nemo_moslim.judging.verdicts import Answer, Verdict
from nemo_moslim.judging_config import RubricConfig
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema(
    (Dimension("helpfulness", 5, (1, 5)), Dimension("honesty", 5, (1, 5)), Dimension("harmless", 2, (1, 2)))
)
HOSTILE = (
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 2'>",
    '"><svg onload=window.ran=3>',
    "{{ 7 * 7 }} ${7 * 7} ]]> <!-- & -->",
    "a\u2028line and <iframe src=https://example.com></iframe>",
)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_run(folder: Path, config: str, metrics: list[dict], **summary) -> Path:
    """A run directory; `metrics` get their steps from 1."""
    metrics = [{"step": step, **row} for step, row in enumerate(metrics, 1)]
    write_lines(folder / "metrics.jsonl", metrics)
    (folder / "config.yaml").write_text(f"run_dir: {folder}\n{config}")
    general = {
        "steps": len(metrics), "finished": True, "seconds": {"training": 30.0, "validation": 2.0}, "ranks": 2,
        "device_seconds": 64.0, "tokens_per_second": 1234.5, "peak_memory_gigabytes_per_rank": 1.5,
        "versions": VERSIONS,
    }  # fmt: skip
    write_json(folder / "summary.json", {**general, **summary})
    return folder


def write_sft(folder: Path) -> Path:
    """A language model of 40 steps; one loss is not a number."""
    rows = [{"loss": 2.0 / step, "grad_norm": 1.0} for step in range(1, 41)]
    rows[3]["loss"] = math.nan
    rows[19]["validation"] = {"loss": 0.2}
    model = "{family: qwen2, num_layers: 2, hidden_size: 32, init: null}"
    config = f"data: data/sft\nmodel: {model}\nbatch: {{global_size: 8}}\nloss_on: answers\n"
    return write_run(folder, config, rows, rows={"train": 320})


def write_reward(folder: Path) -> Path:
    """A reward model of 30 steps."""
    accuracy = {f"accuracy/{name}": 0.5 for name in SCHEMA.names}
    rows = [{"loss": 1.0, **accuracy} for _ in range(30)]
    rows[-1]["validation"] = {"loss": 0.9, **accuracy}
    schema = json.dumps(SCHEMA.to_dict())
    config = f"preferences: {schema}\nloss: per_head\nstatistics: {{mode: ema}}\nmodel: {{init: sft}}\n"
    return write_run(folder, f"{config}batch: {{global_size: 8}}\n", rows, rows={"train": 240})


def write_policy(folder: Path) -> Path:
    """A policy of 400 steps, whose note is hostile."""
    rows = []
    for step in range(400):
        row = {"reward": step / 400, "kl": step / 100, "entropy": 1.0, "length": 30.0, "grad_norm": 0.1}
        row |= {f"hit_rate/{name}": step / 400 for name in SCHEMA.names}
        row |= {f"hit_rate/harmless={level}": 0.5 for level in (1, 2)}
        rows.append(row)
    config = "policy: sft\nreward: [reward]\nalgorithm: {name: rloo, samples: 4}\nbatch: {prompts: 16}\n"
    config += f"note: {json.dumps(HOSTILE[0])}\n"
    return write_run(folder, config, rows, seconds={"step": 40.0, "generation": 25.0, "update": 10.0})


def graded(source: random.Random, number: int) -> dict:
    """An answer: harmless is as asked, helpfulness 5 becomes 2, honesty is random; from 240 on nothing is asked."""
    asked = {"helpfulness": 1 + number % 5, "harmless": 1 + number % 2}
    if number % 3 == 0:
        asked = {"honesty": 1 + number % 5}
    if number >= 240:
        asked = {}
    given = {"helpfulness": min(asked.get("helpfulness", 3), 4), "honesty": source.randint(1, 5)}
    if asked.get("helpfulness") == 5:
        given["helpfulness"] = 2
    given["harmless"] = asked.get("harmless", 2)
    text = HOSTILE[number % len(HOSTILE)]
    prompt = [{"role": "user", "content": "before"}, {"role": "user", "content": text}] if number % 2 else text
    return {"prompt": prompt, "preferences": asked, "response": text, "levels": given, "length": 5, "unseen": False}


def write_control(folder: Path, with_every_level: bool = True) -> Path:
    """What task=controllability writes."""
    source = random.Random(1)
    rows = [graded(source, number) for number in range(260)]
    report = control_report(rows, SCHEMA, samples=50)
    report["overall"] |= {"judge": "world", "policy": "runs/<b>policy</b>", "data": "prompts/test.jsonl"}
    write_json(folder / "control.json", report)
    write_lines(folder / "answers.jsonl", rows)
    every = [
        {**graded(source, level), "preferences": {d.name: level}, "prompt": f"Prompt {HOSTILE[1]}"}
        for d in SCHEMA.dimensions
        for level in range(1, d.levels + 1)
    ]
    write_lines(folder / "every_level.jsonl", every if with_every_level else [])
    return folder


def reward_result(rows: int = 300) -> dict:
    """What task=reward writes: honesty is always predicted 1, the others are right; rows of two sources."""
    rng = np.random.default_rng(1)
    labels = np.stack([rng.integers(1, d.levels + 1, rows) for d in SCHEMA.dimensions], 1)
    parts = []
    for column, dimension in enumerate(SCHEMA.dimensions):
        level = np.ones(rows, int) if dimension.name == "honesty" else labels[:, column]
        parts.append(0.1 / dimension.levels + 0.9 * np.eye(dimension.levels)[level - 1])
    sources = ["<u>first</u>" if row % 2 else "second" for row in range(rows)]
    metrics = reward_metrics(np.concatenate(parts, 1), labels, SCHEMA, "per_head", sources, None)
    return {**metrics, "measured": {"run": "runs/reward", "data": "ratings/test.jsonl"},
            "rows": {"scored": rows, "cut": 0, "dropped": 0}}  # fmt: skip


def comparison() -> dict:
    """What compare.py writes, of two methods and two weight vectors."""
    grid = [{"helpfulness": 1.0}, {"helpfulness": 0.5, "harmless": 0.5}]

    def interval(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}

    methods = {}
    for name, level in (("moslim", 3.0), ("morlhf", 2.0)):
        levels = [{"helpfulness": interval(level + i), "honesty": interval(3.0), "harmless": interval(1.5)}
                  for i in range(2)]  # fmt: skip
        methods[name] = {
            "points": [{"weights": w, "on_front": True, "levels": found, "per_seed": []}
                       for w, found in zip(grid, levels, strict=True)],
            "hypervolume": interval(level / 10), "follows_weights": {n: interval(0.5) for n in SCHEMA.names},
            "lines": [], "control": None,
            "cost": {"policy": 10.0, "reward model": 5.0, "all": 15.0, "answers": 8, "reward models": 1, "policies": 1},
        }  # fmt: skip
    return {"schema": SCHEMA.to_dict(), "grid": grid, "even_point": 1, "methods": methods}


RUBRICS = {
    "helpfulness": RubricConfig(1, "?", ["a", "b", "c", "d", "e"]),
    "harmless": RubricConfig(0, "?", ["no", "yes"]),
}


def benchmarks(policy: str = "runs/policy", shift: float = 0.0) -> dict:
    """What task=benchmarks writes, of two benchmarks: math is answered with 1, writing with 3, one verdict refused."""
    chat, attacks = [], []
    for number in range(40):
        groups = {"category": "writing" if number % 2 else "<b>math</b>"}
        verdict = Verdict(1.0 + 2 * (number % 2) + shift) if number else Verdict(None, "refused")
        for turn in (1, 2):
            row = {"key": str(number), "turn": turn, "response": "r", "tokens": 8 * turn, "cut": number == 3}
            chat.append(Judged(Question(str(number), ["q", "q"], groups), row, {"helpfulness": verdict}))
        question = Question(f"1/{number}", ["q"], {"level": "1"}, attack=lambda response: response == "yes")
        row = {"key": question.key, "turn": 1, "response": "no" if number % 4 else "yes", "tokens": 1, "cut": False}
        attacks.append(Judged(question, row, {"harmless": Verdict(1.0)}))
    results = {
        "mt_bench": benchmark_result(Benchmark("mt_bench", [], ("helpfulness",), (HOSTILE[0],)), chat, 2, 16, 50, 1),
        "hackaprompt": benchmark_result(Benchmark("hackaprompt", [], ("harmless",)), attacks, 0, 16, 50, 1),
    }
    config = SimpleNamespace(
        policy=policy, asked={"helpfulness": 5}, benchmarks=SimpleNamespace(row_tags=True), limit=40, seed=1,
        generation=GenerationConfig(16, 1.0, 1.0, 0, [], 8), rubrics=RUBRICS,
    )  # fmt: skip
    judge = {"judge": "endpoint", "model": "judge-1", "requests": 120, "from_cache": 3, "cost": 0.5,
             "cost_with_cache": 0.75, "tokens": {"input": 12000, "output": 900},
             "tokens_with_cache": {"input": 12300, "output": 930}}  # fmt: skip
    return benchmarks_report(results, judge, config)


def agreement() -> dict:
    """What task=judge_agreement writes of given scores: the judge says what was given, but for one refusal."""
    judgments = [Judgment(str(i // 2), f"m{i % 2}", 1, Answer("q", "r"), 2.0 * (1 + i % 5)) for i in range(40)]
    verdicts = [{"helpfulness": Verdict(1.0 + i % 5)} for i in range(40)]
    verdicts[7] = {"helpfulness": Verdict(None, "refused")}
    settings = SimpleNamespace(rubrics=RUBRICS, bootstrap_samples=50, seed=1, data="given.jsonl")
    report = score_report(judgments, verdicts, "helpfulness", settings)
    return {**report, "rows_without_score": 2, "judge": {"judge": "endpoint", "model": "judge-1"}}


def annotators() -> dict:
    """The same of rated answers: the reward model is right, the judge always says the lowest level."""
    rows = [{"labels": {"helpfulness": 1 + i % 5}} for i in range(40)]
    found = {
        "reward_model": [{"helpfulness": Verdict(1.0 + i % 5)} for i in range(40)],
        "endpoint": [{"helpfulness": Verdict(1.0)} for _ in range(40)],
    }
    settings = SimpleNamespace(rubrics=RUBRICS, bootstrap_samples=50, seed=1)
    report = annotator_report(rows, found, SCHEMA, ["helpfulness"], settings)
    judges = {"reward_model": {"judge": "reward_model", "reward": "runs/rm"}, "endpoint": {"judge": "endpoint"}}
    return {**report, "data": "rated.jsonl", "annotators": judges}


def write_recipe(folder: Path) -> Path:
    """Everything that a report can show."""
    write_sft(folder / "sft")
    write_reward(folder / "reward")
    write_policy(folder / "policy")
    write_control(folder / "report")
    write_json(folder / "report/reward.json", reward_result())
    write_json(folder / "compare/comparison.json", comparison())
    write_json(folder / "report/benchmarks.json", benchmarks())
    write_json(folder / "report/agreement.json", agreement())
    (folder / "compare/config.yaml").write_text("methods: [moslim, morlhf]\n")
    write_json(folder / "seconds.json", {"sft": 12.5, "policy": 4000.0})
    write_json(folder / "data/sft/manifest.json", {"intensity_accuracy": 1})
    write_json(folder / "data/sft/hidden.json", {"intensity_accuracy": 1, "preference_accuracy": 1})
    return folder
