"""Checked settings of a data preparation; the yaml of the entry point holds every default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_moslim.data.adapters import Layout
from nemo_moslim.preferences import PreferenceSchema

TASKS = ("ratings", "prompts", "sft", "cpsft", "tokenizer")
LABEL_LISTS = ("distribution", "annotators")
SOURCES = ("world", "table", "ultrafeedback", "ultrasafety", "hh_rlhf")


@dataclass(frozen=True)
class PrepareSettings:
    """Checked settings of one preparation; the yaml of the entry point holds every default."""

    task: str
    source: str
    inputs: tuple[str, ...]
    output: str
    schema: PreferenceSchema
    layout: Layout
    validation_file: str | None
    validation_share: float
    seed: int
    quarantine: bool
    max_chars: int
    exclude: str | None
    untagged_share: float
    held_out_share: float
    vocab_size: int
    tag_tokens: bool
    hub: Mapping[str, str | None]
    world: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PrepareSettings:
        """Check a plain config dict. Raises ValueError with the key named."""
        task = _choice(config, "task", TASKS)
        source = _choice(config, "source", SOURCES)
        schema = PreferenceSchema.from_dict(config["preferences"])
        layout = Layout()
        if source != "world":
            layout = Layout.from_config(config["layouts"][source], config["fields"], schema)
            layout = replace(layout, annotators=_choice(config, "label_lists", LABEL_LISTS) == "annotators")
        validation_file, share = _validation(config["validation"])
        settings = cls(
            task=task,
            source=source,
            inputs=_inputs(config["input"]),
            output=str(config["output"] or ""),
            schema=schema,
            layout=layout,
            validation_file=validation_file,
            validation_share=share,
            seed=_integer(config, "seed", 0),
            quarantine=_choice(config, "on_bad_row", ("raise", "quarantine")) == "quarantine",
            max_chars=_integer(config, "max_chars", 1),
            exclude=config["exclude"],
            untagged_share=_share(config, "untagged_share"),
            held_out_share=_share(config, "held_out_share"),
            vocab_size=_integer(config, "vocab_size", 1),
            tag_tokens=_choice(config, "tag_tokens", (True, False)),
            hub=dict(config["hub"]),
            world=dict(config["world"]),
        )
        settings._check_combination()
        return settings

    def _check_combination(self) -> None:
        is_world = self.source == "world" and self.task != "tokenizer"
        if is_world and self.inputs:
            raise ValueError("source=world is generated: leave out input=, or name another source")
        if is_world and self.validation_file:
            raise ValueError(
                "source=world makes its own validation rows (world.validation_rows): leave out validation=FILE"
            )
        if not is_world and not self.inputs:
            raise ValueError(f"input: task={self.task} source={self.source} needs input=FILE, [FILE,…] or a hub name")
        if self.task in ("ratings", "cpsft") and self.source == "hh_rlhf":
            raise ValueError("source=hh_rlhf holds pairs, no ratings: use it with task=prompts or task=sft")
        if self.task == "sft" and self.source in ("ultrafeedback", "ultrasafety"):
            raise ValueError(f"task=sft does not take source={self.source}: its answers are rated, good and bad ones")
        if self.exclude is not None and self.task != "prompts":
            raise ValueError(f"exclude= is for task=prompts, not task={self.task}")
        if self.quarantine and self.task == "tokenizer":
            raise ValueError("on_bad_row=quarantine is not for task=tokenizer: it keeps no rows; leave it out")
        if self.held_out_share == 1:
            raise ValueError("held_out_share must be below 1: training prompts need combinations of levels")
        if is_world:
            for key in ("rows", "validation_rows", "test_rows", "answers_per_prompt"):
                _integer(self.world, key, 1 if key in ("rows", "answers_per_prompt") else 0, "world.")
            for key in ("decoy_items_share", "decoy_claim_share", "quiz_share", "checked_share", "counted_share"):
                _share(self.world, key, "world.")
            if self.world["checked_share"] + self.world["counted_share"] > 1:
                raise ValueError("world.checked_share and world.counted_share together must be at most 1")


def _choice(config: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    if config[key] not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {config[key]!r}")
    return config[key]


def _integer(config: Mapping[str, Any], key: str, minimum: int, section: str = "") -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{section}{key} must be an integer >= {minimum}, got {value!r}")
    return value


def _share(config: Mapping[str, Any], key: str, section: str = "") -> float:
    value = config[key]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{section}{key} must be a share in [0, 1], got {value!r}")
    return float(value)


def _inputs(value: Any) -> tuple[str, ...]:
    values = [] if value in (None, "") else [value] if isinstance(value, str) else list(value)
    if not all(isinstance(entry, str) and entry for entry in values):
        raise ValueError(f"input must be FILE, [FILE,…] or a hub name, got {value!r}")
    return tuple(values)


def _validation(value: Any) -> tuple[str | None, float]:
    """A validation setting as (file, share): a number is a share, anything else a file."""
    if value in (None, ""):
        return None, 0.0
    try:
        share = float(value)
    except (TypeError, ValueError):
        return str(value), 0.0
    if isinstance(value, bool) or not 0 <= share < 1:
        raise ValueError(f"validation must be a FILE or a share in [0, 1), got {value!r}")
    return None, share
