"""The multi-head reward classification model (MOSLIM section 2.2).

Backbone -> hidden state of the token that ends the answer -> one bias-free fp32 linear to all heads' classes. A head is
a named slice of these logits. Statistics of the probabilities (Eq. 11) are buffers beside the linear's weight.

Shapes: B rows, S positions, N heads, K levels of one head, C classes (the sum of K), H hidden size.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nemo_moslim.batches import RewardBatch, SharedPrompts, position_ids
from nemo_moslim.functional.classification import LOSSES, check_levels_for_loss, probabilities
from nemo_moslim.functional.statistics import (
    Moments,
    RunningStatistics,
    batch_moments,
    check_floor,
    ema_update,
    empty_statistics,
    mean_std,
)
from nemo_moslim.models.backbone import BackboneConfig, for_every_family
from nemo_moslim.models.packed_sequences import packed_sequences
from nemo_moslim.models.read_positions import core_model, reading
from nemo_moslim.models.summed_loss import SummedLossModel, next_batch
from nemo_moslim.models.token_head import TokenHead, find_head
from nemo_moslim.preferences import PreferenceSchema


class PreferenceHead(TokenHead):
    """All heads' logits side by side, fp32 [S, B, C], and the statistics of their probabilities."""

    def __init__(self, hidden_size: int, classes: int, init_std: float, seed: int, sequence_parallel: bool):
        super().__init__(hidden_size, classes, init_std, seed, sequence_parallel)
        for name, values in empty_statistics(classes)._asdict().items():
            self.register_buffer(f"statistics_{name}", values)

    @property
    def statistics(self) -> RunningStatistics:
        """fp32 [C] each."""
        return RunningStatistics(*(getattr(self, f"statistics_{name}") for name in RunningStatistics._fields))

    def set_statistics(self, state: RunningStatistics) -> None:
        """Overwrite the buffers in place."""
        for name, values in state._asdict().items():
            getattr(self, f"statistics_{name}").copy_(values)


def reward_model_step(model: nn.Module, batch: RewardBatch) -> Tensor:
    """NeMo's forward step: logits fp32 [B, C] at the tokens that end the answers, on the last pipeline stage."""
    rows = batch.rows
    one_each = batch.packing is None or isinstance(batch.packing, SharedPrompts)
    with reading(model, rows, batch.last_index, one_each) as early:
        output = model(batch.tokens, position_ids(batch.tokens), attention_mask=None, **packed_sequences(batch.packing))
    if not core_model(model).post_process:
        return output
    return output[0] if early else output[rows, batch.last_index]


@for_every_family
@dataclass(init=False)
class RewardModelConfig(BackboneConfig):
    """Backbone and heads. `preferences` is `PreferenceSchema.to_dict()`; `class_weights` [C] or None."""

    preferences: dict = field(default_factory=dict)
    loss: str = "per_head"
    label_smoothing: float = 0.0
    class_weights: list[float] | None = None
    statistics_mode: str = "ema"
    statistics_decay: float = 0.99
    statistics_rows: str = "labelled"
    std_floor: float = 1e-4
    head_seed: int = 1
    share_embeddings_and_output_weights: bool = False
    data_step_fn: Callable = next_batch
    forward_step_fn: Callable = reward_model_step

    @property
    def schema(self) -> PreferenceSchema:
        """The preference dimensions that the heads stand for."""
        return PreferenceSchema.from_dict(self.preferences)

    @property
    def levels(self) -> list[int]:
        """K of each head, in order."""
        return [dimension.levels for dimension in self.schema.dimensions]

    def configure_model(self, tokenizer, pre_process=None, post_process=None, vp_stage=None):
        """This rank's part of the model; on the last stage the heads take the place of the vocabulary layer.

        Raises:
            ValueError: a head with one level under a loss that cannot learn it.
        """
        schema = self.schema
        check_levels_for_loss({d.name: d.levels for d in schema.dimensions}, self.loss)
        model = super().configure_model(tokenizer, pre_process, post_process, vp_stage)
        if model.post_process:
            model.output_layer = PreferenceHead(
                self.hidden_size, schema.num_classes, self.init_method_std, self.head_seed, self.sequence_parallel
            )
        return model


def reward_sums(logits: Tensor, batch: RewardBatch, config: RewardModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, count and the vector of sums of one micro-batch; logits fp32 [B, C].

    The vector holds loss sum, count, per head the confusion matrix (label x arg-max, K*K values), then the moments of
    the probabilities (n, sum of p, sum of p squared; C values each). All are additive over rows.
    """
    levels = config.levels
    weights = None if config.class_weights is None else weights_on(logits.device, tuple(config.class_weights))
    loss_sum, count = LOSSES[config.loss](
        logits, batch.targets, batch.label_mask, levels, weights, config.label_smoothing
    )
    with torch.no_grad():
        confusion = confusion_counts(logits, batch.targets, batch.label_mask, levels)
        rows = batch.label_mask
        if config.statistics_rows == "all":
            rows = rows.any(-1, keepdim=True).expand_as(rows)
        moments = batch_moments(probabilities(logits, levels, config.loss), rows, levels)
    parts = [torch.stack([loss_sum.detach(), count]), *(m.flatten() for m in confusion), *moments]
    return loss_sum, count, torch.cat([part.double() for part in parts])


@functools.cache
def weights_on(device: torch.device, weights: tuple[float, ...]) -> Tensor:
    """Class weights on a device, fp32 [C], copied there once: in every micro-batch the host would wait for the copy."""
    with torch.inference_mode(False):  # the first to ask may be a validation
        return torch.tensor(weights, dtype=torch.float32, device=device)


def confusion_counts(logits: Tensor, targets: Tensor, label_mask: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """Per head a matrix [K, K] of counts: row = label (arg-max of a distribution), column = arg-max inside the head."""
    matrices = []
    heads = zip(logits.split(list(levels), -1), targets.split(list(levels), -1), label_mask.T, levels, strict=True)
    for scores, target, mask, k in heads:
        cell = target.argmax(-1) * k + scores.argmax(-1)
        counts = torch.zeros(k * k, dtype=torch.int64, device=cell.device)  # bincount would wait for the device
        matrices.append(counts.scatter_add_(0, cell, mask.long()).view(k, k))
    return matrices


class RewardModel(SummedLossModel):
    """NeMo model class of the reward model."""

    config: RewardModelConfig

    @property
    def sums_size(self) -> int:
        levels = self.config.levels
        return 2 + sum(k * k for k in levels) + 3 * sum(levels)

    @property
    def head(self) -> PreferenceHead | None:
        """The heads, on the last pipeline stage; None elsewhere."""
        found = map(find_head, [self, *self.later_parts])
        return next((head for head in found if head is not None), None)

    def loss_terms(self, batch: RewardBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `reward_sums`; `output` fp32 [B, C]."""
        return reward_sums(output, batch, self.config)

    def after_global_batch(self, sums: Tensor) -> None:
        """Moving average of Eq. 11, once per global batch."""
        moments = Moments(*sums[-3 * sum(self.config.levels) :].view(3, -1))
        head = self.head
        head.set_statistics(ema_update(head.statistics, moments, self.config.statistics_decay))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean loss, intensity accuracy over all labelled (row, head) pairs, accuracy and macro-F1 per head.

        `score` is the mean over heads of accuracy and macro-F1: one number to choose a checkpoint by.
        """
        result = {"loss": float(sums[0] / sums[1].clamp(min=1))}
        offset, hits, labelled, scores = 2, 0.0, 0.0, []
        for dimension in self.config.schema.dimensions:
            k = dimension.levels
            matrix = sums[offset : offset + k * k].view(k, k)
            offset += k * k
            if matrix.sum() == 0:
                continue
            hits, labelled = hits + float(matrix.trace()), labelled + float(matrix.sum())
            result[f"accuracy/{dimension.name}"] = float(matrix.trace() / matrix.sum())
            result[f"macro_f1/{dimension.name}"] = macro_f1(matrix)
            scores += [result[f"accuracy/{dimension.name}"], result[f"macro_f1/{dimension.name}"]]
        result["intensity_accuracy"] = hits / max(labelled, 1.0)
        result["score"] = sum(scores) / max(len(scores), 1)
        return result


def macro_f1(confusion: Tensor) -> float:
    """Mean F1 over the classes that occur as a label or as a prediction; confusion [K, K], rows are labels."""
    hits, labels, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = labels + predictions > 0
    return float((2 * hits / (labels + predictions).clamp(min=1))[present].mean())


def mapping_statistics(head: PreferenceHead, config: RewardModelConfig) -> tuple[Tensor, Tensor]:
    """Average and standard deviation for Eq. 11, fp32 [C] each.

    Raises:
        ValueError: a standard deviation under `std_floor`; names dimension and level.
    """
    average, deviation = mean_std(head.statistics)
    check_floor(deviation, config.std_floor, config.schema.class_names)
    return average, deviation
