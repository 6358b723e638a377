"""`evaluate.py task=score`: the scores of reward models added to answers."""

import json
import random
import time
from collections import defaultdict
from pathlib import Path

from nemo_moslim.data.folder import MANIFEST, row_files
from nemo_moslim.data.ratings import read_checked
from nemo_moslim.data.rows import RowError, check_prompt, prompt_key
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group, world_size
from nemo_moslim.parallel.start import start
from nemo_moslim.rollout.weighted_score import WeightedScorer, open_weighted_scorer
from nemo_moslim.run_folder import write_atomically, write_cost


def score_answers(config: EvaluateConfig) -> None:
    """Add `scores`, dimension -> expected level from 0 to 1, to the rows of a file, or of a folder's files.

    A row's `plain_prompt`, where it has one, is what the reward models read. `limit` draws prompts of each file.

    Raises:
        ValueError: a missing key, a malformed row, reward models that share a dimension.
    """
    if not config.runs or not config.input or not config.output:
        raise ValueError("task=score needs runs=[RUN,…], input=FILE.jsonl|DIR and output=FILE.jsonl|DIR")
    start(config.parallel, config.seed, config.cpu_threads)
    scorer = open_weighted_scorer(
        config.runs, None, config.parallel, config.precision, config.batch_size, offload=False
    )
    source, target = Path(config.input), Path(config.output)
    files = {source: target}
    if source.is_dir():
        files = {file: target / file.name for file in row_files(source)}
    seconds = 0.0
    for file, output in files.items():
        started = time.perf_counter()
        given = read_checked(file, _answer)
        rows = scored(scorer, drawn(given, config.limit, config.seed))
        if is_rank_zero():
            seconds += time.perf_counter() - started
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"{len(rows):,} of {len(given):,} rows scored, written to {output}")
    if is_rank_zero():
        write_cost(target / "scores.jsonl" if source.is_dir() else target, seconds, world_size(), 0)
    if is_rank_zero() and (source / MANIFEST).is_file():
        schema = json.loads((source / MANIFEST).read_text())["schema"]  # of the labels
        manifest = {"task": "score", "input": config.input, "runs": config.runs, "limit": config.limit}
        manifest["schema"] = schema
        write_atomically(target / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    leave_process_group()


def drawn(rows: list[dict], limit: int | None, seed: int) -> list[dict]:
    """Rows of prompts drawn at random, each with all of its rows, until there are `limit` or more; in their order."""
    if limit is None or limit >= len(rows):
        return rows
    of_prompt = defaultdict(list)
    for index, row in enumerate(rows):
        of_prompt[prompt_key(row["prompt"])].append(index)
    prompts, chosen = list(of_prompt.values()), []
    random.Random(seed).shuffle(prompts)
    while len(chosen) < limit:
        chosen += prompts.pop()
    return [rows[index] for index in sorted(chosen)]


def scored(scorer: WeightedScorer, rows: list[dict]) -> list[dict]:
    """The rows with `scores`; every rank passes all of them."""
    prompts = [row["plain_prompt"] if "plain_prompt" in row else row["prompt"] for row in rows]
    scores, *_ = scorer.scores(prompts, [row["response"] for row in rows])
    names = scorer.schema.names
    return [
        {**row, "scores": {name: round(value, 6) for name, value in zip(names, values, strict=True)}}
        for row, values in zip(rows, scores.tolist(), strict=True)
    ]


def _answer(row: dict) -> dict:
    if not isinstance(row.get("response"), str):  # an answer of a policy may be empty
        raise RowError("response is not text", f"got {type(row.get('response')).__name__}")
    prompts = {name: check_prompt(row.get(name), name) for name in ("prompt", "plain_prompt") if name in row}
    return {**row, **prompts}
