"""Everything that is asked of layout, batches, precision and machine before a training starts, in one call each."""

from nemo_moslim.config import SupervisedConfig
from nemo_moslim.parallel.layout_checks import (
    Architecture,
    check_batch,
    check_fixed_length,
    check_model,
    check_outside_trainer,
    check_policy_batch,
    check_ranks,
    row_multiple,
)
from nemo_moslim.parallel.platform import Platform, check_attention, check_platform, check_precision
from nemo_moslim.policy_config import PolicyTrainingConfig, trained_answers


def check_supervised(config: SupervisedConfig, architecture: Architecture, ranks: int, platform: Platform) -> None:
    """train_sft, train_rm and train_dpo.

    Raises:
        ValueError: what cannot run, with the reason and the nearest setting that can.
    """
    parallel, batch = config.parallel, config.batch
    check_platform(parallel, platform)
    check_precision(config.precision, config.fp8_recipe, parallel, architecture, platform)
    check_attention(config.precision, batch.packing, parallel, platform)
    check_model(parallel, architecture)
    replicas = check_ranks(parallel, ranks)
    check_batch(parallel, batch.global_size, batch.micro_size, replicas)
    multiple = row_multiple(parallel, config.precision, config.fp8_recipe)
    check_fixed_length(parallel, batch.fixed_length, batch.packing, config.model.max_length, multiple)


def check_policy(config: PolicyTrainingConfig, ranks: int) -> None:
    """train_policy; its models are checked as they are opened (`rollout.open_model`).

    Raises:
        ValueError: as `check_supervised`.
    """
    check_outside_trainer(config.parallel, "policy training")
    replicas = check_ranks(config.parallel, ranks)
    batch, answers = config.batch, trained_answers(config.batch.prompts, config.algorithm)
    check_policy_batch(batch.prompts, answers, batch.mini_size, batch.micro_size, replicas, config.algorithm.unit)
