import pytest

from nemo_moslim.baseline_config import PairTrainingConfig
from nemo_moslim.cli import compose_config
from nemo_moslim.config import RewardModelTrainingConfig, SFTConfig, parse, to_plain
from nemo_moslim.functional.advantages import adapt_kl_coef
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.serve_config import ServeConfig


def reward_config(*overrides, add=None):
    config = compose_config("train_rm", ["run_dir=run", "data=data", *overrides], path_keys=("run_dir", "data"))
    if add:
        from omegaconf import OmegaConf

        OmegaConf.set_struct(config, False)
        OmegaConf.update(config, *add)
    return parse(config, RewardModelTrainingConfig)


def test_defaults_of_the_yaml_are_valid():
    config = reward_config("preferences=datatype2", "trainer.max_steps=7")
    assert (config.trainer.max_steps, config.preferences["harmless"].levels, config.loss) == (7, 2, "per_head")
    sft = parse(compose_config("train_sft", ["run_dir=run", "data=data"]), SFTConfig)
    assert (sft.loss_on, sft.trainer.monitor, config.trainer.monitor) == ("answers", "loss", "score")
    assert to_plain(config)["preferences"]["harmless"]["levels"] == 2


@pytest.mark.parametrize("key", ["packing", "fixed_length"])
def test_answers_together_have_a_layout_of_their_own(key):
    message = f"answers_together=4 .* batch.{key}=true: use answers_together=1, or batch.{key}=false"
    with pytest.raises(ValueError, match=message):
        reward_config("answers_together=4", f"batch.{key}=true")
    with pytest.raises(ValueError, match="answers_together=0: expected a number above 0"):
        reward_config("answers_together=0")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=many", ["trainer.max_steps", "many"]),
        ("model.hidden_size=1.5", ["model.hidden_size", "1.5"]),
        ("parallel.tensor=null", ["parallel.tensor"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0", "above 0"]),
        ("model.family=llama", ["model.family='llama'", "qwen2"]),
        ("model.hidden_size=130", ["model.hidden_size=130", "model.num_attention_heads=4"]),
        ("model.hidden_size=12", ["model.hidden_size=12", "even head size"]),
        ("model.num_query_groups=3", ["model.num_query_groups=3", "divisor of model.num_attention_heads=4"]),
        ("model.attention_dropout=1", ["model.attention_dropout=1.0", "[0, 1)"]),
        ("model.recompute=some", ["model.recompute='some'", "selective"]),
        ("parallel.sequence=true", ["parallel.sequence=True", "parallel.tensor > 1"]),
        ("parallel.virtual_pipeline=1", ["parallel.virtual_pipeline=1", "null, or 2 or more"]),
        ("parallel.moe_dispatcher=flex", ["parallel.moe_dispatcher='flex'", "alltoall, allgather"]),
        ("precision=fp16", ["precision='fp16'", "bf16"]),
        ("fp8_recipe=current", ["fp8_recipe='current'", "delayed, tensorwise, blockwise"]),
        ("optimizer.schedule=step", ["optimizer.schedule='step'", "cosine"]),
        ("optimizer.min_lr=1", ["optimizer.min_lr=1.0", "optimizer.lr"]),
        ("optimizer.warmup_steps=-1", ["optimizer.warmup_steps=-1", "0 or more"]),
        ("optimizer.beta2=1", ["optimizer.beta2=1.0", "[0, 1)"]),
        ("optimizer.weight_decay=-1", ["optimizer.weight_decay=-1.0", "0 or more"]),
        ("batch.long_rows=cut", ["batch.long_rows='cut'", "cut_prompt"]),
        ("batch.micro_size=0", ["batch.micro_size=0", "above 0"]),
        ("loss=mse", ["loss='mse'", "per_head, joint, aligned"]),
        ("label_smoothing=1", ["label_smoothing=1.0", "[0, 1)"]),
        ("class_weights=sqrt", ["class_weights='sqrt'", "inverse_sqrt"]),
        ("head_weights=sqrt", ["head_weights='sqrt'", "inverse_sqrt"]),
        ("statistics.mode=mean", ["statistics.mode='mean'", "exact"]),
        ("statistics.decay=1", ["statistics.decay=1.0", "(0, 1)"]),
        ("statistics.rows=some", ["statistics.rows='some'", "labelled"]),
        ("statistics.std_floor=0", ["statistics.std_floor=0.0", "above 0"]),
        ("preferences.harmless.levels=two", ["preferences.harmless.levels", "two"]),
    ],
)
def test_bad_values_are_refused_with_the_keys_name(override, words):
    with pytest.raises(ValueError) as refused:
        reward_config(override)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layout", [["parallel.pipeline=2", "parallel.virtual_pipeline=2"], ["parallel.context=2"]])
def test_exact_statistics_are_refused_where_their_pass_does_not_run(layout):
    with pytest.raises(ValueError, match="statistics.mode='exact': expected ema with parallel.virtual_pipeline or"):
        reward_config("statistics.mode=exact", *layout)
    assert reward_config("statistics.mode=exact").statistics.mode == "exact"


def test_only_kept_checkpoints_are_averaged():
    assert reward_config("average_checkpoints=2").average_checkpoints == 2
    with pytest.raises(ValueError, match="average_checkpoints=3: expected null, or from 2 to trainer.keep_checkpoints"):
        reward_config("average_checkpoints=3")
    with pytest.raises(ValueError, match="average_checkpoints=2: expected null with parallel.virtual_pipeline or"):
        reward_config("average_checkpoints=2", "parallel.context=2")


def test_pairs_are_not_packed():
    pairs = ["run_dir=run", "data=data", "model.init=policy"]
    assert parse(compose_config("train_dpo", pairs), PairTrainingConfig).beta == 0.1
    with pytest.raises(ValueError, match="batch.packing=True: expected false: the answers of a pair"):
        parse(compose_config("train_dpo", [*pairs, "batch.packing=true"]), PairTrainingConfig)


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match="unknown key 'trainer.steps'"):
        reward_config(add=("trainer.steps", 3))
    with pytest.raises(ValueError, match="data is not set: give data=VALUE"):
        parse(compose_config("train_rm", ["run_dir=run"]), RewardModelTrainingConfig)


@pytest.mark.parametrize(
    ("name", "lr", "chosen"),
    [
        ("reward_model_7b", 1e-5, []),
        ("reward_model_57b_a14b", 1e-5, []),
        ("reward_model_72b", 1e-5, []),
        ("ppo_7b", 1e-6, ["algorithm=ppo"]),
        ("rloo_7b", 1e-5, ["algorithm=rloo"]),
        ("online_dpo_7b", 2e-5, ["algorithm=online_dpo"]),
        ("morlhf_7b", 1e-5, ["algorithm=ppo", "objective=weighted_sum"]),
        ("rewarded_soups_7b", 2e-5, ["algorithm=ppo", "objective=weighted_sum"]),
    ],
)
def test_the_papers_settings(name, lr, chosen):
    entry, checked, required = "train_policy", PolicyTrainingConfig, ["run_dir=r", "data=d", "policy=p", "reward=q"]
    if name.startswith("reward_model"):
        entry, checked, required = "train_rm", RewardModelTrainingConfig, ["run_dir=r", "data=d"]
    config = parse(compose_config(entry, [*required, *chosen, f"+paper={name}"]), checked)
    assert config.optimizer.lr == lr and config.precision == "bf16"


def test_a_value_of_the_algorithm_is_checked_under_its_name():
    required = ["run_dir=r", "data=d", "policy=p", "reward=q"]
    for setting, expected in (
        ("algorithm.epochs=0", r"algorithm\.epochs=0"),
        ("algorithm.samples=1", r"algorithm\.samples=1: expected 2 or more"),
        ("algorithm.kl_coef=x", "kl_coef"),
        ("batch.mini_size=100", r"batch\.mini_size=100: expected a divisor of 256"),
        ("batch.micro_size=7", r"batch\.micro_size=7: expected a divisor"),
        ("generation.temperature=0", r"generation\.temperature=0"),
    ):
        with pytest.raises(ValueError, match=expected):
            parse(compose_config("train_policy", [*required, setting]), PolicyTrainingConfig)
    for name in ("kl_target", "value_clip"):
        for value in ("0", "-1"):
            with pytest.raises(ValueError, match=rf"^algorithm\.{name}={value}\.0: expected null or a number above 0"):
                policy_config("reward=q", "algorithm=ppo", f"algorithm.{name}={value}")
        assert getattr(policy_config("reward=q", "algorithm=ppo", f"algorithm.{name}=null").algorithm, name) is None


@pytest.mark.parametrize("algorithm", [["algorithm=ppo"], ["algorithm=rloo", "algorithm.samples=2"]])
def test_a_kl_horizon_too_short_for_a_step_is_refused_at_the_start(algorithm):
    prompts = 128 if "algorithm=rloo" in algorithm else 256
    step = ["reward=q", *algorithm, f"batch.prompts={prompts}", "algorithm.kl_target=6"]
    assert policy_config(*step, "algorithm.kl_horizon=52").algorithm.kl_horizon == 52
    assert adapt_kl_coef(0.1, 0.0, target=6.0, horizon=52, rows=256) > 0
    with pytest.raises(ValueError, match=r"algorithm\.kl_horizon=51: expected 52 or more: a step has 256 answers"):
        policy_config(*step, "algorithm.kl_horizon=51")
    assert policy_config(*step, "algorithm.kl_target=null", "algorithm.kl_horizon=1").algorithm.kl_horizon == 1


def policy_config(*overrides):
    required = ["run_dir=r", "data=d", "policy=p"]
    return parse(compose_config("train_policy", [*required, *overrides]), PolicyTrainingConfig)


def test_a_services_optimizer_is_named_where_it_stands():
    with pytest.raises(ValueError, match=r"critic_training\.optimizer\.eps=0\.0: expected a number above 0"):
        parse(compose_config("serve_reward", ["run=r", "critic_training.optimizer.eps=0"]), ServeConfig)


def test_objectives_and_their_reward_models():
    assert policy_config("reward=q").reward == ["q"] and policy_config("reward=q").objective.name == "preferences"
    config = policy_config("reward=[a,b]", "objective=weighted_sum", "objective.weights={helpfulness:1,harmless:0.5}")
    assert config.reward == ["a", "b"] and config.objective.weights == {"helpfulness": 1.0, "harmless": 0.5}
    gdpo = policy_config("reward=q", "objective=gdpo").objective
    assert gdpo.weights is None and gdpo.eps == 1e-4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=[a,b]"], r"reward=\['a', 'b'\]: expected one multi-head reward model"),
        (["reward=[]"], r"reward=\[\]: expected a run directory"),
        (["reward=[a,b]", "objective=gdpo", "algorithm=ppo"], "algorithm.samples=1: .*2 or more with objective=gdpo"),
        (["reward=a", "objective=weighted_sum", "objective.weights={honesty:-1}"], r"objective\.weights=.*0 or above"),
        (["reward=a", "objective=gdpo", "objective.weights={honesty:0}"], r"objective\.weights=.*not all 0"),
        (["reward=a", "objective=gdpo", "objective.eps=0"], r"objective\.eps=0\.0: expected a number above 0"),
        (["reward=a", "objective=weighted_sum", "objective.weights={honesty:x}"], "objective: weights.honesty"),
        (
            ["reward=a", "objective=weighted_sum", "algorithm=ppo", "algorithm.critic=levels"],
            "algorithm.critic=.*levels.*: expected value with objective=weighted_sum",
        ),
    ],
)
def test_objectives_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        policy_config(*overrides)
