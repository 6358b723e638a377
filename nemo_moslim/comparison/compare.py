"""`compare.py`: plan the stages of every method, run what is missing, write the report."""

import json
import os
import platform
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from nemo_moslim.comparison.bench import Bench, Point
from nemo_moslim.comparison.methods import METHODS, moslim, moslim_variants, start
from nemo_moslim.comparison.page import html_page
from nemo_moslim.comparison.pictures import plot_costs, plot_fronts
from nemo_moslim.comparison.results import Entry, Numbers, all_numbers
from nemo_moslim.comparison.study import Study
from nemo_moslim.comparison.tables import Table, all_tables
from nemo_moslim.comparison_config import CompareConfig
from nemo_moslim.config import to_plain
from nemo_moslim.run_folder import write_atomically


def compare(config: CompareConfig) -> Path:
    """Everything of examples/compare.py; the path of the report, which replaces an earlier one of other methods.

    Raises:
        SystemExit: a stage failed.
        ValueError: settings or files that cannot be.
    """
    check_files(config)
    folder = Path(config.output)
    study = Study(folder, config.ranks)
    bench = Bench(study, config)
    entries = planned(bench)
    folder.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))
    write_atomically(folder / "config.yaml", settings)
    study.execute()
    numbers = all_numbers(study, entries, bench.schema, bench.grid, config.bootstrap_samples)
    numbers["provenance"] = provenance(study)
    with FileLock(folder / "locks" / "report"):  # of processes that share a comparison
        return write_report(folder, config, numbers, settings)


def check_files(config: CompareConfig) -> None:
    """ValueError for a data folder without one of the files that the configuration names."""
    if config.data == "world":
        return
    for group, names in to_plain(config.files).items():
        for name in names:
            if not (Path(config.data) / name).is_file():
                raise ValueError(f"data={config.data}: no {name} there; name the files with files.{group}=[…]")


def planned(bench: Bench) -> dict[str, list[Entry]]:
    """Name of a method (or of a further MOSLIM) -> its points and answers, one entry per seed; and of the start.

    All methods' stages of a seed come before those of the next, so that fewer seeds can be reported on the way.
    """
    config, plans = bench.config, {}
    for name in config.methods:
        plans[name] = METHODS[name]
        if name == "moslim":
            plans |= {other: partial(moslim, **settings) for other, settings in moslim_variants(bench).items()}
    entries: dict[str, list[Entry]] = {name: [] for name in plans}
    for seed in range(1, config.seeds + 1):
        for name, plan in plans.items():
            entries[name].append(entry_of(bench, name, seed, plan(bench, seed)))
    return {**entries, "start": [entry_of(bench, "start", 1, start(bench))] * config.seeds}


def entry_of(bench: Bench, name: str, seed: int, points: list[Point]) -> Entry:
    """The stage that answers and judges a method's points of one seed."""
    config = bench.config
    file = bench.study.file(f"{name}-seed{seed}", [point.to_dict() for point in points])
    judge = () if bench.judge is None else (f"reward={bench.judge}", "judge=reward_model")
    answers = bench.study.stage(
        f"answers-{name}-seed{seed}", "evaluation", "evaluate.py", "task=points", f"points={file}",
        f"data={bench.test_prompts}", f"grid_prompts={config.budget.grid_prompts}", f"ric_map={config.ric_map}", *judge,
        *config.budget.evaluate, output="output", ranks=config.ranks,
    )  # fmt: skip
    return Entry(points, answers / "answers.jsonl")


def write_report(folder: Path, config: CompareConfig, numbers: Numbers, settings: str) -> Path:
    """report.html, comparison.json, tables/*.csv, report.md and two pictures."""
    tables = all_tables(numbers, config.methods, config.datatypes, list(config.sizes), config.algorithms)
    write_atomically(folder / "comparison.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    (folder / "tables").mkdir(exist_ok=True)
    for table in tables:
        write_atomically(folder / "tables" / f"{table.name}.csv", table.csv())
    made = made_by(numbers["provenance"])
    write_atomically(folder / "report.md", "\n".join([f"{made}\n", *(table.markdown() for table in tables)]))
    pictures = [
        ("Mean levels and fronts", plot_fronts(numbers, folder / "fronts.png")),
        ("Cost", plot_costs(numbers, folder / "cost.png")),
    ]
    title = f"{', '.join(config.methods)} on {Path(config.data).name}, seeds={config.seeds}"
    report = folder / "report.html"
    write_atomically(report, html_page(title, made, tables, pictures, settings))
    print_tables(tables)
    return report


def provenance(study: Study) -> dict:
    """When, where and with what the report was made; of each package all versions that its trainings ran with."""
    found: dict[str, list[str]] = {}
    for stage in study.stages.values():
        for name, version in study.summary(stage).get("versions", {}).items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return {
        "versions": {name: " and ".join(versions) for name, versions in found.items()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "ranks": study.ranks,
        "made": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }


def made_by(provenance: dict) -> str:
    """The provenance as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return f"Made {provenance['made']} on {provenance['machine']}, ranks={provenance['ranks']}; {versions}."


def print_tables(tables: list[Table]) -> None:
    """The tables on the terminal, without the long one of all points."""
    for table in tables:
        if table.name != "points":
            print(f"\n{table.markdown()}", end="")
