"""Forward passes and generation of transformers' models: what=generate, logprob, scoring.

Shapes: B rows, S positions, V vocabulary entries.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.functional.flops import causal_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(model_class: type, folder: str, task: dict) -> torch.nn.Module:
    """A model in evaluation mode, in the task's dtype, with SDPA attention."""
    dtype = getattr(torch, task["dtype"])
    return model_class.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(DEVICE).eval()


def padded(rows: list[list[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, S] each."""
    longest = max(map(len, rows))
    tokens = [[pad_id] * (longest - len(r)) + r if left else r + [pad_id] * (longest - len(r)) for r in rows]
    mask = [[0] * (longest - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (longest - len(r)) for r in rows]
    return torch.tensor(tokens, device=DEVICE), torch.tensor(mask, device=DEVICE)


class _Rows:
    """This process's share of the rows, and a turn of them."""

    def __init__(self, task: dict):
        self.task = task
        rows = json.loads((Path(task["folder"]) / "rows.json").read_text())
        self.rows = rows[int(os.environ.get("RANK", "0")) :: int(os.environ.get("WORLD_SIZE", "1"))]

    def lengths(self) -> list[int]:
        """By which rows are brought together."""
        return [len(row["tokens"]) for row in self.rows]

    def batches(self, variant: dict, size: int) -> Iterator[list[dict]]:
        """All rows in batches, in order of length or as they come."""
        order = list(range(len(self.rows)))
        if variant["sorted"]:
            lengths = self.lengths()
            order.sort(key=lengths.__getitem__)
        for start in range(0, len(order), size):
            yield [self.rows[i] for i in order[start : start + size]]

    def rounds(self, variant: dict, turn) -> None:
        """Run over all rows once per turn."""
        torch.manual_seed(self.task["seed"])
        while turn.wait():
            watch = Stopwatch()
            with torch.no_grad():
                tokens, items = self.run(variant)
            pairs = sum(map(causal_pairs, self.lengths()))
            turn.answer(**watch.read(), tokens=tokens, items=items, pairs=pairs, read=self.read())

    def read(self) -> int:
        """Positions at which the model is read: the end of each row."""
        return len(self.rows)

    def run(self, variant: dict) -> tuple[int, int]:
        """All rows once: real tokens and items."""
        raise NotImplementedError


class Generation(_Rows):
    """`generate` with its KV cache; rows {"tokens"}: prompts."""

    def __init__(self, task: dict):
        super().__init__(task)
        self.model = load(AutoModelForCausalLM, task["policy"], task)

    def check(self, prompts: list[list[int]], answers: list[list[int]]) -> dict:
        """See `answer_logprobs`."""
        rows = [{"tokens": p + a, "prompt": len(p)} for p, a in zip(prompts, answers, strict=True)]
        return {"logprobs": answer_logprobs(self.model, self.task, rows, keep=False)}

    def run(self, variant: dict) -> tuple[int, int]:
        task, tokens, items = self.task, 0, 0
        samples = task["generation"]["samples"]
        settings = {k: v for k, v in task["generation"].items() if k != "samples"}
        for batch in self.batches(variant, max(1, variant["batch_size"] // samples)):
            ids, mask = padded([row["tokens"] for row in batch], task["pad_id"], left=True)
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=samples,
                pad_token_id=task["pad_id"], eos_token_id=task["eos_id"], **settings,
            )[:, ids.shape[1] :]  # fmt: skip
            ends = (made == task["eos_id"]).cumsum(1)
            tokens += int((ends - (made == task["eos_id"]).long() == 0).sum())
            items += len(made)
        return tokens, items


class LogProbabilities(_Rows):
    """A forward pass and a gather; rows {"tokens", "prompt": tokens before the answer}."""

    def __init__(self, task: dict):
        super().__init__(task)
        self.model = load(AutoModelForCausalLM, task["policy"], task)

    def check(self, rows: list[int]) -> dict:
        """Log-probabilities of the answers of these rows (one process has them all)."""
        return {"logprobs": answer_logprobs(self.model, self.task, [self.rows[i] for i in rows], keep=True)}

    def read(self) -> int:
        return sum(len(row["tokens"]) - row["prompt"] for row in self.rows)

    def run(self, variant: dict) -> tuple[int, int]:
        for batch in self.batches(variant, variant["batch_size"]):
            answer_logprobs(self.model, self.task, batch, keep=variant["sorted"])
        return sum(self.lengths()), len(self.rows)


@torch.no_grad()
def answer_logprobs(model: torch.nn.Module, task: dict, rows: list[dict], keep: bool) -> list[list[float]]:
    """log p of the tokens of each answer, fp32.

    Args:
        keep: logits from the first answer's beginning on (`logits_to_keep`), or of all positions.
    """
    ids, mask = padded([row["tokens"] for row in rows], task["pad_id"], left=False)
    first = min(row["prompt"] for row in rows) - 1 if keep else 0
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=ids.shape[1] - first).logits[:, :-1]
    logprobs = logits.float().div_(task["generation"]["temperature"]).log_softmax(-1)
    logprobs = logprobs.gather(-1, ids[:, first + 1 :, None])[..., 0].cpu()
    return [
        values[row["prompt"] - 1 - first : len(row["tokens"]) - 1 - first].tolist()
        for values, row in zip(logprobs, rows, strict=True)
    ]


def rated_ids(tokenizer, prompts: list[str], answers: list[str]) -> list[list[int]]:
    """Token ids of prompts (in their template), answers and the closing EOS."""
    before = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    after = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [p + a + [tokenizer.eos_token_id] for p, a in zip(before, after, strict=True)]


class Scoring(_Rows):
    """A sequence classifier per dimension; rows {"prompt", "answer": texts, "tokens": their number of tokens}."""

    def __init__(self, task: dict):
        super().__init__(task)
        self.models = [load(AutoModelForSequenceClassification, folder, task) for folder in task["rewards"]]
        self.tokenizer = AutoTokenizer.from_pretrained(task["rewards"][0])

    def lengths(self) -> list[int]:
        return [row["tokens"] for row in self.rows]

    def check(self, rows: list[int]) -> dict:
        """Probabilities of all classes, the models' one after the other, per row."""
        with torch.no_grad():
            return {"probabilities": self._score([self.rows[i] for i in rows]).tolist()}

    def _score(self, rows: list[dict]) -> Tensor:
        rows = rated_ids(self.tokenizer, [row["prompt"] for row in rows], [row["answer"] for row in rows])
        ids, mask = padded(rows, self.tokenizer.pad_token_id, left=False)
        logits = [model(input_ids=ids, attention_mask=mask).logits for model in self.models]
        return torch.cat([scores.float().softmax(-1).cpu() for scores in logits], -1)

    def run(self, variant: dict) -> tuple[int, int]:
        for batch in self.batches(variant, variant["batch_size"]):
            self._score(batch)
        return sum(self.lengths()), len(self.rows)
