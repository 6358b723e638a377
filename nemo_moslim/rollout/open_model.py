"""Models from a run or a Hugging Face folder, in the layout of this launch, outside NeMo's Trainer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nemo_moslim.config import ParallelConfig
from nemo_moslim.functional.statistics import RunningStatistics
from nemo_moslim.huggingface.architecture import SETTINGS_KEY, architecture_from_hf, read_config
from nemo_moslim.huggingface.load_backbone import load_backbone
from nemo_moslim.huggingface.safetensors_folder import SafetensorsFolder
from nemo_moslim.huggingface.sources import exported_heads, open_source
from nemo_moslim.models.backbone import BackboneConfig, architecture_of, recompute_settings
from nemo_moslim.models.critic import CriticConfig, CriticModel
from nemo_moslim.models.initial_weights import load_weights, tokenizer_folder
from nemo_moslim.models.policy import PolicyConfig, PolicyModel
from nemo_moslim.models.reward_model import RewardModel, RewardModelConfig
from nemo_moslim.models.summed_loss import SummedLossModel
from nemo_moslim.parallel.layout_checks import check_model
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.run_folder import is_run, resolve_checkpoint


def open_reward_model(path: str, parallel: ParallelConfig, precision: str) -> tuple[RewardModel, Path]:
    """The model with this rank's weights, in evaluation mode, and the folder of its tokenizer.

    `parallel.layout.initialize` comes first.

    Raises:
        ValueError: neither a run nor a Hugging Face folder, no reward model, a missing head or statistic, or a layout
            that does not divide the model.
    """
    config, tokenizer, fill = _reward_model_source(path)
    return built(RewardModel(config), fill, parallel, precision), tokenizer


def open_level_critic(reward: str, parallel: ParallelConfig, precision: str, recompute: str | None) -> RewardModel:
    """A second copy of the reward model, heads included, to be trained as a critic."""
    config, _, fill = _reward_model_source(reward)
    for name, value in {"hidden_dropout": 0.0, "attention_dropout": 0.0, **recompute_settings(recompute)}.items():
        setattr(config, name, value)
    return built(RewardModel(config), fill, parallel, precision)


def open_policy(
    path: str,
    parallel: ParallelConfig,
    precision: str,
    asked: PreferenceSchema | None = None,
    recompute: str | None = None,
) -> tuple[PolicyModel, Path]:
    """A language model with this rank's weights, in evaluation mode, and the folder of its tokenizer.

    Args:
        asked: the preferences that it is going to be trained to follow; None: those that it was.
        recompute: see `models.backbone.recompute_settings`.

    Raises:
        ValueError: as `open_reward_model`.
    """
    source = open_source(path, "policy")
    if getattr(source.config, "preferences", None) or (
        isinstance(source.config, dict) and SETTINGS_KEY in source.config
    ):
        raise ValueError(f"policy={path}: a reward model, where a language model is expected")
    preferences = asked.to_dict() if asked else source.asked
    config = PolicyConfig(**source.architecture, seq_length=source.max_length, asked=preferences,
                          stop_ids=source.stop_ids, **recompute_settings(recompute))  # fmt: skip
    model = PolicyModel(config, tokenizer=nemo_tokenizer(source.tokenizer_folder))
    return built(model, source.load_into, parallel, precision), Path(source.tokenizer_folder)


def open_critic(
    reward: str, tokenizer: Path, parallel: ParallelConfig, precision: str, seed: int, recompute: str | None
) -> CriticModel:
    """A critic on the backbone of a reward model, its value head fresh."""
    source = open_source(reward, "reward")
    architecture = {**source.architecture, "share_embeddings_and_output_weights": False}
    config = CriticConfig(**architecture, seq_length=source.max_length, head_seed=seed,
                          **recompute_settings(recompute))  # fmt: skip
    return built(CriticModel(config, tokenizer=nemo_tokenizer(tokenizer)), source.load_into, parallel, precision)


def built(
    model: SummedLossModel, fill: Callable[[torch.nn.Module], None], parallel: ParallelConfig, precision: str
) -> SummedLossModel:
    """The model's module made in the layout of this launch and filled; in evaluation mode, on the device."""
    place_on_layout(model.config, parallel, precision)
    model.load_initial_weights = fill
    model.configure_model()
    if precision != "fp32":
        model.module.bfloat16()
    model.module.cuda().eval()
    return model


def nemo_tokenizer(folder: str | Path):
    """NeMo's wrapper, so that the tokenizer travels in the checkpoint's context/."""
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

    return AutoTokenizer(str(folder))


def place_on_layout(config: BackboneConfig, parallel: ParallelConfig, precision: str) -> None:
    """Set what NeMo's strategy would set from its layout and precision.

    A dense model may stand beside a mixture of experts, in whose expert parallelism it takes no part.

    Raises:
        ValueError: the layout does not divide the model.
    """
    own = parallel if config.num_moe_experts else replace(parallel, expert=1, expert_tensor=None)
    check_model(own, architecture_of(config))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    settings = dict(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_slices,
        sequence_parallel=parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision != "fp32",
        timers=None,
        # a run's configuration may hold what its training used
        context_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        fp8=None,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        tp_comm_overlap=False,
        overlap_p2p_comm=False,
        batch_p2p_comm=True,
    )
    for name, value in settings.items():
        setattr(config, name, value)


def _reward_model_source(path: str) -> tuple[RewardModelConfig, Path, Callable[[torch.nn.Module], None]]:
    """Configuration, folder of the tokenizer, and what fills the module."""
    if is_run(path):
        return _from_run(resolve_checkpoint(path))
    if (Path(path) / "config.json").is_file():
        return _from_hugging_face(Path(path))
    raise ValueError(f"run={path}: neither a run directory (checkpoints/) nor a Hugging Face folder (config.json)")


def _from_run(checkpoint: Path):
    from nemo.lightning import io

    config = io.load_context(checkpoint / "context", subpath="model.config")
    if not hasattr(config, "preferences"):
        raise ValueError(f"run={checkpoint}: a language model, not a reward model")
    return config, tokenizer_folder(checkpoint), lambda module: load_weights(module, checkpoint)


def _from_hugging_face(folder: Path):
    hf = read_config(folder)
    settings = hf.get(SETTINGS_KEY)
    if not settings:
        raise ValueError(
            f"{folder}: config.json has no {SETTINGS_KEY!r} section with heads and statistics; export the "
            "reward model with examples/export_hf.py"
        )
    missing = {"preferences", "loss", "statistics", "std_floor"} - set(settings)
    lost = set(RunningStatistics._fields) - set(settings.get("statistics", {}))
    if missing or lost:
        raise ValueError(f"{folder}: config.json {SETTINGS_KEY!r} lacks {sorted(missing | lost)}; export it again")
    architecture, heads = architecture_from_hf(hf), exported_heads(hf)
    config = RewardModelConfig(
        **{**architecture, "share_embeddings_and_output_weights": False},
        seq_length=hf["max_position_embeddings"],
        preferences=heads.schema.to_dict(),
        loss=heads.loss,
        std_floor=settings["std_floor"],
    )
    tensors = SafetensorsFolder(folder)

    def fill(module: torch.nn.Module) -> None:
        load_backbone(module, tensors, architecture, skip_output=True)
        if module.post_process:
            _fill_head(module.output_layer, tensors["score.weight"], settings["statistics"], folder)

    return config, folder, fill


def _fill_head(head, weight: torch.Tensor, statistics: dict, folder: Path) -> None:
    state = RunningStatistics(*(torch.tensor(statistics[name]) for name in RunningStatistics._fields))
    for name, value, expected in [
        ("score.weight", weight, head.weight),
        *zip(state._fields, state, head.statistics, strict=True),
    ]:
        if value.shape != expected.shape:
            raise ValueError(f"{folder}: {name} has shape {list(value.shape)}, its heads need {list(expected.shape)}")
    with torch.no_grad():
        head.weight.copy_(weight)
    head.set_statistics(state)
