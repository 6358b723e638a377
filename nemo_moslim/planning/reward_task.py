"""Training a reward model (train_rm.py) in one layout."""

import math

from nemo_moslim.planning.cost import Rates, gradient_seconds, layer_flops, stage_seconds, update_seconds
from nemo_moslim.planning.memory import stage_activations, state_bytes
from nemo_moslim.planning.plan import (
    ALWAYS,
    Item,
    Plan,
    layout_overrides,
    phase_peaks,
    recompute_value,
    stages_to_look_at,
)
from nemo_moslim.planning.settings import PlanConfig
from nemo_moslim.planning.shape import Layout, ModelShape
from nemo_moslim.planning.shards import ShardCounter

ROLE, UPDATE = "reward model", "update"


def plan_reward_model(
    config: PlanConfig, shape: ModelShape, counter: ShardCounter, layout: Layout, rates: Rates
) -> Plan:
    """Memory for rows of model.max_length, time for rows of data.tokens_per_row; gradients overlap with computation."""
    batch, data = config.batch, config.data
    micro_batches = batch.global_size // (layout.micro_size * layout.data)
    longest = layout.micro_size * config.model.max_length
    found = {}
    for stage in stages_to_look_at(layout):
        state = state_bytes(counter.shard("reward", layout, stage), layout)
        items = [Item(ROLE, what, ALWAYS, size) for what, size in state._asdict().items()]
        saved = stage_activations(shape, layout, longest, stage, micro_batches)
        found[stage] = (*items, Item(ROLE, "activations", UPDATE, saved))
    fullest = max(found, key=lambda stage: phase_peaks(found[stage], [UPDATE])[UPDATE])

    tokens = layout.micro_size * data.tokens_per_row
    passes = stage_seconds(shape, layout, rates, tokens, data.tokens_per_row, predicted=0)
    largest = max((counter.shard("reward", layout, s) for s in found), key=lambda shard: shard.count)
    gradients = gradient_seconds(largest, layout, rates)
    seconds = update_seconds(passes, gradients, layout.pipeline, micro_batches, overlap=True)
    return Plan(
        layout=layout,
        stage=fullest,
        items=found[fullest],
        host={},
        seconds={UPDATE: seconds},
        steps=math.ceil(data.rows * data.epochs / batch.global_size),
        model_flops=3 * shape.layers * layer_flops(shape, batch.global_size * data.tokens_per_row, data.tokens_per_row),
        choices={},
        overrides=(
            *layout_overrides(layout),
            "optimizer.overlap=true",
            f"model.max_length={config.model.max_length}",
            f"model.recompute={recompute_value(layout)}",
            f"batch.global_size={batch.global_size}",
            f"batch.micro_size={layout.micro_size}",
        ),
    )
