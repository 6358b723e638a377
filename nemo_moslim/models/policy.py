"""The language model: SFT trains it, and it is the policy that reinforcement learning starts from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_moslim.batches import TokenBatch, position_ids
from nemo_moslim.models.backbone import BackboneConfig
from nemo_moslim.models.summed_loss import SummedLossModel, next_batch


def language_model_step(model: torch.nn.Module, batch: TokenBatch) -> Tensor:
    """NeMo's forward step: cross-entropy per token, fp32 [B, S], on the last pipeline stage."""
    return model(batch.tokens, position_ids(batch.tokens), attention_mask=None, labels=batch.labels)


@dataclass
class PolicyConfig(BackboneConfig):
    """A causal language model."""

    data_step_fn: Callable = next_batch
    forward_step_fn: Callable = language_model_step


class PolicyModel(SummedLossModel):
    """A causal language model with cross-entropy over the counted tokens."""

    sums_size = 2

    def loss_terms(self, batch: TokenBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the counted tokens; `output` fp32 [B, S] is the loss per token."""
        loss_sum = (output.float() * batch.loss_mask).sum()
        count = batch.loss_mask.sum()
        return loss_sum, count, torch.stack([loss_sum, count])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean loss per counted token (nats) and the number of counted tokens."""
        loss_sum, count = sums.tolist()
        return {"loss": loss_sum / max(count, 1.0), "counted_tokens": count}
