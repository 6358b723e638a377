"""Answers of a language model: batched sampling with megatron-core's KV cache, over tensor and pipeline parallel ranks.

A batch holds prompts of similar lengths, padded on the right. Each prompt is read once, its cache is then repeated for
the answers sampled from it, and rows whose answer has ended leave the batch, so that the cost follows real lengths.

Shapes: B rows of the running batch, V vocabulary entries.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
from megatron.core.inference.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
from torch import Tensor

from nemo_moslim.batches import position_ids
from nemo_moslim.config import GenerationConfig
from nemo_moslim.models.layer_spec import SDPACoreAttention
from nemo_moslim.models.local_layers import PromptCache
from nemo_moslim.models.read_positions import core_model, read_at
from nemo_moslim.rollout.sampling import sample_tokens, uniform_draws

COMPACT_BELOW = 0.75  # finished rows are dropped from the cache once no more than this share of it is still running

Seed = tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """Sampled answers, in the order of the seeds."""

    tokens: list[np.ndarray]  # int32: the answer, the token that ended it included where there is one
    logprobs: list[np.ndarray]  # fp32: per token, see `sample_tokens`
    finished: np.ndarray  # bool: such a token ended the answer; False: the length limit cut it


class Generator(Protocol):
    """What the rollout needs; a faster engine can stand behind it."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Seed], samples: int) -> Generation:
        """`samples` answers per prompt, adjacent; seeds has len(prompts) * samples entries."""


class MegatronGenerator:
    """Samples from a megatron-core model on the ranks that hold it; data-parallel ranks each pass their own prompts."""

    def __init__(
        self,
        module: torch.nn.Module,
        config: GenerationConfig,
        eos_ids: Sequence[int],
        vocab_size: int,
        max_length: int,
    ):
        self.module, self.config, self.vocab_size, self.max_length = module, config, vocab_size, max_length
        self.eos_ids = torch.tensor(sorted(set(eos_ids)))

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Seed], samples: int = 1) -> Generation:
        """Sample `samples` answers to each prompt.

        Raises:
            ValueError: a prompt leaves no room for an answer.
            FloatingPointError: logits that are not finite; the prompt's place and the token are named.
        """
        longest = max(map(len, prompts), default=0)
        if longest >= self.max_length:
            raise ValueError(
                f"a prompt has {longest} tokens, the model's length is {self.max_length}: no room for an answer; "
                "prepare shorter prompts (long_prompts=drop|cut_left)"
            )
        rows = len(prompts) * samples
        result = Generation([None] * rows, [None] * rows, np.zeros(rows, dtype=bool))
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        per_batch = max(1, self.config.batch_size // samples)
        batches = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
        _check_expert_ranks(len(batches))
        with _inference_mode(self.module), torch.no_grad():
            for batch in batches:
                self._sample_batch([prompts[i] for i in batch], batch, seeds, samples, result)
        return result

    def _sample_batch(self, prompts, indices, seeds: Sequence[Seed], samples: int, result: Generation) -> None:
        rows = [int(i) * samples + sample for i in indices for sample in range(samples)]
        longest = max(map(len, prompts))
        limit = -_expert_ranks_maximum(-min(self.config.max_new_tokens, self.max_length - longest))
        runner = _Runner(self.module, len(prompts), longest + limit)
        logits = runner.read(*_right_padded(prompts, longest))
        runner.select(torch.arange(len(prompts)).repeat_interleave(samples))
        logits = None if logits is None else logits.repeat_interleave(samples, 0)
        draws = uniform_draws([seeds[row] for row in rows], limit)
        sampled = torch.zeros(len(rows), limit, dtype=torch.int64)
        logprobs = torch.zeros(len(rows), limit)
        lengths = torch.full((len(rows),), limit)
        cached = torch.arange(len(rows))  # which row each line of the cache belongs to
        running = torch.ones(len(rows), dtype=torch.bool)  # per line of the cache
        for place in range(limit):
            new, new_logprobs = self._draw(logits, draws[cached, place])
            alive = cached[running]
            if not new_logprobs[running].isfinite().all():  # on the host, where the tokens come anyway
                bad = int(alive[~new_logprobs[running].isfinite()][0])
                raise FloatingPointError(
                    f"the logits of token {place + 1} of an answer to prompt {rows[bad] // samples + 1} of this rank "
                    "are not finite: weights are left as they were and the last checkpoint stays; lower optimizer.lr "
                    "or look at the policy"
                )
            sampled[alive, place], logprobs[alive, place] = new[running], new_logprobs[running]
            ended = running & torch.isin(new, self.eos_ids)
            lengths[cached[ended]] = place + 1
            running &= ~ended
            if place + 1 == limit or not _expert_ranks_maximum(int(running.any())):
                break
            if running.sum() <= COMPACT_BELOW * len(cached) and running.any():
                keep = running.nonzero()[:, 0]
                runner.select(keep)
                cached, running, new = cached[keep], running[keep], new[keep]
            logits = runner.step(new)
        for line, row in enumerate(rows):
            length = int(lengths[line])
            result.tokens[row] = sampled[line, :length].numpy().astype(np.int32)
            result.logprobs[row] = logprobs[line, :length].numpy()
            result.finished[row] = bool(torch.isin(sampled[line, length - 1], self.eos_ids))

    def _draw(self, logits: Tensor | None, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities on every pipeline stage, on the host."""
        picked = torch.zeros(2, len(draws), dtype=torch.float64, device="cuda")
        if logits is not None:
            config = self.config
            tokens, logprobs = sample_tokens(
                logits[:, : self.vocab_size], draws, config.temperature, config.top_p, config.top_k
            )
            picked = torch.stack([tokens.double(), logprobs.double()])
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            source = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(picked, source, group=parallel_state.get_pipeline_model_parallel_group())
        return picked[0].long().cpu(), picked[1].float().cpu()


class _Runner:
    """Forward steps of one batch on its KV cache, through megatron-core's inference wrapper."""

    def __init__(self, module: torch.nn.Module, batch: int, length: int):
        config = module.config
        settings = InferenceWrapperConfig(
            hidden_size=config.hidden_size,
            params_dtype=config.params_dtype,
            inference_batch_times_seqlen_threshold=-1,
            padded_vocab_size=config.vocab_size,
            inference_max_requests=batch,
            inference_max_seq_length=length,
            fp32_residual_connection=config.fp32_residual_connection,
        )
        self.context = PromptCache(batch, length)
        self.context.materialize_only_last_token_logits = False  # `read` has one state of each prompt left
        self._last_layer = core_model(module).decoder.layers[-1] if core_model(module).post_process else None
        wrapper = GPTInferenceWrapper(module, settings, self.context)
        wrapper.prep_model_for_inference()
        # not `run_one_forward_step`: it makes inference tensors, and megatron-core would keep some for training
        self._forward = (
            wrapper.forward_pass_with_pipeline_parallel_small_input_batch
            if parallel_state.get_pipeline_model_parallel_world_size() > 1
            else wrapper.forward_pass_without_pipeline_parallel
        )

    def read(self, tokens: Tensor, lengths: Tensor) -> Tensor | None:
        """Fill the cache with prompts; logits [B, V] after the last token of each, on the last pipeline stage.

        Attention is plainly causal: what lies behind a prompt's end cannot reach it.

        Args:
            tokens: int64 [B, S], padded on the right, S the longest prompt's length.
            lengths: int64 [B], of the prompts.
        """
        reads = contextlib.nullcontext()
        if self._last_layer is not None:
            reads = read_at(self._last_layer, torch.arange(len(lengths)).cuda(), (lengths - 1).cuda())
        with reads:
            logits = self._run(tokens, None)
        self._prompt_end = tokens.shape[1]
        self._keep_gaps(self._prompt_end - lengths)
        return None if logits is None else logits[0]

    def step(self, tokens: Tensor) -> Tensor | None:
        """Append a token to each row, int64 [B]; logits [B, V] after it, on the last pipeline stage."""
        end = self.context.sequence_len_offset + 1
        logits = self._run(tokens[:, None], None if self._forbidden is None else self._forbidden[..., :end])
        return None if logits is None else logits[:, 0]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows of the cache."""
        memory = self.context.key_value_memory_dict
        for layer, pair in memory.items():
            memory[layer] = tuple(self._selected(cache, rows.to(cache.device)) for cache in pair)
        self.context.max_batch_size = len(rows)
        self._keep_gaps(self._gaps[rows])

    def _run(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        tokens = tokens.cuda()
        return self._forward({"tokens": tokens, "position_ids": position_ids(tokens), "attention_mask": mask})

    def _keep_gaps(self, gaps: Tensor) -> None:
        """`gaps` int64 [B]: places behind each prompt, up to the longest prompt's end, which nothing may attend to."""
        self._gaps, self._forbidden, self.context.gaps = gaps, None, None
        if gaps.any():
            places = torch.arange(self.context.max_sequence_length)
            forbidden = (places >= self._prompt_end - gaps[:, None]) & (places < self._prompt_end)
            self._forbidden = forbidden[:, None, None].cuda()  # [B, 1, 1, length], True: forbidden
            self.context.gaps = gaps.cuda()

    def _selected(self, cache: Tensor, rows: Tensor) -> Tensor:
        """These rows of a cache [S, B, G, D] in the layout of `EarlyRotation`; only what has been written is copied."""
        filled, by_row = self.context.sequence_len_offset, cache.permute(1, 2, 0, 3)
        chosen = by_row.new_empty(len(rows), *by_row.shape[1:])
        chosen[:, :, :filled] = by_row[:, :, :filled].index_select(0, rows)
        return chosen.permute(2, 0, 1, 3)


def _right_padded(prompts: Sequence[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, longest] and the prompts' lengths, int64 [B]."""
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
    return tokens, torch.tensor([len(prompt) for prompt in prompts])


@contextlib.contextmanager
def _inference_mode(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no sequence parallelism (a step of one token cannot be split), and core attention by SDPA,
    whose masks the steps above are made for; everything is put back afterwards.

    Of SDPA's kernels not cuDNN's, which torch prefers on an H100: it plans anew for every length of the cache, that is
    for every token.
    """
    training, changed, cudnn = module.training, [], torch.backends.cuda.cudnn_sdp_enabled()
    for owner in [module.config, *module.modules()]:
        for name in ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings"):
            if module.config.sequence_parallel and getattr(owner, name, False) is True:
                changed.append((owner, name, True))
    for owner in list(module.modules()):
        core = getattr(owner, "core_attention", None)
        if core is not None and not isinstance(core, SDPACoreAttention):
            changed.append((owner, "core_attention", core))
    try:
        torch.backends.cuda.enable_cudnn_sdp(False)
        for owner, name, _ in changed:
            replacement = _sdpa_in_place_of(owner) if name == "core_attention" else False
            setattr(owner, name, replacement)
        module.eval()
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
        module.train(training)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def _sdpa_in_place_of(attention: torch.nn.Module) -> SDPACoreAttention:
    return SDPACoreAttention(
        attention.config, attention.layer_number, attention.attn_mask_type, attention.attention_type
    )


def _expert_ranks_maximum(value: int) -> int:
    """Experts on other ranks are reached by all of them together: while one has rows to run, all step on."""
    if parallel_state.get_expert_model_parallel_world_size() == 1:
        return value
    shared = torch.tensor([value], device="cuda")
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=parallel_state.get_expert_model_parallel_group())
    return int(shared.item())


def _check_expert_ranks(batches: int) -> None:
    """ValueError if expert-parallel ranks would run different numbers of batches."""
    if _expert_ranks_maximum(batches) != -_expert_ranks_maximum(-batches):
        raise ValueError("with parallel.expert > 1 every rank needs as many prompts as the others")
