"""A model outside NeMo's Trainer with what an update needs: megatron-core's data parallelism and optimizer."""

from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.config import OptimizerConfig
from nemo_moslim.models.summed_loss import SummedLossModel
from nemo_moslim.parallel.layout import from_last_stage, maximum_over_data_ranks, sum_over_data_ranks
from nemo_moslim.rollout.score import forward_micro_batches
from nemo_moslim.training.optimizer import (
    OWN_GROUP,
    data_parallel_settings,
    is_fp32,
    learning_rate_factor,
    megatron_optimizer_config,
    no_weight_decay,
    stop_at_bad_gradients,
)

Loss = Callable[[torch.nn.Module, Tensor, object], tuple[Tensor, Tensor, dict[str, Tensor]]]


class TrainedModel:
    """Losses are sums over a micro-batch; megatron-core divides the gradients by the count over the mini-batch."""

    def __init__(self, model: SummedLossModel, optimizer: OptimizerConfig, precision: str, max_length: int):
        self.model, self.settings, self.max_length = model, optimizer, max_length
        self.module = model.module
        # the reference swaps weights in and out, and log-probabilities read the vocabulary layer's without its forward
        data_parallel = data_parallel_settings(optimizer, gather_ahead=False)
        self.wrapped = DistributedDataParallel(model.config, data_parallel, self.module)
        self.wrapped.broadcast_params()
        groups = {} if precision == "fp32" else dict(scale_lr_cond=is_fp32, lr_mult=OWN_GROUP)
        self.optimizer = get_megatron_optimizer(
            megatron_optimizer_config(optimizer, precision),
            [self.wrapped],
            no_weight_decay_cond=no_weight_decay,
            **groups,
        )
        stop_at_bad_gradients(self.optimizer)
        if model.config.num_moe_experts:
            # off, as in NeMo-RL: megatron-core scales the router's loss for gradients that are divided by all tokens;
            # those of an update are divided by what its loss counts (tokens of answers, pairs of answers)
            model.config.moe_aux_loss_coeff = 0.0
        model.config.finalize_model_grads_func = finalize_model_grads
        model.config.grad_scale_func = self.optimizer.scale_loss
        model.config.no_sync_func = self.wrapped.no_sync

    def set_learning_rate(self, step: int, max_steps: int) -> float:
        """Set and return the learning rate of the updates of this step."""
        s = self.settings
        rate = s.lr * learning_rate_factor(step, s.schedule, s.warmup_steps, max_steps, s.min_lr / s.lr)
        self.set_rate(rate)
        return rate

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the updates to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_mult", 1.0)

    def answer_columns(
        self,
        micro_batches: list[PolicyBatch],
        forward: Callable[[torch.nn.Module, PolicyBatch], Tensor],
        collect: Callable[[PolicyBatch, Tensor], dict],
    ) -> list[Tensor]:
        """What `collect` finds under "values" without gradients: fp32 [B, T] per micro-batch, on every stage's host."""
        self.module.eval()
        kept = forward_micro_batches(self.module, micro_batches, collect, self.max_length, forward)
        columns = [k["values"].float() for k in kept] or [
            torch.zeros(b.response_mask.shape, device="cuda") for b in micro_batches
        ]
        return [from_last_stage(column.contiguous()).cpu() for column in columns]

    def update(
        self,
        micro_batches: Sequence,
        forward: Callable[[torch.nn.Module, object], Tensor],
        loss: Loss,
        metric_names: Sequence[str],
        place: str,
    ) -> dict[str, float]:
        """One optimizer step on this rank's micro-batches of a mini-batch.

        Args:
            loss: (module, output of `forward`, batch) -> loss sum, count, sums of metrics; runs on the last stage.
            metric_names: names of these sums; one that ends in `_max` is a maximum.
            place: where in the run this is, for the error.

        Returns:
            The metrics over all ranks (sums, not yet divided), `loss` (sum), `count` and `grad_norm`.

        Raises:
            FloatingPointError: a loss or gradient that is not finite; no weight has been touched.
        """
        names = ["loss", "count", *metric_names]
        metrics = combined(names, self.gradients(micro_batches, forward, loss, names))
        if not all(map(_is_finite, metrics.values())):
            raise FloatingPointError(
                f"{place}: loss is {metrics['loss']}: weights are left as they were and the last checkpoint stays; "
                "lower optimizer.lr or look at the prompts of this step"
            )
        if not metrics["count"]:  # nothing to learn from: neither momentum nor weight decay moves the weights
            return {**metrics, "grad_norm": 0.0}
        try:
            _, grad_norm, _ = self.optimizer.step()
        except FloatingPointError as error:
            raise FloatingPointError(f"{place}: {error}") from None
        return {**metrics, "grad_norm": float(grad_norm)}

    def gradients(
        self,
        micro_batches: Sequence,
        forward: Callable[[torch.nn.Module, object], Tensor],
        loss: Loss,
        names: Sequence[str],
    ) -> list[Tensor]:
        """Forward and backward pass of the micro-batches; gradients are left in megatron-core's buffers.

        Returns:
            On the last stage the sums of `names` (`loss`, `count` and what `loss` names), fp64 [names] per micro-batch;
            elsewhere an empty list.
        """

        def step(iterator: Iterator, stage: torch.nn.Module):
            batch = next(iterator).to_device()
            output = forward(stage, batch)

            def reduce(output: Tensor):
                loss_sum, count, sums = loss(self.module, output, batch)
                values = {"loss": loss_sum.detach(), "count": count, **sums}
                return loss_sum, count.to(torch.int), {"sums": torch.stack([values[n].double() for n in names])}

            return output, reduce

        self.module.train()
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=[self.wrapped],
            num_microbatches=len(micro_batches),
            seq_length=self.max_length,
            micro_batch_size=len(micro_batches[0]),
            forward_only=False,
        )
        return [r["sums"] for r in results]


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def combined(names: Sequence[str], parts: list[Tensor]) -> dict[str, float]:
    """Metrics of this rank's micro-batches over all ranks, on every rank: sums, or maxima where the name says so."""
    stacked = torch.stack(parts) if parts else torch.zeros(1, len(names), dtype=torch.float64, device="cuda")
    is_maximum = torch.tensor([name.endswith("_max") for name in names], device=stacked.device)
    sums = from_last_stage(sum_over_data_ranks(stacked.sum(0)))
    maxima = from_last_stage(maximum_over_data_ranks(stacked.amax(0)))
    return dict(zip(names, torch.where(is_maximum, maxima, sums).tolist(), strict=True))


class FrozenWeights:
    """The initial policy on the host: the reference, without a second copy on the device.

    The current weights wait in host memory of their own. On a GPU both are pinned, for copies at the bus's speed.
    """

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self._frozen = [_host_buffer(p).copy_(p.detach()) for p in module.parameters()]
        self._current = [_host_buffer(p) for p in module.parameters()]

    @torch.no_grad()
    def __enter__(self) -> torch.nn.Module:
        """Put the frozen weights in place of the current ones."""
        for parameter, frozen, current in zip(self._module.parameters(), self._frozen, self._current, strict=True):
            current.copy_(parameter, non_blocking=True)
            parameter.copy_(frozen, non_blocking=True)
        return self._module

    @torch.no_grad()
    def __exit__(self, *exception) -> None:
        for parameter, current in zip(self._module.parameters(), self._current, strict=True):
            parameter.copy_(current, non_blocking=True)


def _host_buffer(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu", pin_memory=torch.cuda.is_available())
