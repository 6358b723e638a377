"""The transformer that every model here stands on: NeMo's configuration of a family with this package's layers.

NeMo has a configuration class per family (Qwen2Config, Llama31Config, …), and this package one per role (PolicyConfig,
RewardModelConfig, CriticConfig). `for_every_family` makes the classes that are both, e.g. Qwen3PolicyConfig.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from nemo.collections.llm.gpt.model.base import GPTConfig

from nemo_moslim.checks import require
from nemo_moslim.config import ParallelConfig
from nemo_moslim.families import FAMILIES
from nemo_moslim.model_config import ModelConfig
from nemo_moslim.models.layer_spec import decoder_layer_spec, has_transformer_engine
from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.vocab_parallel import padded_vocab_size


@dataclass(init=False)
class BackboneConfig:
    """What this package adds to NeMo's configuration of a family.

    Calling a role's class answers with the class of `family`, as calling Path does with that of the platform:
    `PolicyConfig(family="qwen3", **settings)` is a Qwen3PolicyConfig, which is a PolicyConfig and a Qwen3Config.
    Runs that were written before there were families name none: they are Qwen2.

    Layers, and the kernels that NeMo's classes ask for, are chosen for the platform when the model is built, not when
    it is saved. Losses are sums; megatron-core divides the gradients once by the count over the global batch.
    """

    family: str = "qwen2"
    transformer_layer_spec: Callable = decoder_layer_spec
    calculate_per_token_loss: bool = True
    variable_seq_lengths: bool = True
    moe_token_dispatcher_type: str = "alltoall"  # the one that takes variable lengths
    apply_rope_fusion: bool = False
    bias_dropout_fusion: bool = False
    moe_grouped_gemm: bool = False
    moe_permute_fusion: bool = False

    def __new__(cls, *args, **settings):
        if not issubclass(cls, GPTConfig):
            cls = with_family(cls, settings.get("family", BackboneConfig.family))
        return super().__new__(cls)

    def configure_model(self, tokenizer, pre_process=None, post_process=None, vp_stage=None):
        """Build this rank's part of the model (NeMo's hook); on the CPU without the fusions that need CUDA."""
        if cpu.enabled():
            for name, value in cpu.cpu_model_overrides().items():
                setattr(self, name, value)
        elif has_transformer_engine():
            # each in one kernel; without the engine GatedMLP and EarlyRotation do it
            self.bias_activation_fusion = self.apply_rope_fusion = True
            if self.num_moe_experts:
                self.moe_grouped_gemm = self.moe_permute_fusion = True
        with torch.random.fork_rng(devices=[]):
            # megatron-core's CPU initialisation draws from torch's generator, seeded alike on all ranks: without this,
            # pipeline stages would start as copies of each other (on a GPU it draws from a generator per stage)
            stage = parallel_state.get_pipeline_model_parallel_rank() + 1000 * (vp_stage or 0)
            torch.manual_seed(torch.initial_seed() + 100_003 * stage)
            model = super().configure_model(tokenizer, pre_process, post_process, vp_stage)
            if cpu.enabled() and self.num_moe_experts and self.expert_model_parallel_size > 1:
                draw_experts_apart(model, self)  # on top of the stage's seed
        return model


def with_family(role: type[BackboneConfig], family: str) -> type[BackboneConfig]:
    """The role's configuration class for a family: a subclass of NeMo's, in the role's module (checkpoints look there).

    Raises:
        ValueError: no such family.
    """
    require(family in FAMILIES, "model.family", family, "one of " + ", ".join(FAMILIES))
    module, _, name = FAMILIES[family].nemo_config.rpartition(".")
    nemo_config = getattr(importlib.import_module(module), name)
    name, home = name.removesuffix("Config") + role.__name__, sys.modules[role.__module__]
    if not hasattr(home, name):
        namespace = {
            "__module__": role.__module__,
            "__doc__": f"{role.__name__} on NeMo's {nemo_config.__name__}.",
            "__annotations__": {"family": str},
            "family": family,
            "__wrapped_init__": False,  # a mark of NeMo's, which the class must not take over from its parents
        }
        setattr(home, name, dataclass(type(name, (role, nemo_config), namespace)))
    return getattr(home, name)


def for_every_family(role: type[BackboneConfig]) -> type[BackboneConfig]:
    """Decorator of a role: its classes for all families exist as soon as its module is imported."""
    for family in FAMILIES:
        with_family(role, family)
    return role


def draw_experts_apart(model: torch.nn.Module, config: GPTConfig) -> None:
    """Initial weights of the experts, anew with a seed of this rank's own, counted from torch's present one.

    megatron-core's CPU initialisation draws the same numbers on every expert-parallel rank: each would hold copies of
    the same experts. (On a GPU it draws from a generator per rank.)
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        rank = parallel_state.get_expert_model_parallel_rank() * parallel_state.get_expert_tensor_parallel_world_size()
        torch.manual_seed(torch.initial_seed() + 1 + rank + parallel_state.get_expert_tensor_parallel_rank())
        for name, parameter in model.named_parameters():
            if ".experts." in name and name.endswith("weight"):
                fill = config.output_layer_init_method if "linear_fc2" in name else config.init_method
                fill(parameter)


def backbone_settings(model: ModelConfig, vocab_size: int) -> dict:
    """Arguments of a BackboneConfig for a model that starts from scratch.

    Args:
        vocab_size: tokens of the tokenizer.

    Raises:
        ValueError: the tokenizer has more tokens than `model.vocab_size`.
    """
    rows = model.vocab_size or vocab_size
    require(vocab_size <= rows, "model.vocab_size", rows, f"null, or at least the tokenizer's {vocab_size} tokens")
    settings = dict(
        family=model.family,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.head_size or model.hidden_size // model.num_attention_heads,
        rotary_base=model.rotary_base,
        layernorm_epsilon=model.norm_epsilon,
        share_embeddings_and_output_weights=model.tie_embeddings,
        init_method_std=model.init_std,
        vocab_size=padded_vocab_size(rows),
    )
    if model.num_experts:
        settings |= dict(
            num_moe_experts=model.num_experts,
            moe_router_topk=model.experts_per_token,
            moe_ffn_hidden_size=model.expert_hidden_size or model.ffn_hidden_size,
            moe_shared_expert_intermediate_size=model.shared_expert_hidden_size,
        )
    if model.rope_scaling:
        settings |= {theirs: getattr(model.rope_scaling, ours) for theirs, ours in ROPE_SCALING_FIELDS.items()}
    return settings


def run_settings(model: ModelConfig) -> dict:
    """Arguments of a BackboneConfig that belong to a run and not to the architecture."""
    settings = dict(
        seq_length=model.max_length, hidden_dropout=model.hidden_dropout, attention_dropout=model.attention_dropout
    )
    if model.num_experts:
        settings |= dict(moe_aux_loss_coeff=model.router_aux_loss, moe_router_load_balancing_type="aux_loss")
    return settings | recompute_settings(model.recompute)


def dispatch_settings(parallel: ParallelConfig, fixed_length: bool) -> dict:
    """Arguments of a BackboneConfig that follow from layout and batches: how tokens reach experts and stages.

    Stages of an interleaved schedule exchange one by one: where there are two, megatron-core's batched exchange takes
    what comes from the stage before for what comes from the stage after (both are the same rank).
    """
    settings = dict(moe_token_dispatcher_type=parallel.moe_dispatcher, variable_seq_lengths=not fixed_length)
    if parallel.virtual_pipeline:
        settings |= dict(overlap_p2p_comm=True, batch_p2p_comm=False)
    return settings


def recompute_settings(recompute: str | None) -> dict:
    """Arguments for activations that are computed again in the backward pass: null, selective (attention) or full."""
    if recompute == "full":
        return dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    return dict(recompute_granularity=recompute) if recompute else {}


ARCHITECTURE_FIELDS = (
    "family", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "rotary_base", "layernorm_epsilon", "share_embeddings_and_output_weights", "init_method_std", "vocab_size",
    "num_moe_experts", "moe_router_topk", "moe_router_pre_softmax", "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip
ROPE_SCALING_FIELDS = {  # NeMo's Llama31Config -> conf/model's rope_scaling
    "scale_factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "old_context_len": "original_length",
}


def architecture_of(config: BackboneConfig) -> dict:
    """The part of a configuration that decides which weights exist and what they compute.

    A model takes it over from its initial weights.
    """
    scaling = tuple(ROPE_SCALING_FIELDS) if FAMILIES[config.family].rope_scaling else ()
    return {name: getattr(config, name) for name in ARCHITECTURE_FIELDS + scaling}
