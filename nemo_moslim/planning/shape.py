"""The sizes that the planner's formulas take: of a model, and of its split over the GPUs."""

from dataclasses import dataclass

from nemo_moslim.config import ParallelConfig
from nemo_moslim.model_config import ModelConfig


@dataclass(frozen=True)
class ModelShape:
    """A decoder of grouped-query attention and SwiGLU feed-forward layers; `experts` is 0 where these are dense."""

    layers: int
    hidden: int
    heads: int
    groups: int
    head_size: int
    ffn: int
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's query, key, value and output projections; their biases and the norms are left out."""
        return self.hidden * self.head_size * 2 * (self.heads + self.groups)

    @property
    def ffn_parameters(self) -> int:
        """Weights that one token meets in one layer's feed-forward part, router and gate included."""
        if not self.experts:
            return 3 * self.hidden * self.ffn
        gate = self.hidden if self.shared_ffn else 0
        return self.chosen_parameters + 3 * self.hidden * self.shared_ffn + self.hidden * self.experts + gate

    @property
    def chosen_parameters(self) -> int:
        """Weights of the experts that a token chooses in one layer; 0 without experts."""
        return 3 * self.hidden * self.experts_per_token * self.expert_ffn


def model_shape(model: ModelConfig, vocab: int) -> ModelShape:
    """The shape of a model of conf/model; `vocab` is its number of rows with padding."""
    experts = model.num_experts or 0
    return ModelShape(
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.num_query_groups,
        head_size=model.head_size or model.hidden_size // model.num_attention_heads,
        ffn=model.ffn_hidden_size,
        vocab=vocab,
        experts=experts,
        experts_per_token=model.experts_per_token if experts else 0,
        expert_ffn=(model.expert_hidden_size or model.ffn_hidden_size) if experts else 0,
        shared_ffn=(model.shared_expert_hidden_size or 0) if experts else 0,
    )


@dataclass(frozen=True)
class Layout:
    """How a model is split. `data` ranks hold the same tensor and pipeline slice; experts are spread over some of them.

    Sequence parallelism goes with tensor parallelism: it saves memory and costs nothing by the formulas here.
    """

    tensor: int
    pipeline: int
    expert: int
    data: int
    micro_size: int
    recompute: str  # none | selective | full

    @property
    def sequence(self) -> int:
        """Ranks over which the activations between the tensor-parallel parts are split."""
        return self.tensor

    @property
    def expert_copies(self) -> int:
        """How often an expert gets a token that chose it: megatron-core's dispatcher gathers what each tensor-parallel
        rank holds, a share of the tokens under sequence parallelism and all of them without."""
        return self.tensor // self.sequence

    def in_generation(self) -> "Layout":
        """The same ranks while they sample answers."""
        return GenerationLayout(**vars(self))

    @property
    def expert_data(self) -> int:
        """Ranks that hold the same experts."""
        return self.data // self.expert

    def parallel(self) -> ParallelConfig:
        """The layout as the trainings' setting."""
        return ParallelConfig(
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=None,
            context=1,
            expert=self.expert,
            expert_tensor=None,
            sequence=self.tensor > 1,
            tensor_overlap=False,
            moe_dispatcher="alltoall",
        )


class GenerationLayout(Layout):
    """Without sequence parallelism: a step of one token cannot be split (rollout/generate.py)."""

    @property
    def sequence(self) -> int:
        """Every tensor-parallel rank holds all tokens."""
        return 1
