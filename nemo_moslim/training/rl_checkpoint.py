"""Checkpoints of reinforcement learning: the policy in NeMo 2's layout with its optimizer, the critic beside it.

    RUN/checkpoints/step=000100/           weights/ and context/ of the policy, loop.json
    RUN/checkpoints/step=000100/critic/    weights/ and context/ of the critic, with PPO; a service has its
                                           critic's itself (remote_critic.py)

Everything random is drawn from (seed, step, row), and prompts are dealt by step, so that a resumed run needs the step
and the controllers' state alone.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

from nemo_moslim.models.initial_weights import SAVED_PREFIX
from nemo_moslim.parallel.layout import is_rank_zero
from nemo_moslim.run_folder import (
    UNFINISHED,
    best_record,
    checkpoint_name,
    checkpoints_folder,
    list_checkpoints,
    mark_best,
)
from nemo_moslim.training.trained_model import TrainedModel

LOOP_STATE = "loop.json"
CRITIC = "critic"
_METADATA = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}


def write_checkpoint(
    run_dir: str | Path,
    step: int,
    models: dict[str, TrainedModel],
    state: dict,
    contexts: dict[str, Path],
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write the state after `step` steps; `publish_checkpoint` gives it its name. A collective.

    Args:
        models: "" for the policy, CRITIC for the critic.
        state: of the loop; JSON.
        contexts: a context/ folder per model, to copy.
        beside: writes what else belongs to it into the folder; called on every rank.

    Returns:
        The folder, which nobody takes for a checkpoint yet.
    """
    unfinished = checkpoints_folder(run_dir) / (UNFINISHED + checkpoint_name(step))
    if is_rank_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in models:
            (unfinished / name / "weights").mkdir(parents=True)
            shutil.copytree(contexts[name], unfinished / name / "context")
        (unfinished / LOOP_STATE).write_text(json.dumps({"step": step, **state}) + "\n")
    torch.distributed.barrier()
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)  # each writes its share
    strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy(), replicas)
    for name, model in models.items():
        dist_checkpointing.save(_sharded_state(model, False), str(unfinished / name / "weights"), strategy)
    if beside:
        beside(unfinished)
    return unfinished


def publish_checkpoint(unfinished: Path) -> None:
    """Give a checkpoint that is complete on all ranks the name under which it is found. A collective."""
    torch.distributed.barrier()
    if is_rank_zero():
        final = unfinished.with_name(unfinished.name.removeprefix(UNFINISHED))
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
    torch.distributed.barrier()


def save_checkpoint(
    run_dir: str | Path, step: int, models: dict[str, TrainedModel], state: dict, contexts: dict[str, Path]
) -> None:
    """Write and publish at once; arguments as of `write_checkpoint`."""
    publish_checkpoint(write_checkpoint(run_dir, step, models, state, contexts))


def last_state(run_dir: str | Path) -> dict:
    """The loop's state in the last checkpoint of a run; empty where there is none."""
    found = list_checkpoints(run_dir)
    return json.loads((found[-1] / LOOP_STATE).read_text()) if found else {}


def load_checkpoint(checkpoint: Path, models: dict[str, TrainedModel]) -> dict:
    """Read weights and optimizers, in whatever layout they were written; returns the loop's state.

    Raises:
        ValueError: the checkpoint does not fit, or lacks the critic that this algorithm needs.
    """
    for name, model in models.items():
        folder = checkpoint / name / "weights"
        if not folder.is_dir():
            raise ValueError(f"{checkpoint}: no {name or 'policy'} in it; resume with the algorithm that began the run")
        try:
            loaded = dist_checkpointing.load(_sharded_state(model, True), str(folder))
        except (dist_checkpointing.core.CheckpointingException, KeyError, RuntimeError) as error:
            raise ValueError(f"{folder}: does not fit the model ({str(error).splitlines()[0]})") from error
        weights = {k.removeprefix(SAVED_PREFIX): v for k, v in loaded.items() if k.startswith(SAVED_PREFIX)}
        model.module.load_state_dict(weights, strict=False)
        model.optimizer.load_state_dict(loaded["optimizer"])
    return json.loads((checkpoint / LOOP_STATE).read_text())


def _sharded_state(model: TrainedModel, is_loading: bool) -> dict:
    """Names as NeMo's Trainer saves them."""
    weights = model.module.sharded_state_dict(prefix=SAVED_PREFIX, metadata=_METADATA)
    optimizer = model.optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_METADATA)
    return {**weights, "optimizer": optimizer}


def write_context(model, folder: Path) -> Path:
    """What NeMo needs to build the model again, tokenizer included, in folder/context; on rank 0."""
    if is_rank_zero():
        from nemo import lightning as nl
        from nemo.lightning.io.pl import TrainerContext

        strategy = nl.MegatronStrategy(ckpt_async_save=False)
        trainer = nl.Trainer(devices=1, accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False)
        shutil.rmtree(folder / "context", ignore_errors=True)
        TrainerContext(model=model, trainer=trainer, extra={}).io_dump(folder / "context", yaml_attrs=["model"])
    return folder / "context"


def keep_best(run_dir: str, step: int, value: float) -> None:
    """Mark the checkpoint after `step` steps as the best of the run if its validation reward is; on rank 0."""
    record = best_record(run_dir)
    if is_rank_zero() and (record is None or value > record["value"]):
        mark_best(run_dir, checkpoint_name(step), "reward", value)


def remove_unfinished(run_dir: str | Path) -> None:
    """What a kill in the middle of a write left; on rank 0."""
    if is_rank_zero():
        checkpoints_folder(run_dir).mkdir(parents=True, exist_ok=True)
        for leftover in checkpoints_folder(run_dir).glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
