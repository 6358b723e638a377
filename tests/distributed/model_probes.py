"""Models of all families opened, run, saved and exported in several layouts; reached through training_probes.py."""

import json
from pathlib import Path

LAYOUTS = {  # of two ranks, then of four: tensor, pipeline, expert, sequence; and ranks that an expert is split over
    "DP=2": (1, 1, 1, False),
    "TP=2": (2, 1, 1, False),
    "TP=2 with sequence parallelism": (2, 1, 1, True),
    "PP=2": (1, 2, 1, False),
    "EP=2": (1, 1, 2, False),
    "TP=2 x EP=2": (2, 1, 2, True),
    "TP=2 x EP=2, whole experts": (2, 1, 2, True, 1),
    "TP=2 x PP=2": (2, 2, 1, True),
    "PP=2 x EP=2": (1, 2, 2, False),
}


def open_in_layouts(jobs: list[dict], output: str, rows: dict | None = None) -> None:
    """Opens each model in its layout, writes its logits, and saves it as a run that is exported again.

    Args:
        jobs: name, role (policy or reward), source (a Hugging Face folder, or the name of an earlier job whose run is
            opened), layout.
        output: takes of each job NAME.pt (logits fp32 [B, S, V or C]), NAME.json (a policy's answers), NAME/run and
            NAME/export.
        rows: families to add to the table first.
    """
    from nemo_moslim.families import FAMILIES, Family
    from nemo_moslim.parallel import cpu
    from nemo_moslim.training.checkpoint import write_in_this_process

    FAMILIES.update({name: Family(**row) for name, row in (rows or {}).items()})
    cpu.enable()
    write_in_this_process()
    for job in jobs:
        open_in_layout(Path(output), **job)


def open_in_layout(output: Path, name: str, role: str, source: str, layout: str) -> None:
    from nemo_moslim.config import ParallelConfig
    from nemo_moslim.huggingface.export import export_hf
    from nemo_moslim.parallel.layout import initialize, is_rank_zero, leave_process_group
    from nemo_moslim.rollout.open_model import open_policy, open_reward_model

    tensor, pipeline, expert, sequence, *slices = LAYOUTS[layout]
    parallel = ParallelConfig(tensor, pipeline, None, 1, expert, *(slices or [None]), sequence, False, "alltoall")
    initialize(parallel, seed=1)
    place = source if "/" in source else str(output / source / "run")
    model, tokenizer = (open_policy if role == "policy" else open_reward_model)(place, parallel, "fp32")
    write_logits(model, output / f"{name}.pt")
    if role == "policy":
        write_answers(model, tokenizer, output / f"{name}.json")
    save_run(model, tokenizer, output / name / "run")
    leave_process_group()
    if is_rank_zero():
        export_hf(str(output / name / "run"), str(output / name / "export"), "float32", 4e-5)


def tokens():
    """int64 [3, 24]; ids below 250."""
    import torch

    return torch.randint(0, 250, (3, 24), generator=torch.Generator().manual_seed(5))


def write_logits(model, file: Path) -> None:
    """Logits of `tokens()` at every position, whole, from one of the ranks that have them."""
    import torch
    from megatron.core import parallel_state as state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from nemo_moslim.batches import RewardBatch, position_ids
    from nemo_moslim.models.token_head import find_head
    from nemo_moslim.rollout.score import forward_micro_batches, unwrapped

    rows = tokens()
    batch = RewardBatch(rows, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1), torch.zeros(3, 1).bool())
    module = unwrapped(model)

    def collect(batch, output):
        return output if find_head(module) else gather_from_tensor_model_parallel_region(output)

    def every_position(stage, batch):
        return stage(batch.tokens, position_ids(batch.tokens), attention_mask=None)

    kept = forward_micro_batches(module, [batch], collect, rows.shape[1], every_position)
    if kept and not state.get_tensor_model_parallel_rank() and not state.get_data_parallel_rank():
        torch.save(kept[0], file)


def write_answers(model, tokenizer: Path, file: Path) -> None:
    """The most likely continuations of prompts of three lengths, six tokens each, by the KV cache."""
    from nemo_moslim.config import GenerationConfig
    from nemo_moslim.data.chat import load_tokenizer
    from nemo_moslim.parallel.layout import is_rank_zero
    from nemo_moslim.rollout.generate import MegatronGenerator
    from nemo_moslim.rollout.score import unwrapped

    settings = GenerationConfig(max_new_tokens=6, temperature=0, top_p=1, top_k=0, stop_tokens=[], batch_size=3)
    generator = MegatronGenerator(unwrapped(model), settings, [], len(load_tokenizer(tokenizer)), 64)
    made = generator.generate(prompts(), [(row,) for row in range(3)])
    if is_rank_zero():
        file.write_text(json.dumps([answer.tolist() for answer in made.tokens]))


def prompts() -> list[list[int]]:
    """The rows of `tokens()`, cut to different lengths."""
    return [row[:length].tolist() for row, length in zip(tokens(), (10, 24, 17), strict=True)]


def save_run(model, tokenizer: Path, run: Path) -> None:
    """A run directory with the model as its only checkpoint."""
    import torch

    from nemo_moslim.models.initial_weights import save_weights
    from nemo_moslim.parallel.layout import is_rank_zero
    from nemo_moslim.rollout.open_model import nemo_tokenizer
    from nemo_moslim.rollout.score import unwrapped
    from nemo_moslim.training.rl_checkpoint import write_context

    checkpoint = run / "checkpoints" / "step=000001"
    if is_rank_zero():
        (checkpoint / "weights").mkdir(parents=True)
    torch.distributed.barrier()
    save_weights(unwrapped(model), checkpoint)
    write_context(type(model)(model.config, tokenizer=nemo_tokenizer(tokenizer)), checkpoint)


def peak_memory(source: str, output: str) -> dict[str, int]:
    """Bytes that this process holds at most beyond what it held before, while it reads a Hugging Face folder into a
    model that is there already, and while it exports the model's checkpoint."""
    import ctypes

    from nemo_moslim.config import ParallelConfig
    from nemo_moslim.huggingface.export import export_hf
    from nemo_moslim.huggingface.sources import open_source
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize, leave_process_group
    from nemo_moslim.rollout.open_model import open_policy
    from nemo_moslim.rollout.score import unwrapped
    from nemo_moslim.training.checkpoint import write_in_this_process

    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: freed tensors are not kept, as in large models
    cpu.enable()
    write_in_this_process()
    parallel = ParallelConfig(1, 1, None, 1, 1, None, False, False, "alltoall")
    initialize(parallel, seed=1)
    model, tokenizer = open_policy(source, parallel, "fp32")
    weights = sum(p.numel() * p.element_size() for p in unwrapped(model).parameters())
    start = reset_peak()
    open_source(source).load_into(unwrapped(model))
    imported = resident("VmHWM") - start
    save_run(model, tokenizer, Path(output) / "run")
    leave_process_group()
    del model
    start = reset_peak()
    export_hf(str(Path(output) / "run"), str(Path(output) / "export"), "float32", 16 / 1024)
    return {"weights": weights, "import": imported, "export": resident("VmHWM") - start}


def reset_peak() -> int:
    """Let the peak of resident memory begin anew; answers with the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def published_sizes(pairs: dict[str, str]) -> dict[str, dict]:
    """For each configuration conf/model/NAME.yaml what it says otherwise than a class (module.Class) of NeMo's form."""
    import dataclasses
    import importlib

    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import SFTConfig, parse
    from nemo_moslim.models.backbone import backbone_settings

    different = {}
    for name, place in pairs.items():
        module, _, nemo_class = place.rpartition(".")
        theirs = dataclasses.fields(getattr(importlib.import_module(module), nemo_class))
        theirs = {field.name: field.default for field in theirs}
        model = parse(compose_config("train_sft", ["run_dir=r", "data=d", f"model={name}"]), SFTConfig).model
        ours = backbone_settings(model, model.vocab_size)
        different[name] = {key: [value, theirs[key]] for key, value in ours.items() if theirs.get(key, value) != value}
    return different


def configuration_classes() -> list[list[str]]:
    """Classes that a configuration is of: of each family, then of one whose family is not given."""
    from nemo_moslim.families import FAMILIES
    from nemo_moslim.models.policy import PolicyConfig

    sizes = dict(num_layers=2, hidden_size=64, num_attention_heads=4, kv_channels=16)
    made = [*(PolicyConfig(family=family, **sizes) for family in FAMILIES), PolicyConfig(**sizes)]
    return [[parent.__name__ for parent in type(config).__mro__] for config in made]


def first_experts() -> list[list]:
    """First weights of every expert, [pipeline stage][expert-parallel rank], of a mixture over two by two ranks."""
    from dataclasses import replace

    import torch
    from megatron.core import parallel_state
    from planning_probes import SIZES, settings

    from nemo_moslim.models.backbone import backbone_settings
    from nemo_moslim.models.policy import PolicyConfig
    from nemo_moslim.parallel.cpu import enable
    from nemo_moslim.planning.shape import Layout
    from nemo_moslim.planning.shards import pretended_ranks
    from nemo_moslim.rollout.open_model import place_on_layout

    enable()
    layout = Layout(1, 2, 2, 2, 1, "none")
    model = settings([*SIZES, "model=qwen2_57b_a14b", "model.num_experts=4", "model.experts_per_token=2"]).model
    found = []
    for stage in range(layout.pipeline):
        config = PolicyConfig(**backbone_settings(replace(model, num_layers=2), 300), seq_length=64)
        place_on_layout(config, layout.parallel(), "fp32")
        found.append([])
        for rank in range(layout.expert):
            with pretended_ranks(layout, stage):
                parallel_state.set_expert_model_parallel_rank(rank)
                torch.manual_seed(1)
                module = config.configure_model(None)
                weights = [p for name, p in module.named_parameters() if ".experts." in name and "fc1" in name]
                found[-1].append([float(p.flatten()[0]) for p in weights])
                parallel_state.set_expert_model_parallel_rank(None)
    return found
