"""Megatron-core and NeMo on a machine without a GPU: `enable()` redirects the calls that hard-code CUDA.

The redirections are plain replacements of named functions, each applied by one small `_patch_*` function below whose
docstring says which caller needs it. They are visible in every thread and cost a dictionary look-up per factory call;
a `TorchFunctionMode`, the alternative, is entered per thread and taxes every tensor operation.

`torch.cuda.is_available()` keeps answering False, so code that asks first takes its own CPU path.
"""

import contextlib
import functools
import resource
import sys
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from nemo_moslim.parallel.cpu_streams import Event, Stream

_PATCHES: dict[str, Callable[[], None]] = {}
_enabled = False
_target = torch.device("cpu")

_LIKE_FACTORIES = ("empty_like", "full_like", "ones_like", "zeros_like", "rand_like", "randint_like", "randn_like")
_NEW_METHODS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")


def enabled() -> bool:
    """True once `enable()` has run in this process."""
    return _enabled


def patch_names() -> tuple[str, ...]:
    """The names of all patches, in the order in which `enable()` applies them."""
    return tuple(_PATCHES)


def enable(*, without: Collection[str] = ()) -> None:
    """Makes megatron-core and NeMo run on this CPU-only process. Idempotent: a second call does nothing.

    Call it once per process, before a model is built; before or after megatron-core or NeMo are imported. It imports
    megatron-core (seconds), not NeMo.

    Args:
        without: names from `patch_names()` to leave out. For diagnosis and for the tests that show what each is for.

    Raises:
        RuntimeError: CUDA is available, where these redirections would silently move all work to the CPU.
        ValueError: `without` holds a name that is no patch.
    """
    global _enabled
    if torch.cuda.is_available():
        raise RuntimeError(
            "nemo_moslim.parallel.cpu.enable() refuses to run: torch.cuda.is_available() is True, and the redirections "
            "would silently move all GPU work to the CPU. Remove the call, or hide the GPUs: CUDA_VISIBLE_DEVICES=''."
        )
    unknown = sorted(set(without) - set(_PATCHES))
    if unknown:
        raise ValueError(f"enable(without=...): unknown patch {unknown}; expected names among {list(_PATCHES)}")
    if _enabled:
        return
    _fill_compiler_tables()
    for name, apply in _PATCHES.items():
        if name not in without:
            apply()
    _enabled = True


@contextlib.contextmanager
def redirect_to(device: torch.device | str) -> Iterator[None]:
    """Inside the block, CUDA requests land on `device` in place of the CPU (process wide).

    With "meta", a model of any size is built without memory, to plan layouts: combine it with `torch.device("meta")`.
    """
    global _target
    previous, _target = _target, torch.device(device)
    try:
        yield
    finally:
        _target = previous


def cpu_model_overrides() -> dict[str, Any]:
    """Fields of `TransformerConfig` (and NeMo's `GPTConfig`) that must be off without Transformer Engine and CUDA.

    Use as `config_class(..., **cpu_model_overrides())` or set them one by one. `use_cpu_initialization` also makes the
    initial weights of one rank's generator, sliced (a gated MLP's slices still differ between tensor-parallel sizes, by
    the order of gate and up rows). `pipeline_dtype` is not here: it follows the precision.
    """
    return {
        "use_cpu_initialization": True,  # the GPU initialisation draws per rank from a CUDA generator
        "apply_rope_fusion": False,  # Transformer Engine kernel
        "bias_activation_fusion": False,  # torch.compile'd, needs a compiler and 30 s
        "bias_dropout_fusion": False,  # torch.compile'd
        "cross_entropy_loss_fusion": False,  # torch.compile'd
        "gradient_accumulation_fusion": False,  # Apex CUDA extension
        "masked_softmax_fusion": False,  # CUDA extension
        "persist_layer_norm": False,  # Apex CUDA extension
        "memory_efficient_layer_norm": False,  # Apex CUDA extension
        "moe_grouped_gemm": False,  # Transformer Engine or grouped_gemm CUDA kernels
        "moe_permute_fusion": False,  # Transformer Engine kernel
        "tp_comm_overlap": False,  # Transformer Engine user buffers
        "batch_p2p_sync": False,  # a CUDA synchronisation after each exchange of pipeline stages
        "overlap_p2p_comm": False,
    }


def prepare_strategy(strategy: Any) -> Any:
    """What a `nemo.lightning.MegatronStrategy` needs on the CPU; returns it. Does nothing where `enable()` has not run.

    NeMo's progress printer runs on one rank and there gathers megatron-core's timers over all ranks: on gloo the
    collective waits for ever. Without timers it prints the same line less the timings.

    Raises:
        ValueError: the strategy asks for context parallelism, which needs Transformer Engine's attention.
    """
    if not _enabled:
        return strategy
    if strategy.context_parallel_size > 1:
        raise ValueError(
            f"parallel.context: expected 1 on the CPU, got {strategy.context_parallel_size}: context parallelism needs "
            "Transformer Engine's attention, hence a GPU. Use tensor, pipeline or data parallelism."
        )
    strategy.timers = None
    return strategy


def _fill_compiler_tables() -> None:
    """torch.compile (megatron-core decorates with it at import) maps torch's functions to rules by identity, in a
    table made at its first use: it must be made of the true functions."""
    from torch._dynamo.trace_rules import get_torch_obj_rule_map

    get_torch_obj_rule_map()


def _patch(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(function: Callable[[], None]) -> Callable[[], None]:
        _PATCHES[name] = function
        return function

    return register


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def _redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with CUDA in its `device=` redirected and `pin_memory=` ignored."""

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and _is_cuda(device):
                kwargs["device"] = _target
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return factory


@_patch("factories")
def _patch_factories() -> None:
    """megatron-core allocates with `device=torch.cuda.current_device()` or `device="cuda"` in some two hundred places
    (communication buffers, gradient buffers, losses, token counts); NeMo also with `pin_memory=True`."""
    from torch.jit._builtins import _find_builtin, _register_builtin
    from torch.utils._device import _device_constructors

    # Fills torch's own cache with the true functions: `with torch.device("meta")` recognises them by identity.
    constructors = _device_constructors()
    names = [function.__name__ for function in constructors if getattr(torch, function.__name__, None) is function]
    for name in (*names, *_LIKE_FACTORIES):
        original = getattr(torch, name)
        replacement = _redirected(original)
        setattr(torch, name, replacement)
        operator = _find_builtin(original)
        if operator is not None:  # torch.jit.script finds operators by identity as well
            _register_builtin(replacement, operator)
    for name in _NEW_METHODS:
        setattr(torch.Tensor, name, _redirected(getattr(torch.Tensor, name)))


@_patch("tensor_moves")
def _patch_tensor_moves() -> None:
    """`.cuda()` and `.to("cuda")`: megatron-core's checkpoint exchange, gradient scaler and data broadcast, NeMo's
    batch transfer, `MegatronParallel` (`module.cuda()`) and metric logging. `record_stream`: the MoE dispatcher."""
    original = torch.Tensor.to

    @functools.wraps(original)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_target, *args[1:])
        device = kwargs.get("device")
        if device is not None and _is_cuda(device):
            kwargs["device"] = _target
        return original(self, *args, **kwargs)

    torch.Tensor.to = to
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: original(self, _target)
    torch.Tensor.pin_memory = lambda self, *_args, **_kwargs: self
    torch.Tensor.record_stream = lambda self, _stream: None


@_patch("tensor_type")
def _patch_tensor_type() -> None:
    """megatron-core's optimizers sort parameters by the string `param.type()` and refuse all but
    "torch.cuda.FloatTensor", "torch.cuda.HalfTensor" and "torch.cuda.BFloat16Tensor"; gradient clipping asserts it.
    NeMo's token count and gradient scaler use the type objects `torch.cuda.LongTensor` and `FloatTensor`."""
    original = torch.Tensor.type

    @functools.wraps(original)
    def tensor_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            name = original(self)  # inside a TorchFunctionMode, torch comes back here by name
            return name if name.startswith("torch.cuda.") else name.replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return original(self, dtype, *args, **kwargs)

    torch.Tensor.type = tensor_type
    torch.cuda.FloatTensor = torch.FloatTensor
    torch.cuda.LongTensor = torch.LongTensor


@_patch("streams")
def _patch_streams() -> None:
    """Streams, events and synchronisation: megatron-core's pipeline exchange, MoE dispatcher, timers and DDP buffers,
    NeMo's `MegatronParallel`, which builds DDP on a side stream. `nvtx`: ranges around layers in both."""
    stream = Stream()
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_args, **_kwargs: stream
    torch.cuda.stream = lambda _stream: stream
    for name in ("set_stream", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, _nothing())
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = _nothing(), _nothing()


@_patch("device_queries")
def _patch_device_queries() -> None:
    """`current_device`: everywhere, and an int since NeMo's checkpoint IO builds `torch.device("cuda", index=...)` of
    it. `device_count`: NeMo seeds megatron-core's generators only where it is above 0. `is_initialized`: NeMo's
    checkpoint IO asserts it. Capability (0, 0) answers "too old" to every check for a kernel."""
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.is_initialized = lambda: True
    torch.cuda.set_device = _nothing()
    torch.cuda.device = lambda _device: contextlib.nullcontext()
    torch.cuda.is_bf16_supported = lambda *_args, **_kwargs: True
    torch.cuda.get_device_name = lambda *_args: "cpu"
    torch.cuda.get_device_capability = lambda *_args: (0, 0)
    torch.cuda.get_device_properties = lambda *_args: types.SimpleNamespace(name="cpu", major=0, minor=0)


@_patch("memory_statistics")
def _patch_memory_statistics() -> None:
    """NeMo logs `max_memory_allocated` and `max_memory_reserved`, and its memory callback reads `memory_stats`: here
    the resident memory of the process in bytes (its peak, which the system counts since the process began)."""
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *_args, **_kwargs: peak_resident_bytes())
    torch.cuda.memory_stats = lambda *_args, **_kwargs: {}
    torch.cuda.reset_peak_memory_stats = _nothing()


def peak_resident_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _nothing() -> Callable[..., None]:
    """A new function for a CUDA call that has nothing to do here (torch's tables want one object per name)."""
    return lambda *_args, **_kwargs: None


@_patch("rng_state")
def _patch_rng_state() -> None:
    """megatron-core's RNG tracker (dropout and initialisation per tensor-parallel rank), activation recomputation and
    NeMo's checkpoint of random states: CUDA's generator becomes the CPU's."""
    import megatron.core.tensor_parallel.random as random

    def get_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(new_state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
        torch.set_rng_state(new_state)

    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state, module.set_rng_state = get_rng_state, set_rng_state
        module.manual_seed = torch.manual_seed
    # torch.manual_seed calls manual_seed_all itself, after it has seeded the CPU's generator.
    torch.cuda.manual_seed_all = _nothing()
    random._get_cuda_rng_state, random._set_cuda_rng_state = get_rng_state, set_rng_state


@_patch("all_to_all_splits")
def _patch_all_to_all_splits() -> None:
    """megatron-core's expert dispatch passes split sizes as tensors, which gloo's binding of `all_to_all_single`
    rejects; without this no model trains with expert parallelism above 1."""
    original = torch.distributed.all_to_all_single

    @functools.wraps(original)
    def all_to_all_single(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        sizes = [s.tolist() if hasattr(s, "tolist") else s for s in (output_split_sizes, input_split_sizes)]
        return original(output, input, sizes[0], sizes[1], group=group, async_op=async_op)

    torch.distributed.all_to_all_single = all_to_all_single


@_patch("unequal_parts")
def _patch_unequal_parts() -> None:
    """With tensor and expert parallelism together, megatron-core gathers an expert's tokens (and the gradients of its
    answers) from tensor-parallel ranks that have different numbers of them; gloo gathers parts of one size only."""
    original = torch.distributed.all_gather

    @functools.wraps(original)
    def all_gather(
        tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        if async_op or len({part.shape for part in tensor_list}) == 1:
            return original(tensor_list, tensor, group=group, async_op=async_op)
        tensor_list[torch.distributed.get_rank(group)].copy_(tensor)
        for source, part in enumerate(tensor_list):
            torch.distributed.broadcast(part, group=group, group_src=source)
        return None

    torch.distributed.all_gather = all_gather


@_patch("router_gemm")
def _patch_router_gemm() -> None:
    """megatron-core 0.15's MoE router compares `te_general_gemm` with None, but leaves the name undefined where
    Transformer Engine is absent: a NameError in the first forward of any MoE model."""
    import megatron.core.transformer.moe.moe_utils as moe_utils

    moe_utils.te_general_gemm = None


@_patch("multi_tensor_kernels")
def _patch_multi_tensor_kernels() -> None:
    """Where Transformer Engine or Apex is installed (NVIDIA's container without a GPU), megatron-core takes the norm of
    the gradients, and clips them, by their CUDA kernels; here by its own functions for where neither is."""
    import megatron.core.optimizer.clip_grads as clip_grads
    import megatron.core.optimizer.optimizer as optimizer
    import megatron.core.utils as utils

    for module in (clip_grads, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm


@_patch("adam")
def _patch_adam() -> None:
    """megatron-core's distributed optimizer cannot load what it saved with torch's AdamW, which keeps `step` per
    parameter; with an Adam of FusedAdam's state layout it takes the path of TE and Apex, which resumes bitwise."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed_optimizer

    from nemo_moslim.parallel.cpu_optimizer import GroupStepAdam

    optimizer.Adam = GroupStepAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed_optimizer.Adam = GroupStepAdam
    distributed_optimizer.HAVE_APEX_OR_TE = True
    distributed_optimizer.USING_APEX_OPTIMIZER = True
