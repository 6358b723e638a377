"""The language model: SFT trains it, and it is the policy that reinforcement learning starts from.

Shapes: B rows, S sequence positions, T answer positions, M positions that count, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, TokenBatch, position_ids
from nemo_moslim.models.backbone import BackboneConfig, for_every_family
from nemo_moslim.models.packed_sequences import packed_sequences
from nemo_moslim.models.read_positions import before_answers, core_model, reading
from nemo_moslim.models.summed_loss import SummedLossModel, next_batch
from nemo_moslim.parallel.vocab_parallel import vocab_parallel_logprobs


def language_model_step(model: torch.nn.Module, batch: TokenBatch) -> Tensor:
    """NeMo's forward step: cross-entropy of the counted tokens, fp32 [M], on the last pipeline stage.

    M is the number of positions whose next token counts; no others have logits, where the model can be read early.
    """
    rows, places = batch.counted_rows, batch.counted_places
    with reading(model, rows, places) as early:
        labels = batch.labels[rows, places][None] if early else batch.labels
        packed = packed_sequences(batch.packing)
        output = model(batch.tokens, position_ids(batch.tokens), attention_mask=None, labels=labels, **packed)
    if not core_model(model).post_process:
        return output
    return output[0] if early else output[rows, places]


@for_every_family
@dataclass(init=False)
class PolicyConfig(BackboneConfig):
    """A causal language model.

    `asked` is `PreferenceSchema.to_dict()` where it was trained to follow preferences; `stop_ids` are the tokens at
    which the Hugging Face folder that it began as ends answers, beside the tokenizer's EOS.
    """

    asked: dict | None = None
    stop_ids: list[int] | None = None
    data_step_fn: Callable = next_batch
    forward_step_fn: Callable = language_model_step


class PolicyModel(SummedLossModel):
    """A causal language model with cross-entropy over the counted tokens."""

    sums_size = 2

    def loss_terms(self, batch: TokenBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the counted tokens; `output` fp32 [M] is the loss of each."""
        loss_sum, count = output.float().sum(), batch.loss_mask.sum()
        return loss_sum, count, torch.stack([loss_sum, count])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Mean loss per counted token (nats) and the number of counted tokens."""
        loss_sum, count = sums.tolist()
        return {"loss": loss_sum / max(count, 1.0), "counted_tokens": count}


def hidden_states_step(model: torch.nn.Module, batch: PolicyBatch) -> Tensor:
    """Forward step of reinforcement learning: final hidden states [M, H] on the last pipeline stage.

    M is the number of the answers' tokens (`response_mask`, row by row), and the states are those of the positions that
    predict them. The vocabulary layer is left to `answer_logprobs`.
    """
    core = core_model(model)
    tokens, packed, rows, before = before_answers(batch)
    has_output = core.post_process
    with reading(model, rows, before) as early:
        core.post_process = False  # megatron-core's model then returns what it would feed to its vocabulary layer
        try:
            hidden = model(tokens, position_ids(tokens), attention_mask=None, **packed)
        finally:
            core.post_process = has_output
    if not has_output:
        return hidden
    if early:
        return hidden[:, 0]
    if core.config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
    return hidden[before, rows]


def answer_logprobs(
    model: torch.nn.Module, hidden: Tensor, batch: PolicyBatch, vocab_size: int, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """log p of the answers' tokens and entropy of the distributions they were drawn from, on the last pipeline stage.

    Args:
        hidden: [M, H], from `hidden_states_step`.

    Returns:
        Two fp32 tensors [B, T] with gradients; 0 outside the answers.
    """
    core = core_model(model)
    if not core.config.sequence_parallel:
        hidden = copy_to_tensor_model_parallel_region(hidden)
    rows, places = batch.answer_rows, batch.answer_places
    shared = core.share_embeddings_and_output_weights
    weight = core.shared_embedding_or_output_weight() if shared else core.output_layer.weight
    logprobs, entropy = vocab_parallel_logprobs(
        hidden,
        weight,
        batch.tokens[rows, batch.prompt_lengths[rows] + places],
        vocab_size=vocab_size,
        temperature=temperature,
        chunk=chunk,
        group=parallel_state.get_tensor_model_parallel_group(),
    )
    empty = hidden.new_zeros(batch.response_mask.shape, dtype=torch.float32)
    return empty.index_put((rows, places), logprobs), empty.index_put((rows, places), entropy)
