"""The checks of a whole configuration, and the layouts of conf/cluster on the models that they are made for."""

import re

import pytest
from grids import grid
from test_layout_checks import DENSE, MIXTURE

from nemo_moslim.cli import compose_config, config_dir
from nemo_moslim.config import RewardModelTrainingConfig, SFTConfig, parse
from nemo_moslim.evaluation_config import EvaluateConfig, GenerateConfig
from nemo_moslim.parallel.platform import Platform
from nemo_moslim.parallel.start_checks import check_policy, check_supervised
from nemo_moslim.policy_config import PolicyTrainingConfig

HOPPER = Platform((9, 0), (12, 9), True)
QWEN2_72B = dict(
    num_layers=80, hidden_size=8192, ffn_hidden_size=29568, num_attention_heads=64, num_query_groups=8,
    vocab_size=152064, num_moe_experts=None,
)  # fmt: skip
CLUSTERS = {"h100_7b": (DENSE, 8), "h100_57b_a14b": (MIXTURE, 64), "h100_72b": (QWEN2_72B, 64)}


def supervised(*overrides):
    return parse(compose_config("train_rm", ["run_dir=r", "data=d", *overrides]), RewardModelTrainingConfig)


def policy(*overrides):
    required = ["run_dir=r", "data=d", "policy=p", "reward=q"]
    return parse(compose_config("train_policy", [*required, *overrides]), PolicyTrainingConfig)


def test_every_cluster_file_is_tested():
    assert {file.stem for file in (config_dir() / "cluster").glob("*.yaml")} == {"local", *CLUSTERS}


@pytest.mark.parametrize("factor", grid([1, 8], 8))
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_fits_its_model(name, factor):
    architecture, gpus = CLUSTERS[name]
    ranks = gpus * factor
    config = supervised(f"cluster={name}", f"batch.global_size={ranks}", "batch.micro_size=1")
    check_supervised(config, architecture, ranks, HOPPER)
    assert config.precision == "bf16"
    for recipe in ("delayed", "tensorwise", "blockwise"):
        fp8 = supervised(f"cluster={name}", "precision=fp8", f"fp8_recipe={recipe}", "batch.micro_size=1")
        fp8.batch.global_size = ranks
        check_supervised(fp8, architecture, ranks, HOPPER)
    trained = policy(f"cluster={name}", f"batch.prompts={ranks}", "batch.micro_size=1", "algorithm=ppo")
    check_policy(trained, ranks)
    assert trained.precision == "bf16"


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_speed_settings_that_the_files_name_can_run(name):
    architecture, gpus = CLUSTERS[name]
    named = re.findall(r"[a-z0-9_]+(?:\.[a-z_]+)?=\w+", (config_dir() / "cluster" / f"{name}.yaml").read_text())
    assert named
    for setting in named:
        config = supervised(
            f"cluster={name}", "batch.micro_size=1", "batch.global_size=640", "batch.fixed_length=true", setting
        )
        check_supervised(config, architecture, 32 if setting == "parallel.expert=4" else gpus, HOPPER)


@pytest.mark.parametrize("name", CLUSTERS)
def test_models_are_evaluated_and_asked_in_the_same_layouts(name):
    assert parse(compose_config("evaluate", ["task=reward", f"cluster={name}"]), EvaluateConfig).precision == "bf16"
    asked = parse(compose_config("generate", ["policy=p", f"cluster={name}"]), GenerateConfig)
    assert asked.parallel.tensor == supervised(f"cluster={name}").parallel.tensor


def test_the_command_line_has_the_last_word():
    config = parse(
        compose_config(
            "train_sft", ["run_dir=r", "data=d", "cluster=h100_72b", "parallel.pipeline=8", "precision=fp8"]
        ),
        SFTConfig,
    )
    assert (config.parallel.tensor, config.parallel.pipeline, config.precision) == (8, 8, "fp8")
    assert policy("cluster=h100_7b", "precision=fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["parallel.tensor=3"], 3, "use parallel.tensor=2 or 4"),
        (["parallel.tensor=4"], 6, "start 4 or 8 ranks"),
        (["batch.micro_size=5"], 1, "use batch.global_size=30 or 35"),
        (["parallel.context=2", "precision=bf16"], 3, "start 2 or 4 ranks"),
        (["parallel.context=2"], 2, "precision=fp32 with parallel.context=2: Transformer Engine has no attention"),
        (
            ["batch.packing=true"],
            1,
            "batch.packing=true: Transformer Engine has no attention for it: use precision=bf16",
        ),
        (["batch.packing=true", "precision=bf16"], 1, None),
        (["batch.packing=true", "parallel.context=2", "precision=bf16"], 2, None),
        (
            ["parallel.context=2", "precision=bf16", "batch.fixed_length=true", "model.max_length=248"],
            2,
            "use model.max_length=240 or 256",
        ),
        (["parallel.tensor=2", "parallel.sequence=true", "parallel.tensor_overlap=true"], 2, "batch.fixed_length=true"),
        (["batch.fixed_length=true", "model.max_length=250"], 1, None),
        (["batch.fixed_length=true", "precision=bf16", "model.max_length=250"], 1, "use model.max_length=248 or 256"),
        (["batch.fixed_length=true", "precision=fp8", "model.max_length=248"], 1, "use model.max_length=240 or 256"),
        (["precision=fp8", "fp8_recipe=blockwise"], 1, None),
    ],
)
def test_supervised_settings_are_checked_together(overrides, ranks, message):
    config = supervised(*overrides)
    if message is None:
        check_supervised(config, DENSE, ranks, HOPPER)
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        check_supervised(config, DENSE, ranks, HOPPER)


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["parallel.tensor=4"], 6, "start 4 or 8 ranks"),
        (["parallel.context=2"], 2, "use parallel.context=1"),
        (["parallel.pipeline=2", "parallel.virtual_pipeline=2"], 2, "use parallel.virtual_pipeline=null"),
        (["batch.prompts=30"], 4, "use batch.prompts=28 or 32"),
    ],
)
def test_policy_settings_are_checked_together(overrides, ranks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_policy(policy(*overrides, "batch.micro_size=1"), ranks)
