"""From a run to a Hugging Face folder that stock transformers loads.

A language model becomes its family's ForCausalLM (Qwen2ForCausalLM, LlamaForCausalLM, …). A reward model becomes its
family's ForSequenceClassification with one label per (dimension, level), its heads, loss and statistics in config.json
under "moslim".
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nemo_moslim.families import FAMILIES, Family
from nemo_moslim.functional.statistics import RunningStatistics, check_floor, mean_std
from nemo_moslim.huggingface.architecture import ASKED_KEY, SETTINGS_KEY, architecture_to_hf
from nemo_moslim.huggingface.checkpoint_reader import CheckpointReader
from nemo_moslim.huggingface.folder_readme import policy_readme, reward_model_readme
from nemo_moslim.huggingface.tensor_names import hf_tensors
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import resolve_checkpoint

HEAD = "output_layer.weight"
STATISTICS = "output_layer.statistics_"


def export_hf(run: str, output: str, dtype: str, max_shard_gigabytes: float) -> Path:
    """Write a Hugging Face folder from a run (its best checkpoint, else its last); appears whole or not at all.

    One file's tensors are in memory at a time, and the tensor that comes next.

    Args:
        dtype: float32 or bfloat16, for the backbone; a reward model's heads and statistics stay fp32 in config.json's
            numbers and in the score layer's tensor.

    Raises:
        ValueError: no checkpoint, an output that exists, a missing head or statistic, an architecture without a
            Hugging Face class here.
    """
    from nemo.lightning import io

    from nemo_moslim.models.backbone import architecture_of
    from nemo_moslim.models.initial_weights import tokenizer_folder

    checkpoint, folder = resolve_checkpoint(run), Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output={output}: it exists and is not empty; choose another or remove it")
    config = io.load_context(checkpoint / "context", subpath="model.config")
    reader = CheckpointReader(checkpoint)
    from nemo_moslim.data.chat import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder(checkpoint))
    architecture, vocab_size = architecture_of(config), len(tokenizer)
    settings = architecture_to_hf(architecture, config.seq_length, vocab_size)
    family = FAMILIES[architecture["family"]]
    is_reward_model = hasattr(config, "preferences")
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if is_reward_model:
        write_reward_config(unfinished, family, settings, config, reader, tokenizer, dtype)
        (unfinished / "README.md").write_text(reward_model_readme(config.schema, config.loss, family))
    else:
        schema = PreferenceSchema.from_dict(config.asked) if config.asked else None
        write_policy_config(unfinished, family, settings, schema, config.stop_ids, tokenizer, dtype)
        (unfinished / "README.md").write_text(policy_readme(schema, family))
    tokenizer.save_pretrained(unfinished)
    shards = ShardWriter(unfinished, max_shard_gigabytes)
    tied = architecture["share_embeddings_and_output_weights"]
    for name, layer, tensor in reader.tensors():
        if name.startswith(STATISTICS):
            continue
        if is_reward_model and name == HEAD:
            shards.add({"score.weight": tensor.float()})
        elif not (tied and name == HEAD):
            renamed = hf_tensors(name, layer, tensor, architecture, vocab_size)
            shards.add({key: value.to(getattr(torch, dtype)) for key, value in renamed.items()})
    shards.close()
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    return folder


def hf_config(family: Family, head: str, settings: dict, tokenizer, dtype: str):
    """The family's configuration in transformers; `head` is ForCausalLM or ForSequenceClassification."""
    import transformers

    return getattr(transformers, f"{family.transformers}Config")(
        **settings,
        **token_ids(tokenizer),
        architectures=[family.transformers + head],
        torch_dtype=dtype,
    )


def token_ids(tokenizer) -> dict[str, int | None]:
    """The tokenizer's special tokens under the names of config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def write_policy_config(
    folder: Path,
    family: Family,
    settings: dict,
    asked: PreferenceSchema | None,
    stop_ids: list[int] | None,
    tokenizer,
    dtype: str,
) -> None:
    """config.json and generation_config.json of a language model."""
    from transformers import GenerationConfig

    if asked:
        settings = {**settings, ASKED_KEY: named(asked)}
    hf_config(family, "ForCausalLM", settings, tokenizer, dtype).save_pretrained(folder)
    sampling = dict(do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
    ids = token_ids(tokenizer)
    ends = {ids["eos_token_id"], *(stop_ids or ())}
    if len(ends) > 1:
        ids["eos_token_id"] = sorted(ends)
    GenerationConfig(**ids, **sampling).save_pretrained(folder)


def named(schema: PreferenceSchema) -> list[dict]:
    """The dimensions in their order: config.json is written with sorted keys."""
    return [{"name": name, **spec} for name, spec in schema.to_dict().items()]


def write_reward_config(
    folder: Path, family: Family, settings: dict, config, reader: CheckpointReader, tokenizer, dtype: str
) -> None:
    """config.json of a reward model: labels, and what Eq. 11 needs.

    Raises:
        ValueError: a statistic is missing or a deviation is under the floor; a pad token that equals EOS.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            "the tokenizer's pad token is its EOS token: stock transformers finds an answer's last token by "
            "the pad token; give the tokenizer a pad token of its own"
        )
    schema = config.schema
    state = RunningStatistics(*(reader.read(STATISTICS + name) for name in RunningStatistics._fields))
    average, deviation = mean_std(state)
    check_floor(deviation, config.std_floor, schema.class_names)
    moslim = {
        "preferences": named(schema),  # the order of the heads is that of the logits
        "loss": config.loss,
        "statistics": {name: values.tolist() for name, values in state._asdict().items()},
        "average": average.tolist(),
        "standard_deviation": deviation.tolist(),
        "std_floor": config.std_floor,
    }
    labels = dict(
        num_labels=schema.num_classes,
        id2label=dict(enumerate(schema.class_names)),
        label2id={name: index for index, name in enumerate(schema.class_names)},
    )
    settings = {**settings, **labels, "tie_word_embeddings": False, SETTINGS_KEY: moslim}
    hf_config(family, "ForSequenceClassification", settings, tokenizer, dtype).save_pretrained(folder)


class ShardWriter:
    """Safetensors files of limited size and their index, holding one file's tensors in memory at a time."""

    def __init__(self, folder: Path, max_gigabytes: float):
        self.folder, self.limit = folder, int(max_gigabytes * 2**30)
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._files: list[list[str]] = []
        self._total = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Queue tensors; a full file is written."""
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            if self._pending and self._pending_bytes + size > self.limit:
                self._flush()
            self._pending[name] = tensor.contiguous()
            self._pending_bytes += size

    def _flush(self) -> None:
        save_file(self._pending, self.folder / f"shard-{len(self._files)}", metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._total += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def close(self) -> None:
        """Write the rest and give the files the names that transformers expects."""
        self._flush()
        count = len(self._files)
        if count == 1:
            (self.folder / "shard-0").rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._files):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.folder / f"shard-{number}").rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
