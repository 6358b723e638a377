"""From a rollout to the micro-batches of its updates. The same ones give the trainer's old log-probabilities, so that
the first ratio of new to old is exactly 1.

Shapes: B rows, S sequence positions, T answer positions.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout, SampledAnswers
from nemo_moslim.data.length_batches import pad_length
from nemo_moslim.data.shared_prompts import together


def deal(lengths: np.ndarray, unit: int, mini_size: int, micro_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Rows of each update as micro-batches: drawn at random, then sorted by length inside the update.

    Args:
        lengths: int64 [R], tokens of each row.
        unit: rows that stay together, answers to one prompt; row r belongs to unit r // unit.

    Returns:
        Per update int64 [mini_size / micro_size, micro_size].
    """
    units = np.arange(len(lengths)).reshape(-1, unit)
    longest = lengths[units].max(1)
    order = np.random.default_rng(list(seed)).permutation(len(units)).reshape(-1, mini_size // unit)
    return [units[mine[np.argsort(longest[mine], kind="stable")]].reshape(-1, micro_size) for mine in order]


def policy_batch(
    sampled: SampledAnswers,
    rows: np.ndarray,
    counted: np.ndarray,
    pad_id: int,
    multiple: int,
    tagged: bool = True,
    share: bool = False,
) -> PolicyBatch:
    """Answers as one padded micro-batch; what is computed from them comes later.

    Args:
        rows: int64 [B], indices into the answers.
        counted: bool [R], False for answers that must not be learnt from.
        tagged: False leaves the preference tags out of the prompts.
        share: neighbours that answer the same prompt are also put together, with their prompt once.
    """
    prompts = [(sampled.prompt_tokens if tagged else sampled.plain_prompt_tokens)[row] for row in rows]
    answers = [sampled.answers[row] for row in rows]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = np.full((len(rows), pad_length(longest, multiple)), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), max(map(len, answers))), dtype=bool)
    for place, (row, prompt, answer) in enumerate(zip(rows, prompts, answers, strict=True)):
        tokens[place, : len(prompt) + len(answer)] = np.concatenate([prompt, answer])
        mask[place, : len(answer)] = counted[row]
    empty = torch.zeros(mask.shape)
    groups = sampled.groups[rows]
    share = share and bool((groups[1:] == groups[:-1]).any())
    return PolicyBatch(
        tokens=torch.from_numpy(tokens),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        response_mask=torch.from_numpy(mask),
        rows=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        old_logprobs=empty,
        ref_logprobs=empty,
        old_values=empty,
        advantages=empty,
        returns=empty,
        asked=sampled.asked[rows],
        together=together(prompts, answers, pad_id, multiple) if share else None,
    )


def with_field(batches: Sequence[PolicyBatch], **columns: list[Tensor]) -> list[PolicyBatch]:
    """The batches with some of their tensors replaced."""
    return [
        replace(batch, **{name: values[index] for name, values in columns.items()})
        for index, batch in enumerate(batches)
    ]


def with_probabilities(batches: Sequence[PolicyBatch], rollout: Rollout) -> list[PolicyBatch]:
    """The batches with what the reward model says of their answers."""
    return with_field(batches, probabilities=[rollout.probabilities[batch.rows] for batch in batches])


def answer_mask(batch: PolicyBatch, sampled: SampledAnswers) -> Tensor:
    """Positions of each row's answer, whether it counts or not: bool [B, T]."""
    lengths = torch.tensor([len(sampled.answers[row]) for row in batch.rows.tolist()])
    return torch.arange(batch.response_mask.shape[1]) < lengths[:, None]


def generator_logprobs(batch: PolicyBatch, sampled: SampledAnswers) -> Tensor:
    """Log-probabilities of each row's answer as it was sampled: fp32 [B, T], 0 behind it."""
    columns = torch.zeros(batch.response_mask.shape)
    for place, row in enumerate(batch.rows.tolist()):
        columns[place, : len(sampled.answers[row])] = torch.from_numpy(sampled.generator_logprobs[row])
    return columns


def whole_answers(batches: Sequence[PolicyBatch], sampled: SampledAnswers) -> list[PolicyBatch]:
    """The batches with a mask that lets every answer count."""
    return with_field(batches, response_mask=[answer_mask(batch, sampled) for batch in batches])


def regrouped(batches: list[PolicyBatch], like: list[list[PolicyBatch]]) -> list[list[PolicyBatch]]:
    """A flat list of micro-batches cut into updates as `like` is."""
    iterator = iter(batches)
    return [[next(iterator) for _ in update] for update in like]
