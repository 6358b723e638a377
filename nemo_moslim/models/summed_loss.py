"""The base of every trained model: NeMo's GPTModel with losses kept as sums until the whole global batch is known."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from megatron.core import parallel_state
from nemo.collections import llm
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from nemo_moslim.parallel.layout import sum_over_data_ranks


def next_batch(dataloader_iter):
    """NeMo's data step: the next micro-batch, or this rank's part of its positions, on this rank's device."""
    item = next(dataloader_iter)
    batch = item[0] if isinstance(item, tuple) else item
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks > 1:
        batch = batch.context_share(parallel_state.get_context_parallel_rank(), ranks)
    return batch.to_device()


class SummedLossReduction(MegatronLossReduction):
    """Runs on the last pipeline stage: per micro-batch a loss sum and a count, per global batch their ratio.

    megatron-core divides the gradients by the all-reduced count (`calculate_per_token_loss`), so the step is the
    gradient of the mean over the global batch in every layout.
    """

    def __init__(self, model: "SummedLossModel", training: bool):
        super().__init__()
        self._model = [model]  # in a list, so that the model does not become a child of this module
        self._training = training

    def forward(self, batch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss_sum, count, sums = self._model[0].loss_terms(batch, output)
        return loss_sum, count.to(torch.int), {"sums": sums.detach().double()}

    def reduce(self, micro_batches: list[dict[str, Tensor]]) -> Tensor:
        """Mean loss of the global batch, fp32 scalar.

        Raises:
            FloatingPointError: the loss is not finite; raised before the optimizer has touched a weight.
        """
        model = self._model[0]
        sums = sum_over_data_ranks(torch.stack([m["sums"] for m in micro_batches]).sum(0))
        loss = sums[0] / sums[1].clamp(min=1)
        if self._training:
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss.item()} at step {model.trainer.global_step + 1}: weights are left as they were and "
                    "the last checkpoint stays; lower optimizer.lr or look at the rows of this step"
                )
            model.after_global_batch(sums)
            model.training_sums = sums
        else:
            model.validation_sums = sums if model.validation_sums is None else model.validation_sums + sums
        return loss.float()


class SummedLossModel(llm.GPTModel):
    """A NeMo model whose loss is given by `loss_terms`.

    Attributes:
        load_initial_weights: called once with this rank's fresh module, before the optimizer is made.
        training_sums: fp64 [number of sums]: what `loss_terms` summed over the last training global batch.
        validation_sums: the same over the validation pass so far, None before it.
        later_parts: under virtual pipeline, the further parts of the stage that this rank holds, in order.
    """

    def __init__(self, config, optim=None, tokenizer=None):
        super().__init__(config, optim=optim, tokenizer=tokenizer)
        self.load_initial_weights: Callable[[torch.nn.Module], None] | None = None
        self.later_parts: list[SummedLossModel] = []
        self.training_sums: Tensor | None = None
        self.validation_sums: Tensor | None = None

    def log(self, name: str, *args, **settings) -> None:
        """Lightning's, for what is read again (telemetry, early stopping, checkpoints).

        NeMo logs five more values in every step: a tenth of the tiny model's step, where that has a single row.
        """
        if name == "grad_norm" or name.startswith("validation/"):
            super().log(name, *args, **settings)

    def configure_model(self, vp_stage: int | None = None) -> None:
        fresh = not hasattr(self, "module")
        super().configure_model(vp_stage=vp_stage)
        if fresh and self.load_initial_weights:
            self.load_initial_weights(self.module)

    def reinit(self) -> "SummedLossModel":
        """A further part of this stage under virtual pipeline, not yet configured (NeMo's hook).

        It shares configuration and initial weights with this one; NeMo's own copy would know neither what was set
        after construction nor where weights come from.
        """
        part = type(self)(self.config, optim=self.optim, tokenizer=self.tokenizer)
        part.load_initial_weights = self.load_initial_weights
        self.later_parts.append(part)
        return part

    @property
    def training_loss_reduction(self) -> SummedLossReduction:
        return SummedLossReduction(self, training=True)

    @property
    def validation_loss_reduction(self) -> SummedLossReduction:
        return SummedLossReduction(self, training=False)

    @abstractmethod
    def loss_terms(self, batch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss sum (scalar, with gradient), count (scalar), and a vector of sums that starts with these two."""

    @abstractmethod
    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Named metrics from summed `loss_terms` vectors."""

    @property
    @abstractmethod
    def sums_size(self) -> int:
        """Length of the vector of sums; pipeline stages without the loss need it to receive the values."""

    def after_global_batch(self, sums: Tensor) -> None:
        """Hook on the last stage, after the backward pass of a training global batch, with the all-reduced sums."""
