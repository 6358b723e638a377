"""Core attention over a row that is split along the sequence: what Transformer Engine's does on GPUs, in a few lines.

Every rank gathers the keys and values of all positions and attends from its own, with the causal mask of the true
positions in each sequence. For tests alone: it shows that batches, losses and gradients of context parallelism are
right.

Shapes: S positions of this rank, B rows, N heads, G query groups, D head size.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.nn import functional

from nemo_moslim.batches import context_positions
from nemo_moslim.models.layer_spec import SDPACoreAttention


class _Gathered(torch.autograd.Function):
    """[S, ...] of every rank, in order of rank; the gradient is summed over the ranks that read it."""

    @staticmethod
    def forward(ctx, values, group):
        ctx.group = group
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, values.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


class GatheringAttention(SDPACoreAttention):
    """Causal attention, without dropout."""

    def forward(self, query, key, value, attention_mask, attn_mask_type=None, attention_bias=None,
                packed_seq_params=None):  # fmt: skip
        """Attention of `query` [S, B, N, D] over all positions of `key` and `value` [S, B, G, D]; [S, B, N * D].

        A packed row comes as [S, N, D] and [S, G, D].
        """
        group = parallel_state.get_context_parallel_group()
        rank, ranks, tokens = dist.get_rank(group), dist.get_world_size(group), query.size(0)
        cu_seqlens = packed_seq_params.cu_seqlens_q if packed_seq_params else torch.tensor([0, tokens * ranks])
        if packed_seq_params:
            query, key, value = (tensor[:, None] for tensor in (query, key, value))
        found = [context_positions(cu_seqlens, tokens, other, ranks) for other in range(ranks)]
        starts, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        start, position = (part[:, None] for part in found[rank])
        allowed = (start == starts) & (position >= positions)
        key, value = _Gathered.apply(key, group), _Gathered.apply(value, group)
        context = functional.scaled_dot_product_attention(
            *(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)), attn_mask=allowed,
            scale=self.softmax_scale, enable_gqa=True,
        )  # fmt: skip
        return context.permute(2, 0, 1, 3).reshape(tokens, query.size(1), -1)
