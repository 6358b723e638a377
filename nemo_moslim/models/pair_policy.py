"""A policy that learns from preference pairs: DPO and MODPO on NeMo's Trainer.

Shapes: P pairs, B = 2 P rows, M answer tokens, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_moslim.batches import PairBatch
from nemo_moslim.functional.preference_losses import modpo_loss
from nemo_moslim.models.backbone import for_every_family
from nemo_moslim.models.policy import PolicyConfig, answer_logprobs, hidden_states_step
from nemo_moslim.models.read_positions import core_model
from nemo_moslim.models.summed_loss import SummedLossModel


def pair_step(model: torch.nn.Module, batch: PairBatch) -> Tensor:
    """NeMo's forward step: final hidden states [M, H] on the last pipeline stage, see `hidden_states_step`.

    megatron-core's own model is called: the wrapper of bf16 around it would answer in fp32, and these states are going
    to be multiplied by the vocabulary layer's bf16 weights.
    """
    return hidden_states_step(core_model(model), batch)


@for_every_family
@dataclass(init=False)
class PairPolicyConfig(PolicyConfig):
    """The policy and its loss. `weight` is that of the objective which orders the pairs: 1 is plain DPO.

    `vocab_entries` are the tokens that exist (the embedding has rows of padding behind them).
    """

    beta: float = 0.1
    weight: float = 1.0
    vocab_entries: int = 0
    logprob_chunk: int = 1024
    forward_step_fn: Callable = pair_step


class PairPolicyModel(SummedLossModel):
    """NeMo model class; losses and metrics are counted in pairs."""

    config: PairPolicyConfig
    sums_size = 4

    def loss_terms(self, batch: PairBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `modpo_loss`; `output` are the hidden states."""
        config = self.config
        logprobs = answer_logprobs(self.module, output, batch, config.vocab_entries, 1.0, config.logprob_chunk)[0]
        logratios = logprobs.sum(-1) - batch.ref_logprobs
        loss, sums = modpo_loss(
            logratios[0::2], logratios[1::2], batch.margins, batch.valid, config.beta, config.weight
        )
        parts = (loss.detach(), sums["count"], sums["accuracy"], sums["margin"])
        return loss, sums["count"], torch.stack([part.double() for part in parts])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean loss and margin per pair, and the share of pairs whose implicit reward is higher for the better one."""
        loss, count, accuracy, margin = sums.tolist()
        count = max(count, 1.0)
        return {"loss": loss / count, "pair_accuracy": accuracy / count, "margin": margin / count}
