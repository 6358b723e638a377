"""A linear layer in the vocabulary layer's place: what reward model and critic read from each token's hidden state."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn


class TokenHead(nn.Module):
    """The model's `output_layer`: bias-free, fp32 outputs [S, B, outputs].

    The weight is replicated over tensor-parallel ranks. Under sequence parallelism each rank computes its share of the
    positions and the outputs are gathered; the loss that follows is the same on all ranks, so their gradient is split
    and not summed. Casts of the model (bf16) leave weight and buffers in fp32.
    """

    def __init__(self, hidden_size: int, outputs: int, init_std: float, seed: int, sequence_parallel: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)  # the same head in every layout
        self.weight = nn.Parameter(torch.empty(outputs, hidden_size).normal_(0.0, init_std, generator=generator))
        self.weight.sequence_parallel = sequence_parallel
        self.sequence_parallel = sequence_parallel

    def forward(self, hidden: Tensor, weight=None, runtime_gather_output=None) -> tuple[Tensor, None]:
        """`hidden` [S (or its share), B, H]; the other arguments are those of the vocabulary layer it stands for."""
        outputs = F.linear(hidden.float(), self.weight)
        if self.sequence_parallel:
            outputs = gather_from_sequence_parallel_region(outputs, tensor_parallel_output_grad=False)
        return outputs, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


def find_head(model: nn.Module) -> TokenHead | None:
    """The head inside a (wrapped) model; None on a pipeline stage without one, and in a language model."""
    return next((m for m in model.modules() if isinstance(m, TokenHead)), None)
