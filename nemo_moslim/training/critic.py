"""PPO's critic: what the loop asks of it, and the one on the ranks of this launch. `remote_critic.py` has a service's.

Shapes: B rows of a micro-batch, T answer positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.functional.policy_losses import clipped_value_loss
from nemo_moslim.models.critic import answer_values, critic_step
from nemo_moslim.training.rl_checkpoint import CRITIC
from nemo_moslim.training.trained_model import TrainedModel

VALUE_SUMS = ("value_clipped", "value_error", "returns", "returns_squared")


class Critic(Protocol):
    """Every rank makes one and calls it alike, with its own micro-batches."""

    models: dict[str, TrainedModel]  # what the policy's checkpoint holds of it, by folder

    def resume(self, checkpoint: Path | None) -> None:
        """Stand where the policy does, whose checkpoint this is; None: at the run's beginning. After `models` are."""

    def values(self, batches: list[PolicyBatch]) -> list[Tensor]:
        """Values before each answer token is drawn: fp32 [B, T] per micro-batch, on the host; 0 outside the answers."""

    def learn(
        self, updates: list[list[PolicyBatch]], orders: Sequence[Sequence[int]], step: int
    ) -> list[list[dict[str, float]]]:
        """A step's updates, in the order of each of its epochs; sums over all ranks per epoch and update.

        Raises:
            ServiceUnavailable: a service is away; the critic then stands where it did before the step.
        """

    def save(self, checkpoint: Path, step: int) -> None:
        """Write into the policy's checkpoint after `step` steps what `resume` reads."""


class LocalCritic:
    """A critic that shares the policy's ranks and checkpoints."""

    def __init__(self, model: TrainedModel, value_clip: float | None):
        self.model, self.value_clip = model, value_clip
        self.models = {CRITIC: model}

    def resume(self, checkpoint: Path | None) -> None:
        """See `Critic`: it is among the checkpoint's models."""

    def values(self, batches: list[PolicyBatch]) -> list[Tensor]:
        """See `Critic`."""
        return critic_values(self.model, batches)

    def learn(
        self, updates: list[list[PolicyBatch]], orders: Sequence[Sequence[int]], step: int
    ) -> list[list[dict[str, float]]]:
        """See `Critic`."""
        found = []
        for epoch, order in enumerate(orders):
            places = [update_place(step + 1, epoch + 1, number + 1) for number in range(len(order))]
            found.append(
                [
                    critic_update(self.model, updates[index], self.value_clip, place)
                    for index, place in zip(order, places, strict=True)
                ]
            )
        return found

    def save(self, checkpoint: Path, step: int) -> None:
        """See `Critic`: it is among the checkpoint's models."""


def update_place(step: int, epoch: int, update: int) -> str:
    """Where in the run an update is, counted from 1; for errors."""
    return f"step {step}, epoch {epoch}, update {update}"


def critic_values(model: TrainedModel, batches: list[PolicyBatch]) -> list[Tensor]:
    """Values of the answers' tokens: fp32 [B, T] per micro-batch, on the host of every stage."""

    def collect(batch: PolicyBatch, output: Tensor) -> dict:
        return {"values": answer_values(output, batch)}

    return model.answer_columns(batches, critic_step, collect)


def critic_update(
    model: TrainedModel, batches: list[PolicyBatch], value_clip: float | None, place: str
) -> dict[str, float]:
    """One optimizer step on `returns`; sums over all ranks: VALUE_SUMS, `value_loss`, and `value_grad_norm`.

    Raises:
        FloatingPointError: see `TrainedModel.update`.
    """

    def loss(module: torch.nn.Module, output: Tensor, batch: PolicyBatch):
        values = answer_values(output, batch)
        total, sums = clipped_value_loss(values, batch.old_values, batch.returns, batch.response_mask, value_clip)
        return total, sums.pop("count"), sums

    found = model.update(batches, critic_step, loss, VALUE_SUMS, place)
    sums = {name: found[name] for name in VALUE_SUMS}
    return {**sums, "value_loss": found["loss"], "value_grad_norm": found["grad_norm"]}
