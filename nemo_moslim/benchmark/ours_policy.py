"""what=generate, logprob, rl_step: the parts of train_policy.py, timed in turns with transformers' or TRL's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nemo_moslim.batches import Rollout
from nemo_moslim.benchmark.contest import Contest
from nemo_moslim.benchmark.model_folders import reward_settings
from nemo_moslim.benchmark.operators import ProfiledRounds
from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.checks import require
from nemo_moslim.data.prompt_dataset import PromptDataset, prompts_of_step
from nemo_moslim.functional.flops import causal_pairs
from nemo_moslim.models.policy import answer_logprobs, hidden_states_step
from nemo_moslim.parallel.layout import data_parallel_place, gather_over_data_ranks, is_rank_zero
from nemo_moslim.parallel.layout_checks import row_multiple
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.rollout.score import asked_levels, forward_micro_batches
from nemo_moslim.training.rl_batches import deal, policy_batch
from nemo_moslim.training.rl_loop import PolicyTraining

CHECKED = 8  # answers that both sides compute before anything is timed
MakeContest = Callable[[int | None], Contest | ProfiledRounds]


class PolicySide:
    """Our policy, reward model and prompts, and the answers that the check and what=logprob read."""

    def __init__(self, config: BenchmarkConfig, training: PolicyTraining):
        self.config, self.training = config, training
        per_step = training.config.batch.prompts if config.what == "rl_step" else config.rows
        chosen = prompts_of_step(len(training.train), 0, per_step, config.seed)
        self.prompts: PromptDataset = training.train
        self.chosen = chosen
        self.rollout: Rollout = training.collector.collect(self.prompts, chosen, 0)
        self.checked = list(range(0, len(self.rollout), max(1, len(self.rollout) // CHECKED)))[:CHECKED]

    def write_task(self, work: Path, policy: Path, reward: Path) -> None:
        """task.json and rows.json for the peer, on rank 0."""
        settings, rollout = self.training.config, self.rollout
        generation = {"samples": settings.algorithm.samples}
        for name in ("max_new_tokens", "temperature", "top_p", "top_k"):
            generation[name] = getattr(settings.generation, name)
        task = {
            "what": self.config.what,
            "policy": str(policy),
            "pad_id": self.training.pad_id,
            "eos_id": int(self.training.collector.generator.eos_ids[0]),
            "dtype": "float32" if settings.precision == "fp32" else "bfloat16",
            "steps": self.config.steps,
            "seed": self.config.seed,
            "generation": generation,
        }
        if self.config.what == "generate":
            rows = [{"tokens": self.prompts.tokens[i].tolist()} for i in self.chosen]
        elif self.config.what == "logprob":
            pairs = zip(rollout.prompt_tokens, rollout.answers, strict=True)
            rows = [{"tokens": np.concatenate([p, a]).tolist(), "prompt": len(p)} for p, a in pairs]
        else:
            rows, task = self._rated_prompts(), task | self._rloo_task(reward)
        (work / "rows.json").write_text(json.dumps(rows))
        (work / "task.json").write_text(json.dumps(task))

    def _rated_prompts(self) -> list[dict]:
        """Every training prompt as text, with tags for the policy and without for the reward model."""
        data, scorer = self.prompts, self.training.collector.scorer
        encoder = scorer.reward_model.encoder
        policy_text, reward_text = self.training.collector.tokenizer.decode, encoder.tokenizer.decode
        plain = encoder.encode_prompts(data.prompts)
        asked = asked_levels(data.preferences, scorer.schema).tolist()
        return [
            {"prompt": policy_text(tokens), "plain": reward_text(without), "asked": levels, "tokens": tokens.tolist()}
            for tokens, without, levels in zip(data.tokens, plain, asked, strict=True)
        ]

    def _rloo_task(self, reward: Path) -> dict:
        settings, scorer = self.training.config, self.training.collector.scorer
        return {
            "reward": str(reward),
            "levels": scorer.reward_model.model.config.levels,
            "loss": reward_settings(reward)["loss"],
            "normalize": settings.normalize,
            "statistics": {"average": scorer.average.tolist(), "deviation": scorer.deviation.tolist()},
            "training": {
                "answers": settings.batch.prompts * settings.algorithm.samples,
                "kl_coef": settings.algorithm.kl_coef,
                "clip_ratio": settings.algorithm.clip_ratio,
                "lr": settings.optimizer.lr,
                "clip_grad": settings.optimizer.clip_grad,
            },
        }

    def compare(self, contest: Contest | ProfiledRounds) -> None:
        """The peer's log-probabilities (and rewards) of our answers against ours."""
        rollout, checked, what = self.rollout, self.checked, self.config.what
        samples = self.training.config.algorithm.samples
        answers = [rollout.answers[row].tolist() for row in checked]
        ours = [rollout.generator_logprobs[row].tolist() for row in checked]
        if what == "generate":
            prompts = [rollout.prompt_tokens[row].tolist() for row in checked]
            theirs = contest.check(prompts=prompts, answers=answers)
        elif what == "logprob":
            found = self.logprobs()
            ours = [found[row].tolist() for row in checked]
            theirs = contest.check(rows=checked)
        else:
            prompts = [int(self.chosen[row // samples]) for row in checked]
            theirs = contest.check(rows=prompts, answers=answers, texts=[rollout.texts[row] for row in checked])
        if not theirs:
            return
        contest.compare("log-probabilities", ours, theirs["logprobs"])
        if what == "rl_step":
            contest.compare("prompts", [rollout.prompt_tokens[row].tolist() for row in checked], theirs["prompts"])
            contest.compare("rewards", rollout.rewards[checked].tolist(), theirs["rewards"])

    def generate(self) -> Round:
        """Answers to the prompts."""
        training, watch = self.training, Stopwatch()
        rank, ranks = data_parallel_place()
        own, samples = self.chosen[rank::ranks], training.config.algorithm.samples
        seeds = [(self.config.seed, int(prompt), sample) for prompt in own for sample in range(samples)]
        made = training.collector.generator.generate([self.prompts.tokens[i] for i in own], seeds, samples)
        counts = gather_over_data_ranks((sum(map(len, made.tokens)), len(made.tokens)))
        tokens, items = (sum(column) for column in zip(*counts, strict=True))
        return Round(**watch.read(), tokens=tokens, items=items)

    def logprobs(self) -> list[np.ndarray]:
        """Of every answer of the rollout, on every rank: the pass of train_policy.py over its micro-batches."""
        training, rollout = self.training, self.rollout
        settings, everything = training.config, np.ones(len(rollout), dtype=bool)
        lengths = self._lengths()
        plan = deal(lengths, 1, len(lengths), settings.batch.micro_size, (self.config.seed,))[0]
        rank, ranks = data_parallel_place()
        multiple = row_multiple(settings.parallel, settings.precision)
        batches = [policy_batch(rollout, rows, everything, training.pad_id, multiple) for rows in plan[rank::ranks]]

        def collect(batch, hidden: torch.Tensor) -> dict:
            temperature, chunk = settings.generation.temperature, settings.batch.logprob_chunk
            found = answer_logprobs(training.policy.module, hidden, batch, training.vocab_size, temperature, chunk)
            return {"logprobs": found[0].cpu()}

        training.policy.module.eval()
        kept = forward_micro_batches(
            training.policy.module, batches, collect, training.policy.max_length, hidden_states_step
        )
        own = [
            (int(row), values[: len(rollout.answers[row])].numpy())
            for batch, part in zip(batches, kept, strict=True)
            for row, values in zip(batch.rows, part["logprobs"], strict=True)
        ]
        everyone = dict(pair for share in gather_over_data_ranks(own) for pair in share)
        return [everyone[row] for row in range(len(rollout))]

    def _lengths(self) -> np.ndarray:
        pairs = zip(self.rollout.prompt_tokens, self.rollout.answers, strict=True)
        return np.array([len(prompt) + len(answer) for prompt, answer in pairs])

    def logprob_round(self) -> Round:
        """One pass over all answers."""
        watch = Stopwatch()
        self.logprobs()
        spent, lengths = watch.read(), self._lengths().tolist()
        pairs, read = sum(map(causal_pairs, lengths)), sum(map(len, self.rollout.answers))
        return Round(**spent, tokens=sum(lengths), items=len(lengths), pairs=pairs, read=read)

    def rloo_round(self) -> Round:
        """As many whole steps as a round has."""
        watch, tokens, answers = Stopwatch(), 0, 0
        for _ in range(self.config.steps):
            row = self.training.train_step()
            self.training.step += 1
            tokens, answers = tokens + row["tokens"], answers + row["answers"]
        return Round(**watch.read(), tokens=tokens, items=answers)


def run(
    config: BenchmarkConfig, training: PolicyTraining, folders: tuple[Path, Path, Path], make_contest: MakeContest
) -> Contest | ProfiledRounds:
    """Compare, then all rounds; the contest, finished.

    Args:
        folders: work, and the Hugging Face folders of the policy and of the reward model.
    """
    settings: PolicyTrainingConfig = training.config
    together = settings.batch.micro_size * data_parallel_place()[1]
    require(
        config.what != "logprob" or config.rows * settings.algorithm.samples % together == 0,
        "rows", config.rows, f"answers (rows x algorithm.samples) in multiples of batch.micro_size x ranks={together}",
    )  # fmt: skip
    side = PolicySide(config, training)
    if is_rank_zero():
        side.write_task(*folders)
    contest = make_contest(settings.batch.prompts * settings.algorithm.samples if config.what == "rl_step" else None)
    side.compare(contest)
    contest.begin()
    turn = {"generate": side.generate, "logprob": side.logprob_round, "rl_step": side.rloo_round}[config.what]
    while contest.take(turn()):
        pass
    return contest
