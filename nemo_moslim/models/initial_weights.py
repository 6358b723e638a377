"""Where a model's first weights come from: another run's checkpoint or a Hugging Face folder, into any layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from nemo_moslim.models.backbone import architecture_of
from nemo_moslim.models.token_head import find_head
from nemo_moslim.preferences import PreferenceSchema

SIZES = {
    "family": "family",
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_query_groups",
    "num_experts": "num_moe_experts",
    "experts_per_token": "moe_router_topk",
    "expert_hidden_size": "moe_ffn_hidden_size",
    "shared_expert_hidden_size": "moe_shared_expert_intermediate_size",
}


SAVED_PREFIX = "module."  # under which NeMo's strategy saves the model


@dataclass(frozen=True)
class Heads:
    """What a reward model's heads were trained for: two with the same mean the same by a row of their weights."""

    schema: PreferenceSchema
    loss: str

    @classmethod
    def of(cls, config) -> "Heads | None":
        """Those of a model's configuration; None where it is no reward model's."""
        return cls(config.schema, config.loss) if hasattr(config, "preferences") else None

    def __str__(self) -> str:
        entries = self.schema.to_dict().items()
        return f"loss={self.loss}, " + ", ".join(f"{name}: {entry}" for name, entry in entries)


class Source(Protocol):
    """A place that gives an architecture, its weights and its tokenizer."""

    architecture: dict
    max_length: int
    tokenizer_folder: Path
    heads: Heads | None  # of a reward model
    asked: dict | None  # of a language model, see models/policy.py
    stop_ids: list[int] | None

    def sizes(self) -> dict:
        """Family and sizes under the names of conf/model."""

    def describe(self) -> str:
        """One line for the log."""

    def load_into(self, module: torch.nn.Module) -> None:
        """Fill this rank's part of the backbone, and heads where the source has those of the same dimensions and loss.

        Other heads keep their own start, and statistics always do: they are of the rows of a training.
        """


def sizes_of(architecture: dict) -> dict:
    """Family and sizes under the names of conf/model; a dense architecture may leave out those of experts."""
    return {ours: architecture[theirs] for ours, theirs in SIZES.items() if theirs in architecture}


def tokenizer_folder(checkpoint: Path) -> Path:
    """Where a checkpoint's context keeps its tokenizer.

    Raises:
        ValueError: it keeps none.
    """
    for file in sorted((checkpoint / "context").glob("*/tokenizer.json")):
        return file.parent
    raise ValueError(f"{checkpoint}: no tokenizer in its context/; give tokenizer=DIR")


class RunSource:
    """A checkpoint of this framework (NeMo 2 layout), in whatever layout it was written."""

    def __init__(self, checkpoint: Path):
        from nemo.lightning import io

        self.checkpoint = checkpoint
        self.config = io.load_context(checkpoint / "context", subpath="model.config")
        self.architecture = architecture_of(self.config)
        self.max_length = self.config.seq_length
        self.heads = Heads.of(self.config)
        self.tokenizer_folder = tokenizer_folder(checkpoint)
        self.asked = getattr(self.config, "asked", None)
        self.stop_ids = getattr(self.config, "stop_ids", None)

    def sizes(self) -> dict:
        return sizes_of(self.architecture)

    def describe(self) -> str:
        return f"{self.checkpoint.name}, {self.config.num_layers} layers of {self.config.hidden_size}"

    def load_into(self, module: torch.nn.Module) -> None:
        """See `Source`. A vocabulary layer is never read into heads, nor the other way round.

        Raises:
            ValueError: a language model asked to start from a reward model, which has no vocabulary layer.
        """
        has_heads = find_head(module) is not None
        if self.heads and not has_heads and module.post_process:
            raise ValueError(
                f"model.init={self.checkpoint}: a reward model has no vocabulary layer to start a language "
                "model from; give a language model"
            )
        skip = ("output_layer.",) if has_heads else ()
        if self.heads and self.heads == Heads.of(module.config):
            skip = ("output_layer.statistics_",)
        load_weights(module, self.checkpoint, skip)


def load_weights(module: torch.nn.Module, checkpoint: Path, skip: tuple[str, ...] = ()) -> None:
    """Read a distributed checkpoint into this rank's megatron module; names that start with `skip` keep their values.

    Raises:
        ValueError: a weight is missing in the checkpoint or has another shape.
    """
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.core import CheckpointingException

    prefix = SAVED_PREFIX
    in_parts = parallel_state.get_virtual_pipeline_model_parallel_world_size() is not None  # no part reads all shards
    wanted = module.sharded_state_dict(prefix=prefix, metadata=dict(singleton_local_shards=False))
    skipped = tuple(prefix + name for name in skip)
    wanted = {name: value for name, value in wanted.items() if not (skipped and name.startswith(skipped))}
    try:
        loaded = dist_checkpointing.load(wanted, str(checkpoint / "weights"), validate_access_integrity=not in_parts)
    except (CheckpointingException, KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint}: does not fit the model ({str(error).splitlines()[0]})") from error
    state = {name.removeprefix(prefix): loaded[name] for name in wanted}
    missing, unexpected = module.load_state_dict(state, strict=False)
    lost = [name for name in missing if not (skip and name.startswith(skip)) and "_extra_state" not in name]
    if lost or unexpected:
        raise ValueError(f"{checkpoint}: weights missing {lost}, unexpected {unexpected}")


def save_weights(module: torch.nn.Module, checkpoint: Path) -> None:
    """Write this rank's part of a megatron module into checkpoint/weights (there, and empty); a collective.

    NeMo's own save does not do once training is over: it has unwrapped the model by then, and names come out otherwise.
    """
    from megatron.core import dist_checkpointing

    state = module.sharded_state_dict(prefix=SAVED_PREFIX, metadata=dict(singleton_local_shards=False))
    dist_checkpointing.save(state, str(checkpoint / "weights"))
