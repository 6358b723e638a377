"""`prepare_baseline.py`: the data of CDPO, MODPO and RiC from rated answers, scores and prompts.

Input and output are folders with train.jsonl, mostly validation.jsonl, and manifest.json, like prepare_data's.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from nemo_moslim.baseline_config import PrepareBaselineConfig
from nemo_moslim.baselines.cdpo import controlled_pairs
from nemo_moslim.baselines.modpo import margin_pairs
from nemo_moslim.baselines.pairing import Row
from nemo_moslim.baselines.ric import (
    Scale,
    fit_scales,
    offline_rows,
    online_prompts,
    online_rows,
    scales_from_dict,
    scales_to_dict,
)
from nemo_moslim.config import to_plain
from nemo_moslim.data.folder import MANIFEST, check_output, open_output
from nemo_moslim.data.ratings import read_checked, read_ratings, read_untagged_prompts
from nemo_moslim.preferences import PreferenceSchema

SCALES = "scales"  # in the manifest of task=ric_offline


def prepare_baseline(config: PrepareBaselineConfig) -> dict:
    """Write the output folder and return its manifest.

    Raises:
        FileNotFoundError: no such input.
        ValueError: rows that the task cannot use, nothing to write, an output that is not this tool's own.
    """
    check_output(config.output)
    schema = PreferenceSchema.from_dict(to_plain(config.preferences))
    splits, extra = TASKS[config.task](config, schema)
    counts: Counter[str] = Counter()
    with open_output(config.output) as folder:
        for split, rows in splits.items():
            for row in rows:
                folder.write_line(f"{split}.jsonl", json.dumps(row, ensure_ascii=False, allow_nan=False))
                counts[split] += 1
            if not counts[split]:
                raise ValueError(
                    f"input={config.input}: nothing for {split}.jsonl of task={config.task}; pairs need prompts with "
                    "two rated answers that differ"
                )
        settings = {"task": config.task, "input": config.input, "seed": config.seed, "schema": schema.to_dict()}
        return folder.write_manifest({**settings, "rows": dict(counts), **extra})


def _pair_splits(config: PrepareBaselineConfig, make: Callable[[list[Row]], Iterable[Row]], schema) -> dict:
    return {split: make(read_ratings(Path(config.input[0]) / f"{split}.jsonl", schema)) for split in SPLITS}


def _cdpo_pairs(config: PrepareBaselineConfig, schema: PreferenceSchema) -> tuple[dict, dict]:
    def make(rows: list[Row]) -> Iterable[Row]:
        return controlled_pairs(rows, schema, config.pairs_per_prompt, config.seed)

    return _pair_splits(config, make, schema), {}


def _modpo_pairs(config: PrepareBaselineConfig, schema: PreferenceSchema) -> tuple[dict, dict]:
    others = config.margins
    if others is None:
        others = [name for name in schema.names if name != config.dimension]

    def make(rows: list[Row]) -> Iterable[Row]:
        return margin_pairs(rows, schema, config.dimension, others, config.pairs_per_prompt, config.seed)

    return _pair_splits(config, make, schema), {}


def _ric_offline(config: PrepareBaselineConfig, schema: PreferenceSchema) -> tuple[dict, dict]:
    rows = {split: read_ratings(Path(config.input[0]) / f"{split}.jsonl", schema) for split in SPLITS}
    scales = fit_scales(rows["train"], schema.names)
    return {split: offline_rows(rows[split], scales) for split in SPLITS}, {SCALES: scales_to_dict(scales)}


def _ric_prompts(config: PrepareBaselineConfig, schema: PreferenceSchema) -> tuple[dict, dict]:
    rows = read_untagged_prompts(Path(config.input[0]) / "train.jsonl")
    return {"train": online_prompts(rows, read_scales(config.offline), config.prompts, config.seed)}, {}


def _ric_online(config: PrepareBaselineConfig, schema: PreferenceSchema) -> tuple[dict, dict]:
    scales = read_scales(config.offline)
    generated = [read_checked(file, dict) for file in config.input]
    offline = {split: read_checked(Path(config.offline) / f"{split}.jsonl", dict) for split in SPLITS}
    train = online_rows(generated, offline["train"], scales, config.quantile, config.offline_rows, config.seed)
    return {"train": train, "validation": offline["validation"]}, {}


SPLITS = ("train", "validation")
TASKS = {
    "cdpo_pairs": _cdpo_pairs,
    "modpo_pairs": _modpo_pairs,
    "ric_offline": _ric_offline,
    "ric_prompts": _ric_prompts,
    "ric_online": _ric_online,
}


def read_scales(offline: str | Path) -> dict[str, Scale]:
    """The scales of a folder that task=ric_offline wrote.

    Raises:
        ValueError: no such folder.
    """
    file = Path(offline) / MANIFEST
    manifest = json.loads(file.read_text()) if file.is_file() else {}
    if SCALES not in manifest:
        raise ValueError(f"offline={offline}: no manifest with {SCALES!r} there; make it with task=ric_offline")
    return scales_from_dict(manifest[SCALES])
