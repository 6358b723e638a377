"""PPO's critic: what the loop asks of it, and the one on the ranks of this launch. `remote_critic.py` has a service's.

Shapes: B rows of a micro-batch, T answer positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.functional.classification import probabilities
from nemo_moslim.functional.level_values import level_prediction_loss, level_values
from nemo_moslim.functional.policy_losses import clipped_value_loss
from nemo_moslim.models.critic import answer_outputs, answer_values, critic_step
from nemo_moslim.rollout.score import LocalScorer
from nemo_moslim.training.rl_checkpoint import CRITIC
from nemo_moslim.training.trained_model import TrainedModel

VALUE_SUMS = ("value_clipped", "value_error", "returns", "returns_squared")


class Critic(Protocol):
    """Every rank makes one and calls it alike, with its own micro-batches."""

    models: dict[str, TrainedModel]  # what the policy's checkpoint holds of it, by folder
    in_service: bool  # in that of the reward model, which is asked for one thing at a time

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


class ValueReading(Protocol):
    """What a critic's head says and learns; the output is that of `critic_step`, on the last pipeline stage."""

    def values(self, output: Tensor, batch: PolicyBatch) -> Tensor:
        """Before each answer token is drawn: fp32 [B, T]; 0 outside the answers."""

    def loss(self, output: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss sum, count of positions, and the sums of VALUE_SUMS."""


class ValueHead:
    """One output, which learns the returns."""

    def __init__(self, value_clip: float | None):
        self.value_clip = value_clip

    def values(self, output: Tensor, batch: PolicyBatch) -> Tensor:
        """See `ValueReading`."""
        return answer_values(output, batch)

    def loss(self, output: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `ValueReading`."""
        values = answer_values(output, batch)
        total, sums = clipped_value_loss(values, batch.old_values, batch.returns, batch.response_mask, self.value_clip)
        return total, sums.pop("count"), sums


class LevelHeads:
    """The reward model's heads, which learn to foresee what it will say of the finished answer (`level_values`).

    What KL and cuts take off the reward is not foreseen: it is small, and a baseline need not be exact.
    """

    def __init__(self, scorer: LocalScorer):
        config = scorer.reward_model.model.config
        self.average, self.deviation, self.normalize = scorer.average, scorer.deviation, scorer.normalize
        self.levels, self.loss_name = config.levels, config.loss

    def _foreseen(self, output: Tensor, batch: PolicyBatch) -> Tensor:
        return probabilities(answer_outputs(output, batch), self.levels, self.loss_name)

    def _mapped(self, p: Tensor, batch: PolicyBatch) -> Tensor:
        statistics = self.average, self.deviation
        return level_values(p, batch.asked, *statistics, self.levels, self.normalize, batch.response_mask)

    def values(self, output: Tensor, batch: PolicyBatch) -> Tensor:
        """See `ValueReading`."""
        return self._mapped(self._foreseen(output, batch), batch)

    def loss(self, output: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `ValueReading`."""
        p = self._foreseen(output, batch)
        values = self._mapped(p.detach(), batch)
        _, sums = clipped_value_loss(values, batch.old_values, batch.returns, batch.response_mask, None)
        return level_prediction_loss(p, batch.probabilities, batch.response_mask), sums.pop("count"), sums


class LocalCritic:
    """A critic that shares the policy's ranks and checkpoints."""

    in_service = False

    def __init__(self, model: TrainedModel, head: ValueReading):
        self.model, self.head = model, head
        self.models = {CRITIC: model}

    def resume(self, checkpoint: Path | None) -> None:
        """See `Critic`: it is among the checkpoint's models."""

    def values(self, batches: list[PolicyBatch]) -> list[Tensor]:
        """See `Critic`."""
        return critic_values(self.model, self.head, batches)

    def learn(
        self, updates: list[list[PolicyBatch]], orders: Sequence[Sequence[int]], step: int
    ) -> list[list[dict[str, float]]]:
        """See `Critic`."""
        self.model.set_rate(self.model.settings.lr)  # a resumed optimizer has the rate that it was saved with
        found = []
        for epoch, order in enumerate(orders):
            places = [update_place(step + 1, epoch + 1, number + 1) for number in range(len(order))]
            found.append(
                [
                    critic_update(self.model, self.head, updates[index], place)
                    for index, place in zip(order, places, strict=True)
                ]
            )
        return found

    def save(self, checkpoint: Path, step: int) -> None:
        """See `Critic`: it is among the checkpoint's models."""


def update_place(step: int, epoch: int, update: int) -> str:
    """Where in the run an update is, counted from 1; for errors."""
    return f"step {step}, epoch {epoch}, update {update}"


def critic_values(model: TrainedModel, head: ValueReading, batches: list[PolicyBatch]) -> list[Tensor]:
    """Values of the answers' tokens: fp32 [B, T] per micro-batch, on the host of every stage."""

    def collect(batch: PolicyBatch, output: Tensor) -> dict:
        return {"values": head.values(output, batch)}

    return model.answer_columns(batches, critic_step, collect)


def critic_update(model: TrainedModel, head: ValueReading, batches: list[PolicyBatch], place: str) -> dict[str, float]:
    """One optimizer step; sums over all ranks: VALUE_SUMS, `value_loss`, and `value_grad_norm`.

    Raises:
        FloatingPointError: see `TrainedModel.update`.
    """

    def loss(module: torch.nn.Module, output: Tensor, batch: PolicyBatch):
        return head.loss(output, batch)

    found = model.update(batches, critic_step, loss, VALUE_SUMS, f"critic: {place}")
    sums = {name: found[name] for name in VALUE_SUMS}
    return {**sums, "value_loss": found["loss"], "value_grad_norm": found["grad_norm"]}
