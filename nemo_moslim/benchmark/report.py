"""The outcome of a benchmark: a table to read and a file to keep."""

import json
import os
import platform
import statistics
from dataclasses import asdict
from pathlib import Path

import torch

from nemo_moslim.benchmark.contest import BEST, Contest
from nemo_moslim.benchmark.mfu import model_flops_utilization
from nemo_moslim.benchmark.operators import ProfiledRounds
from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.benchmark_config import WHAT, BenchmarkConfig
from nemo_moslim.config import to_plain
from nemo_moslim.parallel.layout import world_size
from nemo_moslim.run_folder import write_atomically
from nemo_moslim.versions import package_versions

SHOWN = 15  # operators in the printed profile
WIDTH = 120  # of the tables, also where there is no terminal


def machine() -> dict:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}


def common(config: BenchmarkConfig, load_before: tuple) -> dict:
    """What both kinds of report start with. The load tells whether the machine was idle before."""
    place = {**machine(), "load_before": [round(value, 2) for value in load_before]}
    ranks = {"ranks": world_size(), "threads": torch.get_num_threads()}
    return {
        "what": config.what, "against": config.against, "machine": place, **ranks,
        "versions": {"ours": package_versions()}, "config": to_plain(config),
    }  # fmt: skip


def summary(rounds: list[Round], contest: Contest) -> dict:
    """Median seconds and rate of a side, and all its rounds."""
    kept = [{name: round(value, 4) for name, value in asdict(one).items()} for one in rounds]
    rates = [contest.rate(r) for r in rounds]
    return {
        "seconds": statistics.median(r.seconds for r in rounds),
        "per_second": statistics.median(rates),
        "rounds": kept,
    }


def ratios(ours: list[Round], theirs: list[Round], contest: Contest, clock: str) -> dict:
    """Our rate by theirs in the same turn: median, lowest, highest."""
    found = [contest.rate(a, clock) / contest.rate(b, clock) for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}


def report(
    config: BenchmarkConfig, contest: Contest, architecture: dict, precision: str, leaves_out: bool, peer_models: int
) -> dict:
    """Write the file and print the table; the content of the file.

    Args:
        precision: of ours; the peer has bf16 in place of fp8.
        leaves_out: our last layer's feed-forward runs only where it is read.
        peer_models: that the peer runs over the rows, one after the other (what=scoring: one per dimension).
    """
    content = common(config, contest.load_before)
    content["versions"]["peer"] = contest.versions
    content |= {"unit": contest.unit, "largest_difference": contest.differences, "peer_sweep": contest.sweep}
    content["sides"] = {"ours": summary(contest.ours, contest)}
    for name, rounds in contest.others.items():
        variant = contest.variants.get(name, {})
        against = {
            "ours_by_this": ratios(contest.ours, rounds, contest, "seconds"),
            "ours_by_this_processor_time": ratios(contest.ours, rounds, contest, "cpu_seconds"),
        }
        content["sides"][name] = {**variant, **summary(rounds, contest), **against}
    ours = model_flops_utilization(config.what, architecture, contest.ours, precision, leaves_out)
    theirs = model_flops_utilization(config.what, architecture, contest.others[BEST], "bf16", models=peer_models)
    content["sides"]["ours"]["mfu"], content["sides"][BEST]["mfu"] = ours, theirs
    write(config, content)
    _print_table(config, content)
    return content


def profile_report(config: BenchmarkConfig, profiled: ProfiledRounds) -> dict:
    """Write the file and print the largest shares; the content of the file."""
    content = common(config, profiled.load_before)
    content |= {"seconds_unprofiled": round(profiled.seconds, 4), "operators": profiled.operators}
    write(config, content)
    from rich.table import Table
    from rich.text import Text

    table = Table("operator", "calls", "share", title=f"{WHAT[config.what]}: {profiled.seconds:.3f} s a round")
    for row in profiled.operators[:SHOWN]:
        table.add_row(Text(row["operator"]), str(row["calls"]), f"{row['share']:.1%}")
    show(table)
    return content


def _ratio(found: dict | None) -> str:
    return f"{found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})" if found else ""


def show(table) -> None:
    """Print a table, wide enough also where there is no terminal."""
    from rich.console import Console

    console = Console()
    Console(width=max(console.width, WIDTH)).print(table)


def write(config: BenchmarkConfig, content: dict) -> None:
    """The file of a benchmark."""
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.output), json.dumps(content, indent=2) + "\n")


def _print_table(config: BenchmarkConfig, content: dict) -> None:
    from rich.table import Table

    unit, mfu = content["unit"], content["sides"]["ours"]["mfu"] is not None
    columns = ["", "processes x threads", "batch size", "seconds a round", f"{unit} per second", "ours / this"]
    columns.append("by processor time")
    table = Table(*columns, *(["MFU"] if mfu else []), title=f"{WHAT[config.what]}, against {config.against}")
    for name, side in content["sides"].items():
        layout = f"{side.get('processes', content['ranks'])} x {side.get('threads', content['threads'])}"
        shown = [_ratio(side.get(key)) for key in ("ours_by_this", "ours_by_this_processor_time")]
        cells = [name, layout, str(side.get("batch_size", "")), f"{side['seconds']:.3f}", f"{side['per_second']:,.1f}"]
        share = side.get("mfu")
        table.add_row(*cells, *shown, *([f"{share:.1%}" if share is not None else ""] if mfu else []))
    show(table)
