"""The layouts that the trainings accept."""

import itertools
from collections import Counter
from dataclasses import replace

from nemo_moslim.model_config import ModelConfig
from nemo_moslim.parallel.layout_checks import (
    Architecture,
    check_batch,
    check_model,
    check_policy_batch,
    check_ranks,
)
from nemo_moslim.planning.settings import PlanConfig
from nemo_moslim.planning.shape import Layout


def accepted_layouts(config: PlanConfig) -> tuple[list[Layout], Counter]:
    """Layouts that the trainings' own checks let pass, and why others do not."""
    search, accepted, refused = config.search, [], Counter()
    sizes = itertools.product(search.tensor, search.pipeline, search.expert, search.micro_size)
    for tensor, pipeline, expert, micro_size in sizes:
        data = config.gpus // (tensor * pipeline)
        layouts = [Layout(tensor, pipeline, expert, data, micro_size, recompute) for recompute in search.recompute]
        try:
            check_trainable(config, layouts[0])
            accepted += layouts
        except ValueError as error:
            refused[str(error)] += 1
    return accepted, refused


def check_trainable(config: PlanConfig, layout: Layout) -> None:
    """The trainings' own checks (`parallel.start_checks`), but for those of the machine.

    Raises:
        ValueError: the layout cannot run.
    """
    parallel, micro_size = layout.parallel(), layout.micro_size
    replicas = check_ranks(parallel, config.gpus)
    if config.task == "rm":
        check_model(parallel, architecture(config.model))
        check_batch(parallel, config.batch.global_size, micro_size, replicas)
        return
    models = [architecture(model) for model in (config.model, config.reward_model) if model]
    mixture = any(model["num_moe_experts"] for model in models)
    for model in models:  # beside a mixture of experts a dense model takes no part in expert parallelism
        beside = mixture and not model["num_moe_experts"]
        check_model(replace(parallel, expert=1) if beside else parallel, model)
    if micro_size % (unit := config.algorithm.unit):
        raise ValueError(f"batch.micro_size={micro_size}: Online DPO needs a multiple of {unit} answers of a prompt")
    check_policy_batch(config.batch.prompts, config.trained_answers, config.mini_size, micro_size, replicas, unit)


def architecture(model: ModelConfig) -> Architecture:
    """What the checks ask of a model, under megatron-core's names."""
    return {
        "num_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "ffn_hidden_size": model.ffn_hidden_size,
        "vocab_size": model.vocab_size,
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": model.expert_hidden_size,
        "moe_shared_expert_intermediate_size": model.shared_expert_hidden_size,
    }
