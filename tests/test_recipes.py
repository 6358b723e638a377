"""The settings that recipes hand to their commands are accepted by these, on the two ranks that they start; those of
the comparison: comparison/test_plan.py."""

import pytest

from nemo_moslim.cli import compose_config
from nemo_moslim.config import RewardModelTrainingConfig, SFTConfig, parse
from nemo_moslim.parallel import start_checks
from nemo_moslim.parallel.layout_checks import check_batch
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.stages import flat

RANKS = 2
REQUIRED = ["run_dir=run", "data=data"]


def check_policy_settings(settings):
    check_policy(compose_config("train_policy", [*REQUIRED, "policy=p", "reward=r", *settings]))


def check_policy(composed):
    start_checks.check_policy(parse(composed, PolicyTrainingConfig), RANKS)


def check_supervised_settings(command, checked, settings):
    check_supervised(checked, compose_config(command, [*REQUIRED, "tokenizer=t", *settings]))


def check_supervised(checked, composed):
    config = parse(composed, checked)
    check_batch(config.parallel, config.batch.global_size, config.batch.micro_size, RANKS)


@pytest.mark.parametrize("overrides", [[], ["+length=full"]])
def test_quickstart(overrides):
    recipe = compose_config("quickstart", overrides)
    for settings in (recipe.quiz, recipe.sft):
        check_supervised_settings("train_sft", SFTConfig, settings)
    check_supervised_settings("train_rm", RewardModelTrainingConfig, recipe.reward)
    check_policy_settings(recipe.policy)


@pytest.mark.parametrize("runs", ["algorithms", "ablations"])
def test_policy_table(runs):
    recipe = compose_config("policy_table", [f"policy_runs={runs}"], open_keys=("rewards", "runs"))
    for settings in recipe.rewards.values():
        check_supervised_settings("train_rm", RewardModelTrainingConfig, [*recipe.reward, *settings])
    for run in recipe.runs.values():
        check_policy_settings([*recipe.policy, *flat(run.settings)])
        if "then" in run:
            check_policy_settings([*recipe.policy, *flat(run.settings), *flat(run.then)])


def test_real_data():
    check_supervised_settings("train_rm", RewardModelTrainingConfig, compose_config("real_reward_model").reward)
    recipe = compose_config("real_policy")
    check_supervised_settings("train_sft", SFTConfig, recipe.sft)
    check_policy_settings(recipe.policy)


def test_table1():
    recipe = compose_config("table1", ["output=out"])
    for size in recipe.sizes.values():
        for kind in (recipe.world, recipe.folder):
            check_supervised_settings(
                "train_sft", SFTConfig, [*size, *recipe.language_model, *kind.get("quiz", []), *kind.sft, *recipe.sft]
            )
        check_supervised_settings("train_rm", RewardModelTrainingConfig, [*size, *recipe.reward])
