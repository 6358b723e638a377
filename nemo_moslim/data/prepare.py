"""Prepare ratings, prompts, sft and cpsft data: source rows in; train, validation, manifest (and quarantine) out.

The same settings and seed give the same bytes. Rows are streamed, so that memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_moslim.data import world
from nemo_moslim.data.adapters import Layout, find_prompt, prompt_record, rating_records, sft_record
from nemo_moslim.data.folder import QUARANTINE, OutputFolder, check_output, open_output
from nemo_moslim.data.prepare_settings import PrepareSettings
from nemo_moslim.data.prompt_dataset import tag_prompt
from nemo_moslim.data.rows import Label, RowError, prompt_key
from nemo_moslim.data.sources import SourceRow, is_hub_name, read_rows, sha256_of, with_progress
from nemo_moslim.preferences import PreferenceSchema

MAX_TAGS = 3  # a prompt asks for 1-3 dimensions
RATED_TASKS = ("ratings", "cpsft")


@dataclass
class Tally:
    """What became of the records that were read: kept + unlabelled + excluded + quarantined == read."""

    read: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    levels: dict[str, dict[str, Counter[int]]] = field(default_factory=dict)
    distributions: int = 0
    shared_prompts: int = 0

    def count_levels(self, split: str, schema: PreferenceSchema, record: Mapping[str, Any]) -> None:
        """Add a kept record's labels or preferences to its split's histogram; a distribution counts at its peak."""
        if split not in self.levels:
            self.levels[split] = {name: Counter() for name in schema.names}
        for name, level in record.get("labels", record.get("preferences", {})).items():
            if isinstance(level, list):
                self.distributions += 1
                level = 1 + level.index(max(level))
            self.levels[split][name][level] += 1

    def to_dict(self, schema: PreferenceSchema) -> dict[str, Any]:
        """The manifest's part: counts only."""
        histogram = {
            split: {d.name: {str(k): table[d.name][k] for k in range(1, d.levels + 1)} for d in schema.dimensions}
            for split, table in self.levels.items()
        }
        skipped = {name: self.skipped[name] for name in ("unlabelled", "excluded", "quarantined")}
        counts: dict[str, Any] = {"read": self.read, "rows": dict(self.rows), "skipped": skipped}
        counts.update(reasons=dict(sorted(self.reasons.items())), levels=histogram, distributions=self.distributions)
        counts["train_rows_with_a_validation_prompt"] = self.shared_prompts
        return counts


def prepare(settings: PrepareSettings) -> dict[str, Any]:
    """Run one preparation and return its manifest.

    Raises:
        FileNotFoundError: no such input.
        ValueError: a malformed row (file, line, reason) unless it is quarantined, no usable row, an output that is not
            this tool's own.
    """
    check_output(settings.output)
    if settings.task == "tokenizer":
        from nemo_moslim.data.tokenizer import train_tokenizer

        tags = settings.schema.class_names if settings.tag_tokens else ()
        return train_tokenizer(settings.inputs, settings.output, settings.vocab_size, tags)
    run = _Run(settings)
    with open_output(settings.output) as folder:
        run.write(folder)
        if not run.tally.rows["train"]:
            raise ValueError(f"no usable row for train: {_summary(run.tally)}")
        return folder.write_manifest(run.manifest())


def _summary(tally: Tally) -> str:
    skipped = ", ".join(f"{count} {name}" for name, count in tally.skipped.items() if count)
    return f"{tally.read} rows read, {skipped or 'none skipped'}, {tally.rows['validation']} for validation"


class _Run:
    """One preparation of ratings, prompts, sft or cpsft."""

    def __init__(self, settings: PrepareSettings) -> None:
        self.settings = settings
        self.tally = Tally()
        self._validation_prompts: set[bytes] = set()
        self._excluded = self._read_excluded()

    def write(self, folder: OutputFolder) -> None:
        settings = self.settings
        self.tally.rows.update({"train": 0, "validation": 0})
        if settings.source == "world":
            sizes = {"train": "rows", "validation": "validation_rows", "test": "test_rows"}
            for split, key in sizes.items():
                for number, record in enumerate(self._world_records(split, settings.world[key]), 1):
                    self.tally.read += 1
                    self._keep(folder, split, record, SourceRow("world", number, None))
            return
        if settings.validation_file is not None:
            self._write_sources(folder, (settings.validation_file,), "validation")
        self._write_sources(folder, settings.inputs, "train")

    def manifest(self) -> dict[str, Any]:
        settings = self.settings
        files = [*settings.inputs, *(path for path in (settings.validation_file, settings.exclude) if path)]
        inputs = [{"path": path, "sha256": None if is_hub_name(path) else sha256_of(path)} for path in files]
        head = {"task": settings.task, "source": settings.source, "seed": settings.seed, "inputs": inputs}
        return {**head, "schema": settings.schema.to_dict(), **self.tally.to_dict(settings.schema)}

    def _world_records(self, split: str, rows: int) -> Iterator[dict[str, Any]]:
        settings = self.settings
        if settings.task in RATED_TASKS:
            names = ("labels", "decoy_items_share", "decoy_claim_share", "answers_per_prompt")
            options = {name: settings.world[name] for name in names}
            return world.sample_rating_rows(rows, split, settings.seed, settings.schema, **options)
        if settings.task == "prompts":
            return world.sample_prompts(rows, split, settings.seed)
        shares = [settings.world[f"{kind}_share"] for kind in ("quiz", "checked", "counted")]
        return world.sample_sft(rows, split, settings.seed, *shares)

    def _write_sources(self, folder: OutputFolder, sources: Iterable[str], split: str) -> None:
        for source in sources:
            hub = self.settings.hub
            rows = read_rows(source, hub_split=hub["split"] or "train", hub_config=hub["config"])
            for source_row in with_progress(rows, source):
                for record in self._records(source_row):
                    self.tally.read += 1
                    if isinstance(record, RowError):
                        self._reject(folder, source_row, record)
                    else:
                        self._keep(folder, split, record, source_row)

    def _records(self, source_row: SourceRow) -> Iterator[dict[str, Any] | RowError]:
        settings = self.settings
        if source_row.row is None:
            yield source_row.error or RowError("unreadable row")
            return
        try:
            if settings.task in RATED_TASKS:
                numbers = source_row.text_numbers
                yield from rating_records(source_row.row, settings.layout, settings.schema, settings.max_chars, numbers)
            elif settings.task == "prompts":
                yield prompt_record(source_row.row, settings.layout, settings.max_chars)
            else:
                yield sft_record(source_row.row, settings.layout, settings.max_chars)
        except RowError as error:
            yield error

    def _keep(self, folder: OutputFolder, split: str, record: dict[str, Any], source_row: SourceRow) -> None:
        settings, tally = self.settings, self.tally
        if settings.task in RATED_TASKS and not record["labels"]:
            tally.skipped["unlabelled"] += 1
            return
        key = prompt_key(record["prompt"])
        if key in self._excluded:
            tally.skipped["excluded"] += 1
            return
        split = self._split_of(split, key)
        if settings.task == "prompts":
            record = self._tagged(record, split)
        elif settings.task == "cpsft":
            record = self._answer_with_its_tags(record, split)
        try:
            folder.write_line(f"{split}.jsonl", _to_json(record))
        except (TypeError, ValueError, RecursionError) as error:
            self._reject(folder, source_row, RowError("a column cannot be written as JSON", str(error)))
            return
        tally.rows[split] += 1
        if settings.task != "sft":
            tally.count_levels(split, settings.schema, record)

    def _split_of(self, split: str, key: bytes) -> str:
        """Split of a record, by its prompt alone, so that no prompt is on both sides."""
        settings = self.settings
        if settings.source == "world":
            return split
        if settings.validation_file is not None:
            if split == "validation":
                self._validation_prompts.add(key)
            elif key in self._validation_prompts:
                self.tally.shared_prompts += 1
            return split
        if settings.validation_share:
            digest = hashlib.blake2b(key, digest_size=8, key=str(settings.seed).encode()[:64]).digest()
            if int.from_bytes(digest, "big") < settings.validation_share * 2.0**64:
                return "validation"
        return split

    def _tagged(self, record: dict[str, Any], split: str) -> dict[str, Any]:
        group = self.tally.rows[split]
        rng = random.Random(f"tags:{self.settings.seed}:{split}:{group}")
        settings = self.settings
        preferences = sample_preferences(settings.schema, rng, settings.untagged_share)
        while split == "train" and is_held_out(preferences, settings.held_out_share, settings.seed):
            preferences = sample_preferences(settings.schema, rng)
        return {"prompt": record.pop("prompt"), "preferences": preferences, "group": group, **record}

    def _answer_with_its_tags(self, record: dict[str, Any], split: str) -> dict[str, Any]:
        rng = random.Random(f"cpsft:{self.settings.seed}:{split}:{self.tally.rows[split]}")
        preferences = tags_of_labels(record.pop("labels"), rng, self.settings.untagged_share)
        prompt = tag_prompt(record.pop("prompt"), preferences, self.settings.schema)
        return {"prompt": prompt, "preferences": preferences, **record}

    def _reject(self, folder: OutputFolder, source_row: SourceRow, error: RowError) -> None:
        if not self.settings.quarantine:
            raise ValueError(
                f"{source_row.file}:{source_row.line}: {error} (on_bad_row=quarantine sets such rows aside)"
            ) from error
        row = source_row.raw if source_row.row is None else source_row.row
        entry = {"file": source_row.file, "line": source_row.line, "reason": str(error), "row": row}
        folder.write_line(QUARANTINE, _to_safe_json(entry))
        self.tally.skipped["quarantined"] += 1
        self.tally.reasons[error.kind] += 1

    def _read_excluded(self) -> frozenset[bytes]:
        if self.settings.exclude is None:
            return frozenset()
        keys = set()
        for source_row in read_rows(self.settings.exclude):
            try:
                if source_row.row is None:
                    raise source_row.error or RowError("unreadable row")
                keys.add(prompt_key(find_prompt(source_row.row, Layout())))
            except RowError as error:
                raise ValueError(f"exclude={source_row.file}:{source_row.line}: {error}") from error
        return frozenset(keys)


def sample_preferences(schema: PreferenceSchema, rng: random.Random, untagged_share: float = 0.0) -> dict[str, int]:
    """Random preferences of 1-3 dimensions, in random order, at random levels; empty in ``untagged_share`` of calls."""
    if rng.random() < untagged_share:
        return {}
    count = rng.randint(1, min(MAX_TAGS, len(schema.dimensions)))
    return {d.name: rng.randint(1, d.levels) for d in rng.sample(schema.dimensions, count)}


def tags_of_labels(labels: Mapping[str, Label], rng: random.Random, untagged_share: float = 0.0) -> dict[str, int]:
    """The exact levels of 1-3 random dimensions of a rated answer, in random order; a distribution's most likely one.

    Preference-tagged supervised fine-tuning (CPSFT, Guo et al. 2024) asks for what the answer is. Empty in
    ``untagged_share`` of calls.
    """
    if rng.random() < untagged_share:
        return {}
    levels = {n: 1 + label.index(max(label)) if isinstance(label, list) else label for n, label in labels.items()}
    return {name: levels[name] for name in rng.sample(list(levels), rng.randint(1, min(MAX_TAGS, len(levels))))}


def is_held_out(preferences: Mapping[str, int], share: float, seed: int) -> bool:
    """Whether training prompts must not ask for this combination of levels; single dimensions are never held out."""
    if len(preferences) < 2:
        return False
    name = ",".join(f"{dimension}={level}" for dimension, level in sorted(preferences.items()))
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def _to_json(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise
    extra = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(extra, ensure_ascii=False, allow_nan=False)


def _to_safe_json(entry: dict[str, Any]) -> str:
    """JSON of any row: ASCII escapes keep broken Unicode, and what JSON cannot hold is written as Python shows it."""
    try:
        return json.dumps(entry, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        shown = repr(entry["row"])
    except (RecursionError, ValueError):
        shown = f"<{type(entry['row']).__name__} that cannot be shown>"
    return json.dumps({**entry, "row": shown})


def describe(manifest: Mapping[str, Any]) -> str:
    """A few lines that say what was made and what was left out, for the terminal."""
    if manifest["task"] == "tokenizer":
        size, asked = manifest["vocab_size"], manifest["vocab_size_asked"]
        short = "" if size == asked else f" (vocab_size={asked} asked: the texts have no more pairs to merge)"
        return f"tokenizer of {size} entries from {manifest['texts']} texts{short}"
    parts = [f"{name} {count}" for name, count in manifest["rows"].items()]
    skipped = [f"{count} {name}" for name, count in manifest["skipped"].items() if count]
    lines = [f"{manifest['task']}: {', '.join(parts)} rows; left out: {', '.join(skipped) or 'none'}"]
    lines += [f"  {count} x {reason}" for reason, count in manifest["reasons"].items()]
    for name in manifest["schema"]:
        counts = manifest["levels"].get("train", {}).get(name)
        if counts is not None:
            empty = "" if any(counts.values()) else "  <- no label at all: check the column's name or fields.dimensions"
            lines.append(f"  {name}: " + ", ".join(f"{level}: {count}" for level, count in counts.items()) + empty)
    if shared := manifest["train_rows_with_a_validation_prompt"]:
        lines.append(f"  {shared} train rows have a prompt of the validation file")
    return "\n".join(lines)
