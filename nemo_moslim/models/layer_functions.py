"""Norm, gated activation and rotary embedding in few passes over memory, forward and backward; torch only.

What autograd makes of the plain formulas writes every intermediate result.

Shapes: S sequence, B batch, N heads, D head size, H hidden, F size of the feed-forward layer.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in fp32, answered in x's dtype.

    Args:
        x: [..., H], any floating dtype.
        weight: [H].
    """
    return _RMSNorm.apply(x, weight, eps)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for `x` [..., 2 F], gate first: [..., F], in x's dtype (Shazeer 2020)."""
    return _SwiGLU.apply(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves paired: x * cos + (-x2, x1) * sin with x = (x1, x2).

    Args:
        x: [S, B, N, D].
        cos: broadcastable to x, in its dtype; the angles of the two halves are the same.
        sin: likewise.
    """
    return _Rotate.apply(x, cos, sin)


def take(x: Tensor, places: Tensor) -> Tensor:
    """The rows of `x` [S, ...] at these places, int64 [b, l]: [b, l, ...]."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:])


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        values = x.float()
        norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (values * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad = grad.float()
        normed = x.float() * scale
        product = grad * normed
        grad_weight = product.reshape(-1, x.shape[-1]).sum(0)
        mean = (product @ weight.float()).div_(x.shape[-1])
        # dx = scale * (weight * grad - normed * mean(weight * grad * normed))
        grad_x = (grad * weight).addcmul_(normed, mean[..., None], value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        gate, up = x.chunk(2, dim=-1)
        activated = functional.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, activated = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.mul(grad, activated, out=grad_up)
        return grad_x


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
