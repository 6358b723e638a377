"""Every layout that cannot run is refused with the key, the reason and the nearest values that can."""

import pytest

from nemo_moslim.checks import use
from nemo_moslim.config import ParallelConfig
from nemo_moslim.parallel.layout_checks import (
    check_batch,
    check_fixed_length,
    check_model,
    check_outside_trainer,
    check_policy_batch,
    check_ranks,
    data_parallel_size,
    row_multiple,
    sequence_multiple,
)


def layout(**changes):
    settings = dict(
        tensor=1, pipeline=1, virtual_pipeline=None, context=1, expert=1, expert_tensor=None, sequence=False,
        tensor_overlap=False, moe_dispatcher="alltoall",
    )  # fmt: skip
    return ParallelConfig(**settings | changes)


DENSE = dict(
    num_layers=28, hidden_size=3584, ffn_hidden_size=18944, num_attention_heads=28, num_query_groups=4,
    vocab_size=152064, num_moe_experts=None,
)  # fmt: skip
MIXTURE = DENSE | dict(num_moe_experts=64, moe_ffn_hidden_size=2560, moe_shared_expert_intermediate_size=20480)


def refused(function, *arguments):
    with pytest.raises(ValueError) as error:
        function(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("parallel", "architecture"),
    [
        (layout(), DENSE),
        (layout(tensor=4, pipeline=7), DENSE),
        (layout(pipeline=2, virtual_pipeline=7), DENSE),
        (layout(tensor=4, sequence=True, expert=16), MIXTURE),
        (layout(expert=64), MIXTURE),
    ],
)
def test_layouts_that_divide_the_model_pass(parallel, architecture):
    check_model(parallel, architecture)


@pytest.mark.parametrize(
    ("parallel", "changes", "message"),
    [
        (layout(tensor=3), {}, "parallel.tensor=3 does not divide num_attention_heads=28: use parallel.tensor=2 or 4"),
        (layout(tensor=7), {}, "parallel.tensor=7 does not divide num_query_groups=4: use parallel.tensor=4"),
        (layout(tensor=2), {"ffn_hidden_size": 65},
         "parallel.tensor=2 does not divide ffn_hidden_size=65: use parallel.tensor=1"),
        (layout(tensor=4), {"vocab_size": 150},
         "parallel.tensor=4 does not divide vocab_size=150: use parallel.tensor=2"),
        (layout(pipeline=3), {}, "parallel.pipeline=3 does not divide num_layers=28: use parallel.pipeline=2 or 4"),
        (layout(pipeline=56), {}, "parallel.pipeline=56 does not divide num_layers=28: use parallel.pipeline=28"),
        (layout(virtual_pipeline=2), {},
         "parallel.virtual_pipeline=2 needs parallel.pipeline > 1: use parallel.virtual_pipeline=null"),
        (layout(pipeline=2, virtual_pipeline=4), {},
         "parallel.virtual_pipeline=4 does not divide the 14 layers of a pipeline stage: "
         "use parallel.virtual_pipeline=2 or 7 or null"),
        (layout(pipeline=28, virtual_pipeline=2), {},
         "parallel.virtual_pipeline=2 does not divide the 1 layers of a pipeline stage: "
         "use parallel.virtual_pipeline=null"),
        (layout(expert=2), {}, "parallel.expert=2: the model has no experts: use parallel.expert=1"),
        (layout(expert_tensor=1), {},
         "parallel.expert_tensor=1: the model has no experts: use parallel.expert_tensor=null"),
    ],
)  # fmt: skip
def test_layouts_that_do_not_divide_the_model_are_refused(parallel, changes, message):
    assert refused(check_model, parallel, DENSE | changes) == message


@pytest.mark.parametrize(
    ("parallel", "changes", "message"),
    [
        (layout(expert=12), {}, "parallel.expert=12 does not divide num_moe_experts=64: use parallel.expert=8 or 16"),
        (layout(tensor=2), {}, "parallel.sequence=false: a mixture of experts with parallel.tensor=2 needs sequence "
         "parallelism: use parallel.sequence=true"),
        (layout(tensor=4, sequence=True), {"moe_ffn_hidden_size": 2562},
         "parallel.tensor=4 does not divide moe_ffn_hidden_size=2562: use parallel.tensor=2"),
        (layout(tensor=4, sequence=True, expert_tensor=3), {},
         "parallel.expert_tensor=3 does not divide moe_ffn_hidden_size=2560: use parallel.expert_tensor=2 or 4"),
    ],
)  # fmt: skip
def test_layouts_that_do_not_divide_the_experts_are_refused(parallel, changes, message):
    assert refused(check_model, parallel, MIXTURE | changes) == message


def test_sizes_of_dense_layers_do_not_bind_a_mixture():
    check_model(layout(tensor=4, sequence=True), MIXTURE | {"ffn_hidden_size": 18945})


def test_tensor_parallelism_does_not_bind_experts_that_stay_whole():
    check_model(layout(tensor=4, sequence=True, expert_tensor=1), MIXTURE | {"moe_ffn_hidden_size": 2562})


@pytest.mark.parametrize(
    ("parallel", "ranks", "replicas"),
    [(layout(tensor=2), 2, 1), (layout(tensor=2), 8, 4), (layout(tensor=4, pipeline=2, expert=8), 64, 8),
     (layout(context=2, expert=8), 8, 4), (layout(tensor=4, pipeline=2, expert=32, expert_tensor=1), 64, 8)],
)  # fmt: skip
def test_data_parallel_ranks_are_what_is_left(parallel, ranks, replicas):
    assert data_parallel_size(parallel, ranks) == check_ranks(parallel, ranks) == replicas


@pytest.mark.parametrize(
    ("parallel", "ranks", "message"),
    [
        (layout(tensor=2, pipeline=2), 6, "parallel: tensor=2 x pipeline=2 x context=1 needs a multiple of 4 ranks, "
         "got 6: start 4 or 8 ranks, or use parallel.tensor=1, or use parallel.pipeline=1"),
        (layout(tensor=4, pipeline=7), 8, "parallel: tensor=4 x pipeline=7 x context=1 needs a multiple of 28 ranks, "
         "got 8: start 28 ranks, or use parallel.pipeline=1"),
        (layout(tensor=3, pipeline=3), 8, "parallel: tensor=3 x pipeline=3 x context=1 needs a multiple of 9 ranks, "
         "got 8: start 9 ranks"),
        (layout(tensor=8), 4, "parallel: tensor=8 x pipeline=1 x context=1 needs a multiple of 8 ranks, got 4: "
         "start 8 ranks, or use parallel.tensor=4"),
        (layout(tensor=4, expert=16, sequence=True), 32, "parallel.expert=16 does not divide the 8 ranks that "
         "tensor=4 x pipeline=1 leave of 32: use parallel.expert=8"),
        (layout(expert=8), 12, "parallel.expert=8 does not divide the 12 ranks that tensor=1 x pipeline=1 leave of 12: "
         "use parallel.expert=4"),  # not 6 or 12, which do not divide a model's 64 or 8 experts
        (layout(tensor=4, expert=64, expert_tensor=1, sequence=True), 32, "parallel.expert=64 does not divide the "
         "32 ranks that expert_tensor=1 x pipeline=1 leave of 32: use parallel.expert=32"),
        (layout(tensor=2, expert_tensor=4, sequence=True), 6, "parallel.expert_tensor=4 does not divide the 6 ranks "
         "of a pipeline stage: use parallel.expert_tensor=3 or 6"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_fit_are_refused(parallel, ranks, message):
    assert refused(check_ranks, parallel, ranks) == message


@pytest.mark.parametrize(
    ("parallel", "sizes", "message"),
    [
        (layout(), (16, 4, 8), "batch.global_size=16 is no multiple of batch.micro_size=4 x 8 data-parallel ranks: "
         "use batch.global_size=32"),
        (layout(), (18, 4, 1), "batch.global_size=18 is no multiple of batch.micro_size=4 x 1 data-parallel ranks: "
         "use batch.global_size=16 or 20"),
        (layout(pipeline=4, virtual_pipeline=2), (48, 2, 4), "batch.global_size=48 is no multiple of "
         "batch.micro_size=2 x 4 data-parallel ranks x parallel.pipeline=4 (virtual pipeline): "
         "use batch.global_size=32 or 64"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_dealt_are_refused(parallel, sizes, message):
    assert refused(check_batch, parallel, *sizes) == message


def test_batches_that_can_be_dealt_pass():
    check_batch(layout(), 32, 4, 8)
    check_batch(layout(pipeline=4), 24, 2, 4)  # 3 micro-batches on 4 stages: only an interleaved schedule minds
    check_batch(layout(pipeline=4, virtual_pipeline=2), 64, 2, 4)


@pytest.mark.parametrize(
    ("parallel", "precision", "recipe", "multiple"),
    [
        (layout(), "fp32", "delayed", 1),
        (layout(tensor=4), "fp32", "delayed", 1),
        (layout(tensor=4, sequence=True), "fp32", "delayed", 4),
        (layout(context=2), "fp32", "delayed", 4),
        (layout(), "bf16", "delayed", 8),
        (layout(tensor=4), "bf16", "delayed", 8),
        (layout(tensor=4, sequence=True), "bf16", "delayed", 8),
        (layout(tensor=3, sequence=True), "bf16", "delayed", 24),
        (layout(tensor=4), "fp8", "delayed", 16),
        (layout(tensor=4, sequence=True), "fp8", "delayed", 64),
        (layout(context=2), "bf16", "delayed", 16),
        (layout(tensor=4, sequence=True, context=2), "fp8", "delayed", 128),
        (layout(tensor=4), "fp8", "blockwise", 16),
        (layout(tensor=4, sequence=True), "fp8", "blockwise", 512),
        (layout(tensor=4, sequence=True), "bf16", "blockwise", 8),
    ],
)
def test_lengths_can_be_split(parallel, precision, recipe, multiple):
    assert row_multiple(parallel, precision, recipe) == multiple
    assert multiple % sequence_multiple(parallel) == 0


def test_context_ranks_get_two_pieces_of_every_packed_sequence():
    assert [sequence_multiple(layout(context=ranks)) for ranks in (1, 2, 3)] == [1, 4, 6]


@pytest.mark.parametrize(
    ("parallel", "fixed", "length", "message"),
    [
        (layout(tensor=2, sequence=True, tensor_overlap=True), False, 512, "parallel.tensor_overlap=true: Transformer "
         "Engine's buffers have one size: use batch.fixed_length=true, or parallel.tensor_overlap=false"),
        (layout(pipeline=2, virtual_pipeline=2), False, 512, "parallel.virtual_pipeline=2: megatron-core's interleaved "
         "schedule takes one length: use batch.fixed_length=true, or parallel.virtual_pipeline=null"),
        (layout(moe_dispatcher="allgather"), False, 512, "parallel.moe_dispatcher=allgather: megatron-core's "
         "dispatcher takes one length: use batch.fixed_length=true, or parallel.moe_dispatcher=alltoall"),
        (layout(), True, 500, "model.max_length=500 is no multiple of 16, which batch.fixed_length=true needs in this "
         "layout and precision: use model.max_length=496 or 512"),
        (layout(tensor=2, tensor_overlap=True), True, 512, "parallel.tensor_overlap=true hides the communication of "
         "sequence parallelism: use parallel.sequence=true, or parallel.tensor_overlap=false"),
        (layout(tensor_overlap=True), True, 512, "parallel.tensor_overlap=true hides the communication of "
         "sequence parallelism: use parallel.tensor_overlap=false"),
    ],
)  # fmt: skip
def test_varying_lengths_where_one_is_needed_are_refused(parallel, fixed, length, message):
    assert refused(check_fixed_length, parallel, fixed, False, length, 16) == message


def test_packs_vary_in_length_too():
    message = refused(check_fixed_length, layout(pipeline=2, virtual_pipeline=2), False, True, 512, 16)
    assert message == (
        "parallel.virtual_pipeline=2: megatron-core's interleaved schedule takes one length: "
        "use batch.packing=false and batch.fixed_length=true, or parallel.virtual_pipeline=null"
    )


def test_one_length_allows_overlap_and_allgather():
    both = layout(tensor=2, sequence=True, tensor_overlap=True, moe_dispatcher="allgather")
    check_fixed_length(both, True, False, 512, 16)
    for packing in (False, True):
        check_fixed_length(layout(), False, packing, 500, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"virtual_pipeline": 2},
            ["parallel.virtual_pipeline=2: policy training", "use parallel.virtual_pipeline=null"],
        ),
        ({"context": 2}, ["parallel.context=2: policy training", "use parallel.context=1"]),
        ({"tensor_overlap": True}, ["parallel.tensor_overlap=true: policy", "use parallel.tensor_overlap=false"]),
        ({"moe_dispatcher": "allgather"}, ["parallel.moe_dispatcher=allgather", "parallel.moe_dispatcher=alltoall"]),
    ],
)
def test_what_only_nemos_trainer_runs_is_refused_elsewhere(changes, words):
    message = refused(check_outside_trainer, layout(**changes), "policy training")
    for word in words:
        assert word in message
    check_outside_trainer(layout(tensor=2, pipeline=2, expert=2, sequence=True), "policy training")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((30, 120, 60, 8, 4, 1), "batch.prompts=30 is no multiple of the 4 data-parallel ranks: "
         "use batch.prompts=28 or 32"),
        ((32, 128, 64, 32, 4, 1), "batch.micro_size=32 cuts batch.mini_size=64 into 2 micro-batches, no multiple of "
         "the 4 data-parallel ranks: use batch.micro_size=16"),
        ((6, 12, 3, 1, 2, 1), "batch.micro_size=1 cuts batch.mini_size=3 into 3 micro-batches, no multiple of the 2 "
         "data-parallel ranks: use batch.mini_size=2 or 4"),
        ((4, 8, 8, 4, 4, 2), "batch.micro_size=4 cuts batch.mini_size=8 into 2 micro-batches, no multiple of the 4 "
         "data-parallel ranks: use batch.micro_size=2"),  # 1 would part a pair
        ((4, 8, 4, 4, 4, 2), "batch.micro_size=4 cuts batch.mini_size=4 into 1 micro-batches, no multiple of the 4 "
         "data-parallel ranks: use batch.mini_size=8"),
    ],
)  # fmt: skip
def test_policy_batches_that_ranks_cannot_share_are_refused(sizes, message):
    assert refused(check_policy_batch, *sizes) == message
    check_policy_batch(32, 128, 64, 16, 4, 1)


@pytest.mark.parametrize(("value", "valid", "words"), [(3, [1, 2, 4], "2 or 4"), (9, [1, 2, 4], "4"), (1, [2, 4], "2")])
def test_the_remedy_is_the_nearest_valid_value_on_either_side(value, valid, words):
    assert use("key", value, valid) == f"use key={words}"


def test_the_remedy_may_have_other_values():
    assert use("key", 3, [2, 4], "null") == "use key=2 or 4 or null" and use("key", 3, [], "null") == "use key=null"
