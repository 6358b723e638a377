"""The critic of PPO: a value per token, on the reward model's backbone. It reads the prompt with its preference tags.

Shapes: B rows, T answer positions, M tokens of answers, X outputs of the head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, position_ids
from nemo_moslim.models.backbone import BackboneConfig, for_every_family
from nemo_moslim.models.read_positions import before_answers, core_model, reading
from nemo_moslim.models.summed_loss import SummedLossModel, next_batch
from nemo_moslim.models.token_head import TokenHead


def critic_step(model: torch.nn.Module, batch: PolicyBatch) -> Tensor:
    """Forward step: the head's outputs before each answer token is drawn, fp32 [M, X] on the last pipeline stage.

    M is the number of the answers' tokens (`response_mask`, row by row).
    """
    tokens, packed, rows, before = before_answers(batch)
    with reading(model, rows, before) as early:
        output = model(tokens, position_ids(tokens), attention_mask=None, **packed)
    if not core_model(model).post_process:
        return output
    return output[0] if early else output[rows, before]


def answer_outputs(output: Tensor, batch: PolicyBatch) -> Tensor:
    """The outputs of `critic_step` at their places in the answers: [M, X] to [B, T, X]; 0 elsewhere."""
    empty = output.new_zeros(*batch.response_mask.shape, output.shape[-1])
    return empty.index_put((batch.answer_rows, batch.answer_places), output)


def answer_values(output: Tensor, batch: PolicyBatch) -> Tensor:
    """Values before each answer token is drawn, from [M, 1] to fp32 [B, T]; 0 outside the answers."""
    return answer_outputs(output, batch)[..., 0]


@for_every_family
@dataclass(init=False)
class CriticConfig(BackboneConfig):
    """Backbone and one output."""

    head_seed: int = 1
    share_embeddings_and_output_weights: bool = False
    data_step_fn: Callable = next_batch
    forward_step_fn: Callable = critic_step

    def configure_model(self, tokenizer, pre_process=None, post_process=None, vp_stage=None):
        """This rank's part of the model; on the last stage the value takes the place of the vocabulary layer."""
        model = super().configure_model(tokenizer, pre_process, post_process, vp_stage)
        if model.post_process:
            model.output_layer = TokenHead(
                self.hidden_size, 1, self.init_method_std, self.head_seed, self.sequence_parallel
            )
        return model


class CriticModel(SummedLossModel):
    """NeMo model class of the critic, which NeMo's Trainer never trains."""

    config: CriticConfig
    sums_size = 2

    def loss_terms(self, batch, output):
        """Not used: what it learns is in training/critic.py."""
        raise NotImplementedError("the critic is trained by PPO, not by NeMo's Trainer")

    def metrics(self, sums):
        """Not used, like `loss_terms`."""
        raise NotImplementedError("the critic is trained by PPO, not by NeMo's Trainer")
