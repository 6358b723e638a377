"""The vocabulary split over tensor-parallel ranks: its padding, and log-probabilities from hidden states.

Log-probabilities and entropy of the policy are made without ever holding logits for a whole sequence.

The vocabulary stays split over the tensor-parallel ranks: maxima and sums are all-reduced, logits are not gathered.
They are computed a chunk of positions at a time, and again in the backward pass, so that peak memory depends on the
chunk and not on the number of positions.

Shapes: M positions, H hidden size, V vocabulary entries on this rank.
"""

import torch
import torch.distributed as dist
from torch import Tensor

VOCAB_MULTIPLE = 128  # the embedding's rows are padded to it, so that any tensor-parallel size up to 128 divides them


def padded_vocab_size(size: int) -> int:
    """Rows of the embedding for a vocabulary of this size."""
    return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def vocab_parallel_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    chunk: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy under softmax(hidden @ weight.T / temperature), both fp32 [M], in nats.

    Args:
        hidden: [M, H], the same on all ranks of `group`. Its gradient is this rank's part only: the caller's mapping
            into the tensor-parallel region sums it.
        weight: [V, H], this rank's rows of the vocabulary layer.
        targets: int64 [M], indices into the whole vocabulary.
        vocab_size: entries that exist; rows of padding behind them get probability 0.
        chunk: positions whose logits are held at a time.
        group: the tensor-parallel group; None for one rank.
    """
    return _ChunkedLogprobs.apply(hidden, weight, targets, vocab_size, temperature, chunk, group)


def _all_reduce(values: Tensor, op: dist.ReduceOp, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None and dist.get_world_size(group) > 1:
        dist.all_reduce(values, op=op, group=group)
    return values


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, vocab_size, temperature, chunk, group):
        rank = dist.get_rank(group) if group is not None else 0
        first = rank * weight.shape[0]
        existing = max(0, min(weight.shape[0], vocab_size - first))
        logprobs, entropy, normalizers = [], [], []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(h, weight, existing, temperature)
            peak = logits.amax(-1) if existing else logits.new_full(logits.shape[:1], -torch.inf)
            _all_reduce(peak, dist.ReduceOp.MAX, group)
            exps = (logits - peak[:, None]).exp_()
            place, own = _place(t, first, existing)
            at_target = logits.gather(1, place)[:, 0].masked_fill(~own, 0.0) if existing else torch.zeros_like(peak)
            sums = torch.stack([exps.sum(-1), torch.linalg.vecdot(exps, logits), at_target])
            total, weighted, target = _all_reduce(sums, dist.ReduceOp.SUM, group)
            normalizer = peak + total.log()
            logprobs.append(target - normalizer)
            entropy.append(normalizer - weighted / total)
            normalizers.append(normalizer)
        empty = hidden.new_zeros(0, dtype=torch.float32)
        logprobs, entropy, normalizer = (torch.cat([empty, *parts]) for parts in (logprobs, entropy, normalizers))
        ctx.save_for_backward(hidden, weight, targets, normalizer, entropy)
        ctx.settings = first, existing, temperature, chunk
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, targets, normalizer, entropy = ctx.saved_tensors
        first, existing, temperature, chunk = ctx.settings
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        pieces = (hidden, targets, normalizer, entropy, grad_logprobs, grad_entropy, grad_hidden)
        for h, t, z, s, g, e, out in zip(*(x.split(chunk) for x in pieces), strict=True):
            log_p = _logits(h, weight, existing, temperature).sub_(z[:, None])
            grad = log_p.exp()
            # d log p(t) = onehot(t) - p;  d entropy = -p (log p + entropy); in place, since each holds a chunk's logits
            grad.mul_(log_p.add_(s[:, None]).mul_(-e[:, None]).sub_(g[:, None]))
            place, own = _place(t, first, existing)
            if existing:
                grad.scatter_add_(1, place, g.masked_fill(~own, 0.0)[:, None])
            if temperature != 1.0:
                grad.div_(temperature)
            kept = weight[:existing]
            grad = grad.to(kept.dtype)
            out.copy_(grad @ kept)
            if kept.dtype == grad_weight.dtype:
                grad_weight[:existing].addmm_(grad.T, h)
            else:  # multiplied in bf16, which a GPU has matrix units for, and summed over the chunks in fp32
                grad_weight[:existing] += grad.T @ h
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def _place(targets: Tensor, first: int, existing: int) -> tuple[Tensor, Tensor]:
    """Columns of the targets in this rank's logits, int64 [m, 1], and which targets are this rank's, bool [m].

    Others get some column that exists: with a mask in place of an index nothing waits for the device.
    """
    own = (targets >= first) & (targets < first + existing)
    return (targets - first).clamp(0, max(existing - 1, 0))[:, None], own


def _logits(hidden: Tensor, weight: Tensor, existing: int, temperature: float) -> Tensor:
    """fp32 [m, existing]."""
    logits = (hidden @ weight[:existing].T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)
