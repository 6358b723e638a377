"""Adam with the state layout of Transformer Engine's and Apex's FusedAdam, for `nemo_moslim.parallel.cpu`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adam import adam


class GroupStepAdam(torch.optim.Optimizer):
    """Adam or AdamW whose `step` counter lives in the parameter group and whose per-parameter state is `exp_avg` and
    `exp_avg_sq`, like FusedAdam's: the layout that megatron-core's distributed optimizer can save and load.

    The arithmetic is torch's fused CPU kernel, one pass over memory per parameter.

    Args:
        params: parameters or groups of them, on the CPU.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: coefficient of the decay.
        adam_w_mode: True decouples the decay from the gradient (AdamW), False adds it to the gradient (L2).

    Raises:
        ValueError: an option that only FusedAdam has (megatron-core passes some for `use_precision_aware_optimizer`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **fused_only: Any,
    ) -> None:
        if fused_only:
            raise ValueError(
                f"the CPU's Adam has no option {sorted(fused_only)}; expected lr, betas, eps, weight_decay, "
                "adam_w_mode. Set use_precision_aware_optimizer=False in OptimizerConfig: it needs Transformer Engine."
            )
        self.adam_w_mode = adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; every group's `step` grows by one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            previous = int(group.get("step", 0))
            group["step"] = previous + 1
            self._update(group, previous)
        return loss

    def _update(self, group: dict[str, Any], previous: int) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if len(self.state[p]) == 0:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        if not params:
            return
        beta1, beta2 = group["betas"]
        adam(
            params,
            [p.grad for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            list(torch.full((len(params),), float(previous)).unbind()),  # the kernel adds 1 to each
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=self.adam_w_mode,
        )
