"""Rewarded Soups (Ramé et al. 2023; MOSLIM Eq. 2): one policy per objective, mixed by their weights.

theta_lambda = sum_i lambda_i * theta_i,  sum_i lambda_i = 1

Each rank mixes its own shards, one policy after the other, so that memory holds two copies of a shard whatever the
number of policies.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_moslim.baseline_config import MergeConfig
from nemo_moslim.config import ParallelConfig
from nemo_moslim.huggingface.sources import open_source
from nemo_moslim.models.initial_weights import Source, save_weights
from nemo_moslim.models.policy import PolicyModel
from nemo_moslim.models.weight_mixing import mix
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.start import start
from nemo_moslim.rollout.open_model import open_policy
from nemo_moslim.run_folder import UNFINISHED, checkpoint_name, checkpoints_folder, list_checkpoints
from nemo_moslim.training.checkpoint import write_in_this_process
from nemo_moslim.training.rl_checkpoint import write_context


def merge(config: MergeConfig) -> None:
    """Mix runs into a run of its own: output/checkpoints/step=000000, in NeMo 2's layout.

    Raises:
        ValueError: an output that holds a checkpoint already, runs that do not fit each other, a layout that cannot be.
    """
    if list_checkpoints(config.output):
        raise ValueError(f"output={config.output}: a run with checkpoints; choose another folder or remove it")
    start(config.parallel, 1, config.cpu_threads)
    write_in_this_process()
    model = open_soup(config.runs, config.weights, config.parallel)
    if config.precision == "bf16":
        model.module.bfloat16()
    final = checkpoints_folder(config.output) / checkpoint_name(0)
    unfinished = final.with_name(UNFINISHED + final.name)
    if is_rank_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "weights").mkdir(parents=True)
    write_context(model, unfinished)
    torch.distributed.barrier()
    save_weights(model.module, unfinished)
    if is_rank_zero():
        unfinished.rename(final)
        parts = " + ".join(f"{w:g} x {Path(run).name}" for w, run in zip(config.weights, config.runs, strict=True))
        print(f"{parts} written to {config.output}")
    leave_process_group()


def open_soup(runs: Sequence[str], weights: Sequence[float], parallel: ParallelConfig) -> PolicyModel:
    """A policy whose fp32 weights are the mixture; `parallel.layout.initialize` comes first.

    Raises:
        ValueError: weights that are negative or do not sum to 1, a run that is no language model, other architectures
            or tokenizers than the first's.
    """
    check_mixture(runs, weights)
    sources = [open_source(run, "runs") for run in runs]
    check_alike(runs, sources)
    asked = {str(source.asked): source.asked for source in sources}
    model, _ = open_policy(runs[0], parallel, "fp32")
    (model.config.asked,) = asked.values() if len(asked) == 1 else (None,)
    mix(model.module, [source.load_into for source in sources], weights)
    return model


def check_mixture(runs: Sequence[str], weights: Sequence[float]) -> None:
    """ValueError unless there is a weight of 0 or above per run and they sum to 1."""
    if len(runs) != len(weights) or not runs:
        raise ValueError(f"weights={list(weights)}: expected one for each of the {len(runs)} runs")
    if min(weights) < 0 or abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(f"weights={list(weights)}: expected values of 0 or above that sum to 1, got {sum(weights):g}")


def check_alike(runs: Sequence[str], sources: Sequence[Source]) -> None:
    """ValueError unless all are language models of one architecture with one tokenizer."""
    for run, source in zip(runs, sources, strict=True):
        if getattr(source.config, "preferences", None):
            raise ValueError(f"runs: {run} is a reward model; its heads and statistics cannot be mixed")
        expected, found = _architecture(sources[0]), _architecture(source)
        for name in [*expected, *(name for name in found if name not in expected)]:
            first, here = expected.get(name), found.get(name)
            if first == here:
                continue
            raise ValueError(f"runs: {run} has {name}={here}, {runs[0]} has {first}: only equal architectures mix")
        if _tokenizer(source) != _tokenizer(sources[0]):
            raise ValueError(f"runs: {run} has another tokenizer than {runs[0]}: their embeddings do not mix")


def _architecture(source: Source) -> dict:
    """What has to be equal: of a dense model not what it says of experts, which a Hugging Face folder leaves out."""
    mixture = source.architecture.get("num_moe_experts")
    return {name: value for name, value in source.architecture.items() if mixture or not name.startswith("moe_")}


def _tokenizer(source: Source) -> bytes:
    return (Path(source.tokenizer_folder) / "tokenizer.json").read_bytes()
