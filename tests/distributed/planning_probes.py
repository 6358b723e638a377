"""What training_server.py runs for the tests of the planner."""

SIZES = [
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=96", "model.num_attention_heads=4",
    "model.num_query_groups=2", "model.vocab_size=300", "model.max_length=512", "model.expert_hidden_size=32",
]  # fmt: skip


def settings(arguments: list[str]):
    """A PlanConfig."""
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.planning.settings import PlanConfig

    return parse(compose_config("plan", arguments), PlanConfig)


def counters(arguments: list[str]):
    """The ShardCounter of a plan's model."""
    from nemo_moslim.config import to_plain
    from nemo_moslim.planning.shards import ShardCounter
    from nemo_moslim.preferences import PreferenceSchema

    config = settings(arguments)
    return ShardCounter(config.model, PreferenceSchema.from_dict(to_plain(config.preferences)))


def planned_state(cases: list[list]) -> list[list[dict]]:
    """Bytes by formula per case and pipeline stage. A case: kind, [tensor, pipeline, expert, data], arguments."""
    from nemo_moslim.planning.memory import state_bytes
    from nemo_moslim.planning.shape import Layout

    found = []
    for kind, (tensor, pipeline, expert, data), arguments in cases:
        counter, layout = counters([*SIZES, *arguments]), Layout(tensor, pipeline, expert, data, 1, "none")
        stages = [counter.shard(kind, layout, stage) for stage in range(pipeline)]
        found.append([state_bytes(shard, layout)._asdict() for shard in stages])
    return found


def allocated_state(cases: list[list]) -> list[dict]:
    """What megatron-core has allocated on this rank per case after an update: bytes of weights, gradients, optimizer;
    the number of parameter tensors; and the rank's pipeline stage."""
    import torch
    from megatron.core import parallel_state

    from nemo_moslim.config import parse
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize, leave_process_group
    from nemo_moslim.planning.shape import Layout
    from nemo_moslim.training.trained_model import TrainedModel

    cpu.enable()
    found = []
    for kind, (tensor, pipeline, expert, data), arguments in cases:
        layout = Layout(tensor, pipeline, expert, data, 1, "none")
        initialize(layout.parallel(), seed=1)
        model = real_model(kind, settings([*SIZES, *arguments]), layout)
        trained = TrainedModel(model, optimizer_settings(parse), "bf16", max_length=64)
        for parameter in trained.wrapped.parameters():
            parameter.main_grad.fill_(1.0)
        trained.optimizer.step()
        parameters = list(trained.module.parameters())
        buffers = [*trained.wrapped.buffers, *trained.wrapped.expert_parallel_buffers]
        found.append(
            {
                "stage": parallel_state.get_pipeline_model_parallel_rank(),
                "tensors": len(parameters),
                "weights": sum(p.numel() * p.element_size() for p in parameters),
                "gradients": sum(b.grad_data.numel() * b.grad_data.element_size() for b in buffers),
                "optimizer": optimizer_bytes(trained, torch),
            }
        )
        leave_process_group()
    return found


def real_model(kind: str, config, layout):
    """A model on the ranks of this launch, in bf16, as policy training builds it; its weights are random."""
    from nemo_moslim.config import to_plain
    from nemo_moslim.models.backbone import backbone_settings
    from nemo_moslim.models.critic import CriticConfig, CriticModel
    from nemo_moslim.models.policy import PolicyConfig, PolicyModel
    from nemo_moslim.models.reward_model import RewardModel, RewardModelConfig
    from nemo_moslim.preferences import PreferenceSchema
    from nemo_moslim.rollout.open_model import built

    architecture = backbone_settings(config.model, 300)
    if kind == "policy":
        model = PolicyModel(PolicyConfig(**architecture))
    elif kind == "critic":
        model = CriticModel(CriticConfig(**architecture))
    else:
        preferences = PreferenceSchema.from_dict(to_plain(config.preferences)).to_dict()
        model = RewardModel(RewardModelConfig(**architecture, preferences=preferences))
    return built(model, lambda module: None, layout.parallel(), "bf16")


def optimizer_settings(parse):
    """Those of conf/train_policy.yaml."""
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import OptimizerConfig

    return parse(compose_config("train_policy").optimizer, OptimizerConfig)


def optimizer_bytes(trained, torch) -> int:
    """Moments and fp32 copies; an fp32 parameter is not copied: the optimizer works on the model's own memory."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trained.module.parameters()}
    total = 0
    for part in trained.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                tensors = [t for t in part.optimizer.state[parameter].values() if isinstance(t, torch.Tensor)]
                if parameter.untyped_storage().data_ptr() not in own:
                    tensors.append(parameter)
                total += sum(t.numel() * t.element_size() for t in tensors)
    return total


def published_counts(cases: list[list]) -> list[int]:
    """Parameters of a model summed over the shards of a layout. A case: model, kind, [tensor, pipeline, expert]."""
    from nemo_moslim.planning.shape import Layout

    found = []
    for model, kind, (tensor, pipeline, expert) in cases:
        counter, layout = counters([f"model={model}"]), Layout(tensor, pipeline, expert, expert, 1, "none")
        found.append(sum(counter.shard(kind, layout, stage).whole for stage in range(pipeline)))
    return found


def plans_with_and_without_pruning(arguments: list[str]) -> list[dict]:
    """The outcome of a search, and of one that builds every layout."""
    from nemo_moslim.planning.report import as_json
    from nemo_moslim.planning.search import Search, search

    config = settings(arguments)
    found = [as_json(search(config), config)]
    Search._is_hopeless = lambda self, layout: False  # this process ends with the job
    found.append(as_json(search(config), config))
    return found


def peak_gigabytes(cases: list[list[str]]) -> list[float]:
    """Per GPU, of the one plan of each search; a case: arguments of examples/plan.py that leave no choice.

    Raises:
        ValueError: it does not fit.
    """
    from nemo_moslim.planning.report import nothing_fits
    from nemo_moslim.planning.search import search

    peaks = []
    for config in map(settings, cases):
        found = search(config)
        if not found.plans:
            raise ValueError(nothing_fits(found, config))
        (plan,) = found.plans
        peaks.append(plan.peak / 1e9)
    return peaks


def saved_by_a_layer(arguments: list[str], rows: int, length: int) -> dict[str, float]:
    """Bytes per token that a decoder layer without Transformer Engine, in bf16, saves for its backward pass, each
    storage once, parameters left out; and what the planner's formula says."""
    import torch

    from nemo_moslim.models.read_positions import core_model
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize
    from nemo_moslim.planning.memory import layer_activations
    from nemo_moslim.planning.shape import Layout, model_shape

    cpu.enable()
    config, layout = settings([*SIZES, *arguments]), Layout(1, 1, 1, 1, rows, "none")
    initialize(layout.parallel(), seed=1)
    core = core_model(real_model("policy", config, layout)).train()
    hidden = torch.randn(length, rows, config.model.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in core.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        core.decoder.layers[0](hidden, None, rotary_pos_emb=core.rotary_pos_emb(length))
    tokens = rows * length
    return {
        "saved": sum(storage.nbytes() for storage in storages.values()) / tokens,
        "formula": layer_activations(model_shape(config.model, 300), layout, tokens) / tokens,
    }
