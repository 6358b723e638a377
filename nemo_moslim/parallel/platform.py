"""What this machine offers to a layout and a precision, and what is refused without it.

All but `this_platform` are pure functions.
"""

from dataclasses import dataclass

from nemo_moslim.checks import divisors, use
from nemo_moslim.config import ParallelConfig
from nemo_moslim.parallel.layout_checks import EXPERT_WIDTH, FP8_BLOCK, FP8_MULTIPLE, Architecture, tensor_sizes

FP8_FROM = (8, 9)  # Ada; transformer_engine/pytorch/quantization.py, check_fp8_support
BLOCKWISE_FROM = (9, 0)  # Hopper; the same file, check_fp8_block_scaling_support
BLOCKWISE_CUDA = (12, 9)


@dataclass(frozen=True)
class Platform:
    """One rank's device. `capability` and `cuda` are (major, minor); None without a GPU."""

    capability: tuple[int, int] | None
    cuda: tuple[int, int] | None
    transformer_engine: bool


def this_platform() -> Platform:
    """The device of this process. Imports megatron-core (seconds) where there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return Platform(None, None, False)
    from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE  # what `models.layer_spec` asks

    major, minor = map(int, torch.version.cuda.split(".")[:2])
    return Platform(torch.cuda.get_device_capability(), (major, minor), HAVE_TE)


def check_platform(parallel: ParallelConfig, platform: Platform) -> None:
    """Refuse parallelism that needs Transformer Engine on a GPU.

    Raises:
        ValueError: context parallelism or overlapped tensor parallelism without it.
    """
    for key, value, off in (("context", parallel.context, 1), ("tensor_overlap", parallel.tensor_overlap, False)):
        if value == off or platform.transformer_engine:
            continue
        where = "a GPU" if platform.capability is None else "Transformer Engine, which is not installed"
        raise ValueError(
            f"parallel.{key}={str(value).lower()} works inside Transformer Engine's layers and needs {where}: use "
            f"parallel.{key}={str(off).lower()}, or run in the NeMo container on a GPU"
        )


def check_attention(precision: str, packing: bool, parallel: ParallelConfig, platform: Platform) -> None:
    """Refuse fp32 where rows are packed or split: Transformer Engine's flash and fused attention take 16-bit numbers,
    and its unfused one neither packed rows nor context parallelism.

    Raises:
        ValueError: see above; the remedy is precision=bf16.
    """
    if precision != "fp32" or not platform.transformer_engine:
        return
    for key, value, asked in (
        ("parallel.context", parallel.context, parallel.context > 1),
        ("batch.packing", "true", packing),
    ):
        if asked:
            raise ValueError(
                f"precision=fp32 with {key}={value}: Transformer Engine has no attention for it: use precision=bf16"
            )


def check_answers_together(answers: int, platform: Platform) -> None:
    """Refuse answers that share their prompt where Transformer Engine's attention would read them.

    Raises:
        ValueError: see above.
    """
    if answers > 1 and platform.transformer_engine:
        raise ValueError(
            f"answers_together={answers}: Transformer Engine has no attention for answers that share a prompt: use "
            "answers_together=1, with batch.packing=true against padding"
        )


def check_precision(
    precision: str, recipe: str, parallel: ParallelConfig, architecture: Architecture, platform: Platform
) -> None:
    """Refuse FP8 where device, software or sizes cannot run it.

    Raises:
        ValueError: see above; the message says which precision, recipe or layout can.
    """
    if precision != "fp8":
        return
    if platform.capability is None:
        raise ValueError("precision=fp8 needs a GPU with Transformer Engine: use precision=bf16 or fp32 here")
    if not platform.transformer_engine:
        raise ValueError(
            "precision=fp8 needs Transformer Engine, which is not installed: use precision=bf16, or run in the NeMo "
            "container"
        )
    if platform.capability < FP8_FROM:
        raise ValueError(
            f"precision=fp8: this GPU has compute capability {_dotted(platform.capability)}, FP8 starts with "
            f"{_dotted(FP8_FROM)} (Ada, Hopper): use precision=bf16"
        )
    if recipe == "blockwise" and (platform.capability < BLOCKWISE_FROM or platform.cuda < BLOCKWISE_CUDA):
        raise ValueError(
            f"fp8_recipe=blockwise needs compute capability {_dotted(BLOCKWISE_FROM)} (Hopper) and CUDA "
            f"{_dotted(BLOCKWISE_CUDA)}, got {_dotted(platform.capability)} and CUDA {_dotted(platform.cuda)}: use "
            "fp8_recipe=tensorwise or delayed"
        )
    _check_fp8_sizes(parallel, architecture)
    hidden = architecture["hidden_size"]
    if recipe == "blockwise" and parallel.sequence and hidden % FP8_BLOCK:
        raise ValueError(
            f"fp8_recipe=blockwise gathers whole blocks of {FP8_BLOCK} values over the tensor-parallel ranks, and "
            f"hidden_size={hidden} is no multiple of it: use fp8_recipe=tensorwise or delayed"
        )


def _check_fp8_sizes(parallel: ParallelConfig, architecture: Architecture) -> None:
    for name, width in fp8_widths(architecture).items():
        if width % FP8_MULTIPLE:
            raise ValueError(
                f"precision=fp8: {name}={width} is no multiple of {FP8_MULTIPLE}: use precision=bf16, or a model with "
                f"{name}={width // FP8_MULTIPLE * FP8_MULTIPLE + FP8_MULTIPLE}"
            )
    split = {name: width for name, width in fp8_widths(architecture).items() if name != "hidden_size"}
    if parallel.expert_tensor is not None and (width := split.pop(EXPERT_WIDTH, None)):
        slices = parallel.expert_slices
        if width // slices % FP8_MULTIPLE:
            fitting = [ranks for ranks in divisors(slices) if width % (ranks * FP8_MULTIPLE) == 0]
            remedy = use("parallel.expert_tensor", slices, fitting)
            raise ValueError(
                f"precision=fp8: parallel.expert_tensor={slices} leaves {width // slices} of {EXPERT_WIDTH}={width} on "
                f"a rank, no multiple of {FP8_MULTIPLE}: {remedy}, or precision=bf16"
            )
    for name, width in split.items():
        if width // parallel.tensor % FP8_MULTIPLE:
            fitting = [
                tensor
                for tensor in divisors(parallel.tensor)
                if all(w // tensor % FP8_MULTIPLE == 0 for w in split.values())
                and all(size % tensor == 0 for size in tensor_sizes(architecture).values())
            ]
            raise ValueError(
                f"precision=fp8: parallel.tensor={parallel.tensor} leaves {width // parallel.tensor} of {name}={width} "
                f"on a rank, no multiple of {FP8_MULTIPLE}: {use('parallel.tensor', parallel.tensor, fitting)}, or "
                "precision=bf16"
            )


def fp8_widths(architecture: Architecture) -> dict[str, int]:
    """Widths of the matrices that run in FP8; all but hidden_size are split over tensor-parallel ranks."""
    heads, groups = architecture["num_attention_heads"], architecture["num_query_groups"]
    head_size = architecture.get("kv_channels") or architecture["hidden_size"] // heads
    widths = {
        "hidden_size": architecture["hidden_size"],
        "attention width": heads * head_size,
        "query, key and value width": (heads + 2 * groups) * head_size,
    }
    return widths | {n: w for n, w in tensor_sizes(architecture).items() if "hidden" in n or "intermediate" in n}


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
