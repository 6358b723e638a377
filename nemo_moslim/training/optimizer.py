"""megatron-core's optimizer and the learning-rate schedule, as NeMo modules."""

import math
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from nemo.lightning.pytorch.optim import LRSchedulerModule, MegatronOptimizerModule

from nemo_moslim.config import OptimizerConfig

# megatron-core's distributed optimizer mixes up the states of fp32 and bf16 parameters of one group when it saves them.
# A multiplier of the learning rate other than 1 makes a group; this one changes nothing (the schedule sets the rate).
OWN_GROUP = math.nextafter(1.0, 2.0)


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, max_steps: int, min_factor: float) -> float:
    """Learning rate after `step` updates as a share of its peak: linear warm-up, then constant, linear or cosine decay.

    The first update runs at 1 / warmup_steps of the peak, the update number warmup_steps at the peak, and the decay
    ends at `min_factor` with the last update.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min((step + 1 - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    shape = 1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0
    return min_factor + (1.0 - min_factor) * shape


class WarmupDecaySchedule(LRSchedulerModule):
    """`learning_rate_factor` as a scheduler; max_steps is set by NeMo from the trainer."""

    def __init__(self, schedule: str, warmup_steps: int, min_factor: float, max_steps: int):
        super().__init__()
        self.schedule, self.warmup_steps, self.min_factor, self.max_steps = (
            schedule,
            warmup_steps,
            min_factor,
            max_steps,
        )

    def scheduler(self, model, optimizers) -> dict:  # NeMo passes one optimizer
        factor = partial(
            learning_rate_factor,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
            min_factor=self.min_factor,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizers, factor)
        return {"optimizer": optimizers, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}


def no_weight_decay(name: str, parameter: torch.nn.Parameter) -> bool:
    """Biases and norms are not decayed."""
    return name.endswith(".bias") or parameter.dim() == 1


def is_fp32(name: str, parameter: torch.nn.Parameter) -> bool:
    """The heads of a reward model in bf16."""
    return parameter.dtype == torch.float32


def megatron_optimizer_config(config: OptimizerConfig, precision: str) -> MegatronOptimizerConfig:
    """AdamW in megatron-core's terms."""
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        use_distributed_optimizer=config.distributed,
        bf16=precision != "fp32",
        params_dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
    )


def stop_at_bad_gradients(optimizer: ChainedOptimizer) -> None:
    """Make the optimizer's step raise where the norm of the gradients, which it takes first, is not finite.

    megatron-core's own `check_for_nan_in_grad` reads every bucket on the host in the backward pass, before the loss can
    be looked at, and knows neither step nor remedy.

    Raises (the step):
        FloatingPointError: no weight has been touched.
    """
    norm = optimizer.get_grad_norm

    def finite_norm() -> float:
        value = norm()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the gradient's norm is {float(value)}: weights are left as they were and the last checkpoint stays; "
                "lower optimizer.lr or look at the rows of this step"
            )
        return value

    optimizer.get_grad_norm = finite_norm


class StoppingOptimizerModule(MegatronOptimizerModule):
    """NeMo's module with `stop_at_bad_gradients`."""

    def optimizers(self, model) -> list[torch.optim.Optimizer]:
        """NeMo's optimizer around megatron-core's."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # NeMo fills the parameters' buffers on a stream that nothing else waits for
        found = super().optimizers(model)
        for optimizer in found:
            stop_at_bad_gradients(optimizer.mcore_optimizer)
        return found


def optimizer_module(config: OptimizerConfig, max_steps: int, precision: str) -> MegatronOptimizerModule:
    """AdamW over megatron-core's (distributed) optimizer."""
    megatron = megatron_optimizer_config(config, precision)
    schedule = WarmupDecaySchedule(config.schedule, config.warmup_steps, config.min_lr / config.lr, max_steps)
    if precision == "fp32":
        return StoppingOptimizerModule(megatron, schedule, no_weight_decay_cond=no_weight_decay)
    return StoppingOptimizerModule(
        megatron, schedule, no_weight_decay_cond=no_weight_decay, scale_lr_cond=is_fp32, lr_mult=OWN_GROUP
    )


def data_parallel_settings(config: OptimizerConfig, gather_ahead: bool) -> DistributedDataParallelConfig:
    """megatron-core's gradient reduction and, with the distributed optimizer, parameter gather.

    Args:
        gather_ahead: gathered parameters may arrive as late as in the forward pass of the module that owns them. False
            where weights are read in other ways between updates.
    """
    overlap = torch.cuda.is_available() if config.overlap is None else config.overlap
    return DistributedDataParallelConfig(
        use_distributed_optimizer=config.distributed,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and config.distributed and gather_ahead,
        grad_reduce_in_fp32=True,
    )
