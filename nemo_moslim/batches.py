"""The batches that cross files, one class each, with the meaning of every field.

Shapes: B rows, S sequence positions, T answer positions, R answers of a step, N heads (preference dimensions),
C classes (sum of all heads' levels).
Rows are padded on the right; padding follows the last valid token, so causal attention never reads it.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Common to all batches: moving every tensor to the device of the rank."""

    def to_device(self):
        """The same batch on the accelerator (the CPU stays the CPU under parallel/cpu.py)."""
        moved = {f.name: _on_device(getattr(self, f.name)) for f in fields(self)}
        return type(self)(**moved)

    def __len__(self) -> int:
        return getattr(self, fields(self)[0].name).shape[0]


@dataclass(frozen=True)
class Packing(Batch):
    """Where the sequences of a packed row start and end; padding at its end is a sequence of its own.

    Padding up to a multiple of twice the context-parallel ranks is part of its sequence. A rank's share of the row
    keeps the numbers of the whole one, as megatron-core and Transformer Engine want them.
    """

    cu_seqlens: Tensor  # int32 [n + 1]: 0, the end of each sequence, the last one being the row's length
    longest: int  # tokens of the longest sequence


@dataclass(frozen=True)
class SharedPrompts(Packing):
    """A packed row whose sequences are a prompt and all its answers: they follow the prompt and do not see each other.

    `longest` is that of a prompt with one answer.
    """

    positions: Tensor  # int64 [S]: of each token in prompt and answer, as if the answer were the only one
    pieces: Tensor  # int64 [S]: 0 in a prompt (and in the padding), the answer's number from 1 on in an answer
    places: Tensor  # int64 [B, L]: of the tokens of each prompt with its answer; -1 behind their end
    blocks: tuple[Tensor, ...]  # int64 [b, l] each: `places` as attention runs them; none: prompt by prompt
    back: Tensor | None  # int64 [S]: of each token in the blocks laid side by side; None without blocks


def _on_device(value):
    if isinstance(value, Tensor):
        if value.is_cpu and torch.cuda.is_available():
            value = value.pin_memory()  # from other memory the copy would hold the host up
        return value.cuda(non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_on_device(part) for part in value)
    return value.to_device() if isinstance(value, Batch) else value


@dataclass(frozen=True)
class RewardBatch(Batch):
    """Rated answers for the reward model; with `packing` all B of them lie one after the other in one row, [1, S]."""

    tokens: Tensor  # int64 [B, S]: chat template with prompt and response, the answer's EOS, then padding
    last_index: Tensor  # int64 [B]: position of the token that ends the answer; the heads read it
    targets: Tensor  # fp32 [B, C]: per labelled head a distribution over its levels, 0 elsewhere
    label_mask: Tensor  # bool [B, N]: heads that this row labels; a row of False fills up a batch and counts nowhere
    packing: Packing | None = None

    @property
    def rows(self) -> Tensor:
        """int64 [B]: the row of `tokens` that each answer lies in."""
        places = torch.arange(len(self.last_index), device=self.last_index.device)
        return torch.zeros_like(places) if self.packing else places

    def context_share(self, rank: int, ranks: int) -> "RewardBatch":
        """What a context-parallel rank runs; an answer counts on the rank that has its end."""
        places = _context_places(self, rank, ranks)
        index_of = torch.full(self.tokens.shape[1:], -1).scatter_(0, places, torch.arange(len(places)))
        last_index = index_of[self.last_index]
        return replace(
            self,
            tokens=self.tokens[:, places],
            last_index=last_index.clamp(min=0),
            label_mask=self.label_mask & (last_index >= 0)[:, None],
        )


@dataclass(frozen=True)
class TokenBatch(Batch):
    """Text for the language model (supervised fine-tuning); with `packing` several sequences in one row, [1, S]."""

    tokens: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B, S]: the next token at each position
    loss_mask: Tensor  # fp32 [B, S]: 1 where the label counts (the answers, or all text), 0 on prompts and padding
    packing: Packing | None = None
    counted_rows: Tensor | None = None  # int64 [M]: of each position that counts, row by row
    counted_places: Tensor | None = None  # int64 [M]: its place in the row

    def to_device(self):
        """The same batch on the accelerator, with `counted_rows` and `counted_places`, looked up on the host."""
        rows, places = self.loss_mask.nonzero(as_tuple=True)
        return Batch.to_device(replace(self, counted_rows=rows, counted_places=places))

    def context_share(self, rank: int, ranks: int) -> "TokenBatch":
        """What a context-parallel rank runs."""
        places = _context_places(self, rank, ranks)
        return TokenBatch(*(x[:, places] for x in (self.tokens, self.labels, self.loss_mask)), self.packing)


@dataclass(frozen=True)
class SharedPromptTokens(Batch):
    """B rows of prompt and answer in one row of S tokens, each prompt once."""

    tokens: Tensor  # int64 [1, S]
    packing: SharedPrompts
    before: Tensor  # int64 [B, T]: the place in `tokens` that predicts each token of an answer; any behind its end
    ends: Tensor  # int64 [B]: the place of each answer's last token


@dataclass(frozen=True)
class AnswerBatch(Batch):
    """Rows of prompt and answer with a `response_mask`, whose True positions are looked up before it leaves the host:
    on the device that would wait for everything before it."""

    def to_device(self):
        """The same batch on the accelerator, with `answer_rows` and `answer_places`."""
        rows, places = self.response_mask.nonzero(as_tuple=True)
        return Batch.to_device(replace(self, answer_rows=rows, answer_places=places))


@dataclass(frozen=True)
class PairBatch(AnswerBatch):
    """Pairs of answers to the same prompt as neighbouring rows, the better one first: B = 2 x P pairs."""

    tokens: Tensor  # int64 [B, S]: chat template with the prompt (tagged or not), the answer with its EOS, then padding
    prompt_lengths: Tensor  # int64 [B]: tokens before the answer
    response_mask: Tensor  # bool [B, T]: answer positions; a row of False fills up a batch
    ref_logprobs: Tensor  # fp32 [B]: of the whole answer under the reference policy
    margins: Tensor  # fp32 [P]: what the other objectives add (MODPO); 0 elsewhere
    valid: Tensor  # bool [P]: False for a pair that fills up a batch and counts nowhere
    answer_rows: Tensor | None = None  # int64 [M]: of each True of `response_mask`, row by row; see `AnswerBatch`
    answer_places: Tensor | None = None  # int64 [M]: its position in the answer
    together: SharedPromptTokens | None = None  # the same rows with each prompt once, where they can be read so


@dataclass(frozen=True)
class PolicyBatch(AnswerBatch):
    """Answers of the policy as a micro-batch of its update, and of the critic's; filled in from left to right."""

    tokens: Tensor  # int64 [B, S]: chat template with the tagged prompt, the answer with its EOS, then padding
    prompt_lengths: Tensor  # int64 [B]: tokens before the answer
    response_mask: Tensor  # bool [B, T]: answer positions; a row of False fills up a batch and counts nowhere
    rows: Tensor  # int64 [B]: index of each answer in its rollout, -1 for a filler
    old_logprobs: Tensor  # fp32 [B, T]: under the policy before the step's first update
    ref_logprobs: Tensor  # fp32 [B, T]: under the reference policy; of answers that do not count too
    old_values: Tensor  # fp32 [B, T]: of the critic before the step's first update; 0 where there is none
    advantages: Tensor  # fp32 [B, T]
    returns: Tensor  # fp32 [B, T]: what a critic with a value head learns
    asked: Tensor | None = None  # int64 [B, N]: see `SampledAnswers`; for a critic that predicts levels
    probabilities: Tensor | None = None  # fp32 [B, C]: see `Rollout`; what that critic learns, once there are scores
    answer_rows: Tensor | None = None  # int64 [M]: of each True of `response_mask`, row by row; see `AnswerBatch`
    answer_places: Tensor | None = None  # int64 [M]: its position in the answer
    together: SharedPromptTokens | None = None  # the same rows with each prompt once, where they can be read so


@dataclass(frozen=True)
class SampledAnswers:
    """The answers of one step, the same on every rank, R = prompts x samples, grouped by prompt."""

    prompts: list  # [R] text or messages, without preference tags
    preferences: list[dict[str, int]]  # [R] asked levels
    prompt_tokens: list[np.ndarray]  # [R] int32: the tagged prompt inside the chat template
    plain_prompt_tokens: list[np.ndarray]  # [R] int32: the same without tags
    answers: list[np.ndarray]  # [R] int32: sampled tokens, with EOS where the answer ended by itself
    texts: list[str]  # [R] the answers as text
    finished: np.ndarray  # bool [R]: False where the length limit cut the answer
    generator_logprobs: list[np.ndarray]  # [R] fp32 per sampled token, as the generator saw them
    groups: Tensor  # int64 [R]: answers to the same prompt with the same tags
    asked: Tensor  # int64 [R, N]: the level that the prompt asks for, 0 where it names none

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Rollout(SampledAnswers):
    """The answers of one step and their rewards, on the host of every rank."""

    rewards: Tensor  # fp32 [R]: Eq. 11
    parts: Tensor  # fp32 [R, N]: what each dimension adds to the reward
    obtained: Tensor  # int64 [R, N]: the level that the reward model finds most likely
    probabilities: Tensor  # fp32 [R, C]: of every level by the reward model
    cut_for_scoring: int  # answers that the reward model could not read whole


def position_ids(tokens: Tensor) -> Tensor:
    """Positions 0..S-1 for every row, int64 [B, S]."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


def context_positions(cu_seqlens: Tensor, tokens: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Of each token that a context-parallel rank has of a packed row: where its sequence starts, its position in it.

    Every sequence is cut into 2 * ranks pieces; a rank has piece `rank` and its counterpart from the end, so that
    causal attention is as much work on every rank (megatron-core's rotary embeddings and Transformer Engine expect it).

    Args:
        cu_seqlens: [n + 1], see `Packing`; multiples of 2 * ranks where there are several.
        tokens: T, of this rank; given so that the host need not wait for the device to say it.

    Returns:
        Two int64 tensors [T]; their sum is the place in the row.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff()
    start, length = (x.repeat_interleave(lengths // ranks, output_size=tokens) for x in (starts, lengths))
    index, half = torch.arange(tokens, device=cu_seqlens.device) - start // ranks, length // (2 * ranks)
    return start, index + half * torch.where(index < half, rank, 2 * (ranks - 1) - rank)


def _context_places(batch: RewardBatch | TokenBatch, rank: int, ranks: int) -> Tensor:
    """Where in every row a context-parallel rank's tokens lie, int64 [S / ranks]."""
    length = batch.tokens.shape[1]
    cu_seqlens = batch.packing.cu_seqlens if batch.packing else torch.tensor([0, length])
    start, position = context_positions(cu_seqlens, length // ranks, rank, ranks)
    return start + position
