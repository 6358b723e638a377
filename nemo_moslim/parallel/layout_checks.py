"""Whether a model, its batches and this number of ranks fit a layout: pure functions, asked before anything is loaded.

A refusal names the key and its value, why that cannot be, and the nearest values that can. Sizes come under
megatron-core's names, as in `models.backbone.ARCHITECTURE_FIELDS`.
"""

from collections.abc import Mapping
from math import gcd, lcm

from nemo_moslim.checks import divisors, multiples_around, use
from nemo_moslim.config import ParallelConfig

Architecture = Mapping[str, int | None]

EXPERT_WIDTH = "moe_ffn_hidden_size"
FP8_MULTIPLE = 16  # of every dimension of a matrix product in FP8; transformer_engine/pytorch/utils.py
FP8_BLOCK = 128  # values that share a scale with fp8_recipe=blockwise; float8_blockwise_tensor.py beside that file


def check_model(parallel: ParallelConfig, architecture: Architecture) -> None:
    """Refuse layouts that do not divide the model.

    Raises:
        ValueError: tensor parallelism against heads, query groups, feed-forward sizes and vocabulary; pipeline stages
            against layers; experts.
    """
    _check_tensor(parallel, architecture)
    _check_pipeline(parallel, architecture["num_layers"])
    _check_experts(parallel, architecture.get("num_moe_experts"), architecture.get(EXPERT_WIDTH))


def tensor_sizes(architecture: Architecture) -> dict[str, int]:
    """What tensor parallelism splits, by name; the experts where `expert_tensor` says nothing else."""
    names = ["num_attention_heads", "num_query_groups", "vocab_size"]
    if architecture.get("num_moe_experts"):
        names += [EXPERT_WIDTH, "moe_shared_expert_intermediate_size"]
    else:
        names.append("ffn_hidden_size")
    return {name: architecture[name] for name in names if architecture.get(name)}


def _check_tensor(parallel: ParallelConfig, architecture: Architecture) -> None:
    sizes = tensor_sizes(architecture)
    if parallel.expert_tensor is not None:
        sizes.pop(EXPERT_WIDTH, None)
    for name, size in sizes.items():
        if size % parallel.tensor:
            remedy = use("parallel.tensor", parallel.tensor, divisors(gcd(*sizes.values())))
            raise ValueError(f"parallel.tensor={parallel.tensor} does not divide {name}={size}: {remedy}")


def _check_pipeline(parallel: ParallelConfig, layers: int) -> None:
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    if layers % stages:
        remedy = use("parallel.pipeline", stages, divisors(layers))
        raise ValueError(f"parallel.pipeline={stages} does not divide num_layers={layers}: {remedy}")
    if chunks is None:
        return
    if stages == 1:
        raise ValueError(
            f"parallel.virtual_pipeline={chunks} needs parallel.pipeline > 1: use parallel.virtual_pipeline=null"
        )
    possible = [number for number in divisors(layers // stages) if number > 1]
    if chunks not in possible:
        raise ValueError(
            f"parallel.virtual_pipeline={chunks} does not divide the {layers // stages} layers of a pipeline stage: "
            + use("parallel.virtual_pipeline", chunks, possible, "null")
        )


def _check_experts(parallel: ParallelConfig, experts: int | None, width: int | None) -> None:
    if not experts:
        for key, value, unset in (("expert", parallel.expert, 1), ("expert_tensor", parallel.expert_tensor, None)):
            if value != unset:
                remedy = f"use parallel.{key}={_yaml(unset)}"
                raise ValueError(f"parallel.{key}={value}: the model has no experts: {remedy}")
        return
    if experts % parallel.expert:
        remedy = use("parallel.expert", parallel.expert, divisors(experts))
        raise ValueError(f"parallel.expert={parallel.expert} does not divide num_moe_experts={experts}: {remedy}")
    if width % parallel.expert_slices:
        remedy = use("parallel.expert_tensor", parallel.expert_slices, divisors(width))
        raise ValueError(
            f"parallel.expert_tensor={parallel.expert_slices} does not divide {EXPERT_WIDTH}={width}: {remedy}"
        )
    if parallel.tensor > 1 and not parallel.sequence:
        raise ValueError(
            f"parallel.sequence=false: a mixture of experts with parallel.tensor={parallel.tensor} needs sequence "
            "parallelism: use parallel.sequence=true"
        )


def data_parallel_size(parallel: ParallelConfig, ranks: int) -> int:
    """Ranks left for data parallelism.

    Raises:
        ValueError: the world size is no multiple of tensor * pipeline * context.
    """
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    if ranks % model_ranks:
        starts = " or ".join(map(str, multiples_around(ranks, model_ranks)))
        raise ValueError(
            f"parallel: tensor={parallel.tensor} x pipeline={parallel.pipeline} x context={parallel.context} needs a "
            f"multiple of {model_ranks} ranks, got {ranks}: "
            + ", or ".join([f"start {starts} ranks", *_lower_for(parallel, ranks, model_ranks)])
        )
    return ranks // model_ranks


def _lower_for(parallel: ParallelConfig, ranks: int, model_ranks: int) -> list[str]:
    """For each kind of parallelism that need only be lowered: the remedy, a divisor, which divides the model too."""
    remedies = []
    for key in ("tensor", "pipeline", "context"):
        size = getattr(parallel, key)
        fitting = [lower for lower in divisors(size)[:-1] if ranks % (model_ranks // size * lower) == 0]
        if fitting:
            remedies.append(use(f"parallel.{key}", size, fitting))
    return remedies


def check_ranks(parallel: ParallelConfig, ranks: int) -> int:
    """Ranks left for data parallelism, once they can also hold the experts.

    Raises:
        ValueError: as `data_parallel_size`, or expert parallelism that does not divide the ranks of a pipeline stage
            over those that split an expert (megatron-core spreads experts over these).
    """
    replicas = data_parallel_size(parallel, ranks)
    stage, slices = ranks // parallel.pipeline, parallel.expert_slices
    if stage % slices:
        remedy = use("parallel.expert_tensor", slices, divisors(stage))
        raise ValueError(
            f"parallel.expert_tensor={slices} does not divide the {stage} ranks of a pipeline stage: {remedy}"
        )
    hosts = stage // slices
    if hosts % parallel.expert:
        fitting = divisors(gcd(hosts, parallel.expert))  # these divide the experts too
        remedy = use("parallel.expert", parallel.expert, fitting)
        split = "tensor" if parallel.expert_tensor is None else "expert_tensor"
        raise ValueError(
            f"parallel.expert={parallel.expert} does not divide the {hosts} ranks that {split}={slices} x "
            f"pipeline={parallel.pipeline} leave of {ranks}: {remedy}"
        )
    return replicas


def check_batch(parallel: ParallelConfig, global_size: int, micro_size: int, replicas: int) -> None:
    """Refuse batches that cannot be dealt to the data-parallel ranks, or fed to an interleaved pipeline.

    Raises:
        ValueError: the global batch is no multiple of micro-batch x ranks; with virtual pipeline, a rank's number of
            micro-batches is no multiple of the stages (megatron-core's interleaved schedule).
    """
    step = micro_size * replicas
    needed = step * (parallel.pipeline if parallel.virtual_pipeline else 1)
    if global_size % needed == 0:
        return
    why = f"batch.micro_size={micro_size} x {replicas} data-parallel ranks"
    if global_size % step == 0:
        why += f" x parallel.pipeline={parallel.pipeline} (virtual pipeline)"
    remedy = use("batch.global_size", global_size, multiples_around(global_size, needed))
    raise ValueError(f"batch.global_size={global_size} is no multiple of {why}: {remedy}")


def row_multiple(parallel: ParallelConfig, precision: str, fp8_recipe: str = "delayed") -> int:
    """Lengths of micro-batches are padded to a multiple of this.

    8 for the matrix units of bf16; with FP8 every rank's share of the positions is a multiple of 16, since Transformer
    Engine's matrix products need that of every dimension. Context parallelism gives every rank two equal pieces of a
    row, sequence parallelism splits them over tensor ranks, which with `blockwise` scaling gather whole blocks of 128
    (transformer_engine/pytorch/utils.py, assert_dim_for_all_gather).
    """
    splits = parallel.tensor if parallel.sequence else 1
    if precision != "fp8":
        return parallel.context * lcm(dtype_multiple(precision), splits, 2 if parallel.context > 1 else 1)
    share = FP8_BLOCK if fp8_recipe == "blockwise" and parallel.sequence else FP8_MULTIPLE
    return parallel.context * splits * share


def dtype_multiple(precision: str) -> int:
    """`row_multiple` where nothing is split: fp32 has no matrix units to suit, and 8 is a tenth of a short row."""
    return 1 if precision == "fp32" else 8


def sequence_multiple(parallel: ParallelConfig) -> int:
    """The sequences of a packed row are padded to a multiple of this: context parallelism splits each of them."""
    return 2 * parallel.context if parallel.context > 1 else 1


def check_fixed_length(
    parallel: ParallelConfig, fixed_length: bool, packing: bool, max_length: int, multiple: int
) -> None:
    """Refuse what needs micro-batches of one shape where they vary, and one shape that the layout cannot split.

    Raises:
        ValueError: see above.
    """
    fix = f"{'batch.packing=false and ' if packing else ''}batch.fixed_length=true"
    for key, value, off, why in (
        ("virtual_pipeline", parallel.virtual_pipeline, None, "megatron-core's interleaved schedule takes one length"),
        ("tensor_overlap", parallel.tensor_overlap, False, "Transformer Engine's buffers have one size"),
        ("moe_dispatcher", parallel.moe_dispatcher, "alltoall", "megatron-core's dispatcher takes one length"),
    ):
        if value != off and not fixed_length:
            raise ValueError(f"parallel.{key}={_yaml(value)}: {why}: use {fix}, or parallel.{key}={_yaml(off)}")
    if fixed_length and max_length % multiple:
        raise ValueError(
            f"model.max_length={max_length} is no multiple of {multiple}, which batch.fixed_length=true needs in this "
            f"layout and precision: {use('model.max_length', max_length, multiples_around(max_length, multiple))}"
        )
    if parallel.tensor_overlap and not parallel.sequence:
        possible = "parallel.sequence=true, or " if parallel.tensor > 1 else ""
        raise ValueError(
            "parallel.tensor_overlap=true hides the communication of sequence parallelism: "
            f"use {possible}parallel.tensor_overlap=false"
        )


def check_outside_trainer(parallel: ParallelConfig, what: str) -> None:
    """Refuse what only NeMo's Trainer runs (train_sft, train_rm).

    Args:
        what: the activity, for the message.

    Raises:
        ValueError: a kind of parallelism that `what` does not support.
    """
    for key, value, allowed in (
        ("virtual_pipeline", parallel.virtual_pipeline, None),
        ("context", parallel.context, 1),
        ("tensor_overlap", parallel.tensor_overlap, False),
        ("moe_dispatcher", parallel.moe_dispatcher, "alltoall"),
    ):
        if value != allowed:
            raise ValueError(
                f"parallel.{key}={_yaml(value)}: {what} runs with tensor, pipeline, expert, sequence and data "
                f"parallelism on rows of varying length: use parallel.{key}={_yaml(allowed)}"
            )


def _yaml(value: int | str | bool | None) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower()


def check_policy_batch(prompts: int, answers: int, mini_size: int, micro_size: int, replicas: int, unit: int) -> None:
    """Refuse policy batches that the data-parallel ranks cannot share evenly.

    Args:
        answers: that a step trains on.
        unit: answers of a prompt that share a micro-batch.

    Raises:
        ValueError: prompts, or micro-batches of an update, are no multiple of the ranks.
    """
    if prompts % replicas:
        remedy = use("batch.prompts", prompts, multiples_around(prompts, replicas))
        raise ValueError(f"batch.prompts={prompts} is no multiple of the {replicas} data-parallel ranks: {remedy}")
    micro_batches = mini_size // micro_size
    if micro_batches % replicas:
        fitting = [size for size in divisors(mini_size) if size % unit == 0 and mini_size // size % replicas == 0]
        updates = [size for size in divisors(answers) if size % (unit * replicas) == 0]
        remedy = use("batch.micro_size", micro_size, fitting) if fitting else use("batch.mini_size", mini_size, updates)
        raise ValueError(
            f"batch.micro_size={micro_size} cuts batch.mini_size={mini_size} into {micro_batches} micro-batches, no "
            f"multiple of the {replicas} data-parallel ranks: {remedy}"
        )
