"""Where first weights come from: `model.init` names a run or a Hugging Face folder."""

import json
from pathlib import Path

import torch

from nemo_moslim.huggingface.architecture import ASKED_KEY, SETTINGS_KEY, architecture_from_hf, read_config
from nemo_moslim.huggingface.load_backbone import load_backbone
from nemo_moslim.huggingface.safetensors_folder import SafetensorsFolder
from nemo_moslim.models.initial_weights import Heads, RunSource, Source, sizes_of
from nemo_moslim.models.token_head import find_head
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import is_run, resolve_checkpoint


def open_source(path: str, key: str = "model.init") -> Source:
    """A run directory, one of its checkpoints, or a Hugging Face folder; `key` is the setting that named it.

    Raises:
        ValueError: it is neither.
    """
    if is_run(path):
        return RunSource(resolve_checkpoint(path))
    if (Path(path) / "config.json").is_file():
        return HuggingFaceSource(Path(path))
    raise ValueError(f"{key}={path}: neither a run directory (checkpoints/) nor a Hugging Face folder (config.json)")


def exported_heads(config: dict) -> Heads | None:
    """What config.json of an exported reward model says of its heads; None in that of any other model."""
    settings = config.get(SETTINGS_KEY) or {}
    if not {"preferences", "loss"} <= set(settings):
        return None
    entries = {d["name"]: {k: v for k, v in d.items() if k != "name"} for d in settings["preferences"]}
    return Heads(PreferenceSchema.from_dict(entries), settings["loss"])


class HuggingFaceSource:
    """A Hugging Face folder as the start of a model (see models/initial_weights.py)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_config(folder)
        self.architecture = architecture_from_hf(self.config)
        self.max_length = self.config["max_position_embeddings"]
        self.tokenizer_folder = folder
        self.heads = exported_heads(self.config)
        self.asked = _named(self.config[ASKED_KEY]) if ASKED_KEY in self.config else None
        self.stop_ids = _stop_ids(folder)

    def sizes(self) -> dict:
        return sizes_of(self.architecture)

    def describe(self) -> str:
        config = self.config
        return f"{config['architectures'][0]}, {config['num_hidden_layers']} layers of {config['hidden_size']}"

    def load_into(self, module: torch.nn.Module) -> None:
        """See `Source`; the vocabulary layer where the model has one.

        Raises:
            ValueError: a language model asked to start from a folder without a vocabulary layer.
        """
        tensors = SafetensorsFolder(self.folder)
        head = find_head(module)
        load_backbone(module, tensors, self.architecture, skip_output=head is not None)
        if head is not None and self.heads and self.heads == Heads.of(module.config):
            with torch.no_grad():
                head.weight.copy_(tensors["score.weight"])


def _named(dimensions: list[dict]) -> dict[str, dict]:
    return {d["name"]: {key: value for key, value in d.items() if key != "name"} for d in dimensions}


def _stop_ids(folder: Path) -> list[int] | None:
    """The tokens at which stock transformers ends an answer, where generation_config.json has a list of them.

    A single one is left to the tokenizer, which names it too: configurations have a default that need not fit.
    """
    file = folder / "generation_config.json"
    found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    return found if isinstance(found, list) else None
