"""Settings of layout, precision and overlap as they reach NeMo's strategy, its precision plugin and megatron-core."""

import pytest


@pytest.fixture(scope="module")
def given(trainings):
    """What NeMo is given for some settings."""

    def ask(*settings, **options):
        return trainings.run("passed_on", settings=list(settings), **{"gpu": False, **options}).results()[0]

    return ask


def test_every_key_of_the_layout_reaches_the_strategy(given):
    found = given(
        "parallel.tensor=2", "parallel.pipeline=4", "parallel.virtual_pipeline=3", "parallel.context=5",
        "parallel.expert=6", "parallel.sequence=true", "parallel.moe_dispatcher=allgather", "batch.fixed_length=true",
        "model.recompute=full",
    )  # fmt: skip
    expected = dict(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=3,
        context_parallel_size=5, expert_model_parallel_size=6, sequence_parallel=True,
    )  # fmt: skip
    assert expected.items() <= found["parallelism"].items()
    expected = dict(
        moe_token_dispatcher_type="allgather", variable_seq_lengths=False, overlap_p2p_comm=True, batch_p2p_comm=False,
        recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1,
    )  # fmt: skip
    assert expected.items() <= found["model"].items()


def test_the_defaults_overlap_on_a_gpu_only(given):
    cpu, gpu = given(), given(gpu=True)
    assert cpu["model"]["variable_seq_lengths"] and cpu["model"]["moe_token_dispatcher_type"] == "alltoall"
    for found, overlap in ((cpu, False), (gpu, True)):
        data_parallel = dict(
            use_distributed_optimizer=True, overlap_grad_reduce=overlap, overlap_param_gather=overlap,
            grad_reduce_in_fp32=True,
        )  # fmt: skip
        assert data_parallel.items() <= found["data_parallel"].items()
        assert found["policy_data_parallel"]["overlap_grad_reduce"] == overlap
        assert found["policy_data_parallel"]["overlap_param_gather"] is False
    assert cpu["overlap"] == []
    (callback,) = gpu["overlap"]
    assert {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    }.items() <= callback.items()


def test_overlap_as_asked_for(given):
    settings = [
        "optimizer.overlap=false",
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.tensor_overlap=true",
    ]
    (callback,) = given(*settings, gpu=True)["overlap"]
    assert {
        "tp_comm_overlap": True,
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
    }.items() <= callback.items()
    whole = given("optimizer.overlap=true", "optimizer.distributed=false")["data_parallel"]
    assert whole["overlap_grad_reduce"] and not whole["overlap_param_gather"] and not whole["use_distributed_optimizer"]


def test_pairs_gather_no_weight_ahead_of_a_forward_pass_that_never_comes(given):
    found = given("model.init=policy", gpu=True, entry="train_dpo")
    assert found["data_parallel"]["overlap_grad_reduce"] and not found["data_parallel"]["overlap_param_gather"]
    (callback,) = found["overlap"]
    assert callback["overlap_grad_reduce"] is True and callback["overlap_param_gather"] is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["precision=fp32"], dict(fp32="True", bf16="False", fp8="None", params_dtype="torch.float32")),
        (["precision=bf16"], dict(bf16="True", fp8="None", params_dtype="torch.bfloat16")),
        (["precision=fp8"], dict(bf16="True", fp8="hybrid", fp8_recipe="delayed", fp8_amax_history_len="1024",
                                 fp8_amax_compute_algo="max", fp8_param_gather="False")),
        (["precision=fp8", "fp8_recipe=tensorwise"], dict(
            fp8="hybrid", fp8_recipe="tensorwise", first_last_layers_bf16="True", num_layers_at_start_in_bf16="1",
            num_layers_at_end_in_bf16="1")),
        (["precision=fp8", "fp8_recipe=blockwise"], dict(
            fp8="hybrid", fp8_recipe="blockwise", first_last_layers_bf16="False")),
    ],
)  # fmt: skip
def test_precision_reaches_the_plugin(given, settings, expected):
    assert expected.items() <= given(*settings)["precision"].items()
