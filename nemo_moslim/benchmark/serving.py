"""what=serve: answers scored through the service, by clients at once, against the same answers in process."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import torch

from nemo_moslim.benchmark.contest import tolerance
from nemo_moslim.benchmark.load_client import figures, told
from nemo_moslim.benchmark.model_folders import reward_model
from nemo_moslim.benchmark.report import common, show, write
from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.benchmark_config import WHAT, BenchmarkConfig
from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.data.ratings import read_ratings
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.start import start
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalScorer
from nemo_moslim.serve_config import ServeConfig
from nemo_moslim.serving.lead import lead, listen
from nemo_moslim.serving.ranks import SCORE, Ranks
from nemo_moslim.serving.serve import served


def run(config: BenchmarkConfig) -> None:
    """Measure in process, then serve the same model to a process of clients; prints a table and writes `output`.

    Raises:
        ValueError: settings, data or a model that cannot be used, or rewards that differ.
    """
    work, load = Path(config.output).absolute().with_suffix(".work"), os.getloadavg()
    settings = service_settings(config, work)
    start(settings.parallel, config.seed, config.threads)
    if is_rank_zero():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        if not config.reward:
            reward_model(config, work)
    torch.distributed.barrier()
    scorer = LocalScorer(
        *open_reward_model(settings.run, settings.parallel, settings.precision),
        settings.normalize, settings.batch.micro_size, offload=False,
    )  # fmt: skip
    rows = rated_rows(config, scorer)
    seconds, rewards = in_process(scorer, rows, config.rounds)
    ranks = Ranks()
    if is_rank_zero():
        rounds = under_load(config, settings, scorer, rows, ranks, work)
        report(config, load, seconds, rewards, rounds, tolerance(settings.precision))
        shutil.rmtree(work)
    else:
        ranks.follow({SCORE: scorer.reward_model.probabilities})
    leave_process_group()


def service_settings(config: BenchmarkConfig, work: Path) -> ServeConfig:
    """Those of serve_reward.py, from `settings`."""
    own = [f"run={config.reward or work / 'reward'}", "port=0", f"cpu_threads={config.threads}"]
    return parse(compose_config("serve_reward", [*own, *config.settings.split()], path_keys=("run",)), ServeConfig)


def rated_rows(config: BenchmarkConfig, scorer: LocalScorer) -> list[dict]:
    """Answers of train.jsonl, their levels (of one annotator) as what is asked for."""
    rated = read_ratings(Path(config.data) / "train.jsonl", scorer.schema)[: config.rows]
    return [
        {
            "prompt": row["prompt"],
            "response": row["response"],
            "preferences": {name: level for name, level in row["labels"].items() if isinstance(level, int)},
        }
        for row in rated
    ]


def in_process(scorer: LocalScorer, rows: list[dict], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round over all rows at once, after one that is not counted, and the rewards."""
    columns = [[row[name] for row in rows] for name in ("prompt", "response", "preferences")]
    rewards, seconds = scorer.score(*columns).rewards.tolist(), []
    for _ in range(rounds):
        watch = Stopwatch()
        scorer.score(*columns)
        seconds.append(watch.read()["seconds"])
    return seconds, rewards


def under_load(
    config: BenchmarkConfig, settings: ServeConfig, scorer: LocalScorer, rows: list[dict], ranks: Ranks, work: Path
) -> list[dict]:
    """What the clients' process measured, round by round. The service ends when that process has."""
    listener = listen(settings.host, settings.port)
    url = "http://{}:{}".format(*listener.getsockname()[:2])
    task = {"url": url, "rows": rows, "items": config.request_items, "clients": config.clients, "rounds": config.rounds}
    (work / "task.json").write_text(json.dumps(task))

    def clients() -> None:
        command = [sys.executable, "-m", "nemo_moslim.benchmark.load_client", str(work / "task.json")]
        subprocess.run(command, check=False)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=clients, daemon=True).start()
    lead(settings, served(scorer), scorer.reward_model.probabilities, ranks, listener)
    if not (work / "load.json").is_file():
        raise ValueError("the clients' process died; its error is above")
    return json.loads((work / "load.json").read_text())


def report(
    config: BenchmarkConfig, load: tuple, seconds: list[float], rewards: list[float], rounds: list[dict], allowed: float
) -> None:
    """Write the file and print the table.

    Raises:
        ValueError: rewards of both sides differ by more than `allowed`, or the service scored nothing.
    """
    gaps = [abs(a - b) for one in rounds for a, b in zip(rewards, one["rewards"], strict=True) if b is not None]
    if not all(gap <= allowed for gap in gaps):  # NaN is not
        raise ValueError(f"the service's rewards differ from those in process by {max(gaps):.3g} (allowed {allowed:g})")
    local, service = len(rewards) / statistics.median(seconds), figures(rounds)
    content = common(config, load) | {
        "largest_difference": max(gaps, default=None),
        "in_process": {"answers_per_second": local, "seconds": seconds},
        "service": service,
        "service_by_in_process": service["answers_per_second"] / local,
    }
    write(config, content)
    print_table(config, content)


def print_table(config: BenchmarkConfig, content: dict) -> None:
    """In process, and the service."""
    from rich.table import Table

    service, local = content["service"], content["in_process"]
    title = f"{WHAT['serve']}: {config.clients} clients, {config.request_items} answers a request"
    table = Table("", "answers per second", "requests per second", "p50 ms", "p99 ms", "statuses", title=title)
    table.add_row("in process", f"{local['answers_per_second']:,.1f}")
    times = [f"{service['milliseconds'][q]:.1f}" for q in ("p50", "p99")]
    rates = [f"{service[name]:,.1f}" for name in ("answers_per_second", "requests_per_second")]
    table.add_row("service", *rates, *times, told(service["statuses"]))
    show(table)
    if not service["all_scored"]:
        print("not every request was scored: rates and times are of those that were", flush=True)
