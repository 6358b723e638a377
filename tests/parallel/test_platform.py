"""Precision and parallelism against the device: what a GPU, Transformer Engine or the CUDA version does not allow."""

import pytest
from test_layout_checks import DENSE, MIXTURE, layout, refused

from nemo_moslim.parallel.platform import (
    Platform,
    check_answers_together,
    check_attention,
    check_platform,
    check_precision,
    fp8_widths,
    this_platform,
)

HOPPER = Platform((9, 0), (12, 9), True)
CPU = Platform(None, None, False)


@pytest.mark.parametrize(
    ("recipe", "platform", "message"),
    [
        ("delayed", CPU, "precision=fp8 needs a GPU with Transformer Engine: use precision=bf16 or fp32 here"),
        ("delayed", Platform((9, 0), (12, 9), False), "precision=fp8 needs Transformer Engine, which is not installed: "
         "use precision=bf16, or run in the NeMo container"),
        ("tensorwise", Platform((8, 0), (12, 9), True), "precision=fp8: this GPU has compute capability 8.0, FP8 "
         "starts with 8.9 (Ada, Hopper): use precision=bf16"),
        ("blockwise", Platform((8, 9), (12, 9), True), "fp8_recipe=blockwise needs compute capability 9.0 (Hopper) and "
         "CUDA 12.9, got 8.9 and CUDA 12.9: use fp8_recipe=tensorwise or delayed"),
        ("blockwise", Platform((9, 0), (12, 6), True), "fp8_recipe=blockwise needs compute capability 9.0 (Hopper) and "
         "CUDA 12.9, got 9.0 and CUDA 12.6: use fp8_recipe=tensorwise or delayed"),
    ],
)  # fmt: skip
def test_fp8_is_refused_where_it_cannot_run(recipe, platform, message):
    assert refused(check_precision, "fp8", recipe, layout(), DENSE, platform) == message
    check_precision("bf16", recipe, layout(), DENSE, platform)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
@pytest.mark.parametrize("platform", [HOPPER, Platform((10, 0), (13, 0), True)])
def test_hopper_and_later_run_every_recipe(recipe, platform):
    check_precision("fp8", recipe, layout(tensor=4, sequence=True), DENSE, platform)
    check_precision("fp8", recipe, layout(tensor=4, sequence=True), MIXTURE, platform)


def test_ada_runs_the_recipes_with_one_scale_a_tensor():
    for recipe in ("delayed", "tensorwise"):
        check_precision("fp8", recipe, layout(), DENSE, Platform((8, 9), (12, 4), True))


@pytest.mark.parametrize(
    ("parallel", "changes", "message"),
    [
        (layout(), {"hidden_size": 3592, "kv_channels": 128}, "precision=fp8: hidden_size=3592 is no multiple of 16: "
         "use precision=bf16, or a model with hidden_size=3600"),
        (layout(tensor=4), {"ffn_hidden_size": 18976}, "precision=fp8: parallel.tensor=4 leaves 4744 of "
         "ffn_hidden_size=18976 on a rank, no multiple of 16: use parallel.tensor=2, or precision=bf16"),
        (layout(tensor=4), {"kv_channels": 8, "num_attention_heads": 4},
         "precision=fp8: parallel.tensor=4 leaves 8 of attention width=32 on a rank, no multiple of 16: "
         "use parallel.tensor=2, or precision=bf16"),
        (layout(tensor=4, expert_tensor=2), {"num_moe_experts": 64, "moe_ffn_hidden_size": 2576},
         "precision=fp8: parallel.expert_tensor=2 leaves 1288 of moe_ffn_hidden_size=2576 on a rank, no multiple "
         "of 16: use parallel.expert_tensor=1, or precision=bf16"),
    ],
)  # fmt: skip
def test_fp8_needs_multiples_of_16_on_every_rank(parallel, changes, message):
    assert refused(check_precision, "fp8", "delayed", parallel, DENSE | changes, HOPPER) == message


def test_blockwise_scaling_gathers_whole_blocks():
    odd = DENSE | {"hidden_size": 3600, "kv_channels": 128}
    message = refused(check_precision, "fp8", "blockwise", layout(tensor=4, sequence=True), odd, HOPPER)
    assert message.endswith("hidden_size=3600 is no multiple of it: use fp8_recipe=tensorwise or delayed")
    for parallel, recipe in ((layout(tensor=4), "blockwise"), (layout(tensor=4, sequence=True), "delayed")):
        check_precision("fp8", recipe, parallel, odd, HOPPER)


def test_widths_that_run_in_fp8():
    assert fp8_widths(DENSE) == {
        "hidden_size": 3584,
        "attention width": 28 * 128,
        "query, key and value width": (28 + 2 * 4) * 128,
        "ffn_hidden_size": 18944,
    }
    assert {"moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"} < fp8_widths(MIXTURE).keys()
    assert "ffn_hidden_size" not in fp8_widths(MIXTURE)


@pytest.mark.parametrize(
    ("changes", "platform", "words"),
    [
        ({"context": 2}, CPU, ["parallel.context=2", "needs a GPU", "use parallel.context=1"]),
        ({"context": 2}, Platform((9, 0), (12, 9), False), ["parallel.context=2", "not installed"]),
        (
            {"tensor_overlap": True},
            CPU,
            ["parallel.tensor_overlap=true", "needs a GPU", "parallel.tensor_overlap=false"],
        ),
    ],
)
def test_what_lives_in_transformer_engine_is_refused_without_it(changes, platform, words):
    message = refused(check_platform, layout(tensor=2, sequence=True, **changes), platform)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("context", "packing", "key"), [(2, False, "parallel.context=2"), (1, True, "batch.packing=true")]
)
def test_fp32_has_no_attention_for_packed_or_split_rows(context, packing, key):
    message = f"precision=fp32 with {key}: Transformer Engine has no attention for it: use precision=bf16"
    assert refused(check_attention, "fp32", packing, layout(context=context), HOPPER) == message
    for precision in ("bf16", "fp8"):
        check_attention(precision, packing, layout(context=context), HOPPER)
    check_attention("fp32", packing, layout(), CPU)  # the attention without Transformer Engine takes packed rows
    check_attention("fp32", False, layout(), HOPPER)


def test_answers_share_their_prompt_without_transformer_engine_alone():
    assert refused(check_answers_together, 4, HOPPER) == (
        "answers_together=4: Transformer Engine has no attention for answers that share a prompt: use "
        "answers_together=1, with batch.packing=true against padding"
    )
    check_answers_together(1, HOPPER)
    check_answers_together(4, CPU)


def test_the_rest_runs_anywhere():
    check_platform(layout(tensor=2, pipeline=2, virtual_pipeline=2, expert=2, sequence=True), CPU)
    check_platform(layout(tensor=2, sequence=True, context=2, tensor_overlap=True), HOPPER)


def test_this_machine_is_described(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_platform() == CPU
