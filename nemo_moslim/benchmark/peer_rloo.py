"""RLOO steps by TRL, rewarded by the same reward model (Eq. 11) under transformers."""

import json
import os
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from nemo_moslim.benchmark.peer_models import DEVICE, answer_logprobs, load, padded, rated_ids
from nemo_moslim.benchmark.peer_trainer import InTurns
from nemo_moslim.functional.classification import probabilities
from nemo_moslim.functional.reward_mapping import map_rewards


class Rewards:
    """Eq. 11 on answers, by stock Qwen2ForSequenceClassification; a reward function of TRL."""

    __name__ = "mapped_reward"

    def __init__(self, task: dict, batch_size: int):
        self.task, self.batch_size, self.tokens, self.rows = task, batch_size, 0, 0
        self.pairs = 0  # not counted: a step is no pass over whole rows
        self.model = load(AutoModelForSequenceClassification, task["reward"], task)
        self.tokenizer = AutoTokenizer.from_pretrained(task["reward"])
        self.average, self.deviation = (torch.tensor(task["statistics"][name]) for name in ("average", "deviation"))

    def __call__(self, prompts, completions, completion_ids, plain, asked, **others) -> list[float]:
        """One reward per answer; `plain` is the prompt in its template without tags, `asked` its levels."""
        self.tokens += sum(map(len, completion_ids))
        self.rows += len(completions)
        ids = rated_ids(self.tokenizer, plain, completions)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rewards = [0.0] * len(ids)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for row, reward in zip(
                batch, self._mapped([ids[i] for i in batch], [asked[i] for i in batch]), strict=True
            ):
                rewards[row] = reward
        return rewards

    @torch.no_grad()
    def _mapped(self, ids: list[list[int]], asked: list[list[int]]) -> list[float]:
        task, (tokens, mask) = self.task, padded(ids, self.tokenizer.pad_token_id, left=False)
        logits = self.model(input_ids=tokens, attention_mask=mask).logits.float().cpu()
        p = probabilities(logits, task["levels"], task["loss"])
        mapped = map_rewards(p, torch.tensor(asked), self.average, self.deviation, task["levels"], task["normalize"])
        return mapped[0].tolist()


class RLOOSteps:
    """See `peer.Workload`; rows {"prompt": text, "plain": text, "asked": levels, "tokens": of the prompt}."""

    def __init__(self, task: dict):
        self.task = task
        self.rows = json.loads((Path(task["folder"]) / "rows.json").read_text())

    def check(self, rows: list[int], answers: list[list[int]], texts: list[str]) -> dict:
        """Log-probabilities and rewards of answers to these rows, and the prompts' tokens as TRL reads them."""
        task, chosen = self.task, [self.rows[i] for i in rows]
        tokenizer = AutoTokenizer.from_pretrained(task["policy"])
        pairs = [
            {"tokens": row["tokens"] + answer, "prompt": len(row["tokens"])}
            for row, answer in zip(chosen, answers, strict=True)
        ]
        model = load(AutoModelForCausalLM, task["policy"], task)
        rewards = Rewards(task, len(rows))
        return {
            "prompts": tokenizer(text=[row["prompt"] for row in chosen])["input_ids"],
            "logprobs": answer_logprobs(model, task, pairs, keep=False),
            "rewards": rewards(
                None, texts, answers, [row["plain"] for row in chosen], [row["asked"] for row in chosen]
            ),
        }

    def rounds(self, variant: dict, turn) -> None:
        """Train until the last turn."""
        task, training, generation = self.task, self.task["training"], self.task["generation"]
        together = variant["batch_size"] * int(os.environ.get("WORLD_SIZE", "1"))
        rewards = Rewards(task, variant["batch_size"])
        with tempfile.TemporaryDirectory() as folder:
            arguments = RLOOConfig(
                folder,
                max_steps=10**6,
                model_init_kwargs={"dtype": task["dtype"], "attn_implementation": "sdpa", "device_map": None},
                per_device_train_batch_size=variant["batch_size"],
                gradient_accumulation_steps=training["answers"] // together,
                num_generations=generation["samples"],
                max_completion_length=generation["max_new_tokens"],
                temperature=generation["temperature"],
                top_p=generation["top_p"],
                top_k=generation["top_k"],
                beta=training["kl_coef"],
                epsilon=training["clip_ratio"],
                learning_rate=training["lr"],
                lr_scheduler_type="constant",
                max_grad_norm=training["clip_grad"],
                gradient_checkpointing=not variant["sorted"],  # on by default; off is faster where memory allows
                bf16=task["dtype"] == "bfloat16",
                use_cpu=DEVICE == "cpu",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_steps=10**6,
                seed=task["seed"],
            )
            columns = {name: [row[name] for row in self.rows] for name in ("prompt", "plain", "asked")}
            trainer = RLOOTrainer(  # loads the policy, and the reference from the same place, with model_init_kwargs
                model=task["policy"], reward_funcs=rewards, args=arguments, train_dataset=Dataset.from_dict(columns),
                processing_class=AutoTokenizer.from_pretrained(task["policy"], padding_side="left"),
                callbacks=[InTurns(turn, rewards, task["steps"])],
            )  # fmt: skip
            trainer.train()
