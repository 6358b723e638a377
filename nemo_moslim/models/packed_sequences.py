"""Packed batches in megatron-core's terms."""

from dataclasses import dataclass

from megatron.core.packed_seq_params import PackedSeqParams

from nemo_moslim.batches import Packing, SharedPrompts


@dataclass
class SharedPromptParams(PackedSeqParams):
    """Of a row in which answers share their prompts; for attention without Transformer Engine."""

    packing: SharedPrompts | None = None


def packed_sequences(packing: Packing | None) -> dict[str, PackedSeqParams]:
    """Keyword arguments of a model's forward pass: none, or `packed_seq_params` in the layout `thd` (tokens first).

    Attention and rotary embedding then treat each sequence on its own; position ids are not read.
    """
    if packing is None:
        return {}
    ends, longest = packing.cu_seqlens, packing.longest
    usual = dict(qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest)
    if isinstance(packing, SharedPrompts):
        params = SharedPromptParams(**usual, packing=packing)
    else:
        params = PackedSeqParams(**usual)
    return {"packed_seq_params": params}
