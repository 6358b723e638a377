"""Where this rank stands in the layout, and the few collectives that losses and telemetry need."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_moslim.config import ParallelConfig
from nemo_moslim.parallel.layout_checks import check_outside_trainer, check_ranks


def world_size() -> int:
    """Ranks of this launch (1 without torchrun)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Ranks of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """True on the rank that prints and writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def collective_timeout() -> timedelta:
    """How long ranks wait for one that does not come: the launch's number of seconds, as NeMo's Trainer takes it, or
    half an hour."""
    return timedelta(seconds=int(os.environ.get("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "1800")))


def initialize(parallel: ParallelConfig, seed: int) -> None:
    """Process groups and seeds outside NeMo's Trainer; a single process needs no launcher.

    Raises:
        ValueError: the world size does not fit the layout, or only NeMo's Trainer runs it.
    """
    check_outside_trainer(parallel, "this command")
    check_ranks(parallel, world_size())
    from megatron.core import parallel_state, tensor_parallel

    timeout = collective_timeout()
    if not dist.is_initialized():
        backend = "gloo" if not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
        if store := next_store():
            rank = int(os.environ.get("RANK", "0"))
            dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size())
        elif "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_slices,
        distributed_timeout_minutes=timeout / timedelta(minutes=1),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def sum_over_data_ranks(values: Tensor) -> Tensor:
    """All-reduced sum over the data-parallel (and context-parallel) ranks, in place."""
    from megatron.core import parallel_state

    dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return values


def maximum_over_data_ranks(values: Tensor) -> Tensor:
    """All-reduced maximum over the data-parallel (and context-parallel) ranks, in place."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    return values


def gather_over_data_ranks(item: Any) -> list[Any]:
    """Python objects of all data-parallel ranks, in order of rank, on each of them."""
    from megatron.core import parallel_state

    items = [None] * parallel_state.get_data_parallel_world_size()
    dist.all_gather_object(items, item, group=parallel_state.get_data_parallel_group_gloo())
    return items


def data_parallel_place() -> tuple[int, int]:
    """This rank's number among the data-parallel ranks, and how many there are."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def from_last_stage(values: Tensor) -> Tensor:
    """What the last pipeline stage holds, on every stage; other stages pass a tensor of the same shape and dtype."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(values, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on at least one."""
    values = torch.tensor([int(flag)], device="cuda")
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return bool(values.item())


def leave_process_group() -> None:
    """End of a training or evaluation: all ranks leave together. The process may go on to another, in any layout."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    if not dist.is_initialized():
        return
    dist.barrier()
    _left_stores.append(dist.distributed_c10d._get_default_store())
    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    get_cuda_rng_tracker().reset()
    dist.destroy_process_group()


def next_store() -> dist.Store | None:
    """Where the ranks meet for the process group to come: None (the launcher's place) for the first of this process.

    Later ones meet in the first one's store under a name of their own: a store made anew at the launcher's address
    could be missed by a rank that still reaches the old one.
    """
    if not _left_stores:
        return None
    return dist.PrefixStore(f"process group {len(_left_stores)}", _left_stores[0])


_left_stores: list[dist.Store] = []
