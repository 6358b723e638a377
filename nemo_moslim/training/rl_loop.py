"""The loop of all online algorithms: sample, send for scoring, log-probabilities, scores, prepare, update, log, save.

Policy, reference, critic and reward model share the ranks of one launch. Between phases everything lies on the host;
which answers there are, and how they are dealt into updates, is the same in every layout.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout, SampledAnswers
from nemo_moslim.clock import Clock
from nemo_moslim.data.prompt_dataset import PromptDataset, prompts_of_step
from nemo_moslim.models.layer_spec import shares_prompts
from nemo_moslim.models.policy import answer_logprobs, hidden_states_step
from nemo_moslim.parallel.layout import any_rank, data_parallel_place, is_rank_zero
from nemo_moslim.parallel.layout_checks import row_multiple
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.rollout.collect import VALIDATION_STEP, Collector, step_name
from nemo_moslim.rollout.remote_score import ServiceError, ServiceUnavailable
from nemo_moslim.run_folder import list_checkpoints, remove_old_checkpoints, step_of
from nemo_moslim.stop_request import StopRequest
from nemo_moslim.training.algorithm import Algorithm, answer_kl, counted_answers
from nemo_moslim.training.critic import Critic, update_place
from nemo_moslim.training.objective import rewards_to_learn
from nemo_moslim.training.rl_batches import (
    deal,
    generator_logprobs,
    policy_batch,
    regrouped,
    whole_answers,
    with_field,
    with_probabilities,
)
from nemo_moslim.training.rl_checkpoint import keep_best, load_checkpoint, publish_checkpoint, write_checkpoint
from nemo_moslim.training.rl_metrics import (
    MISMATCH_SUMS,
    mismatch,
    mismatch_sums,
    rollout_metrics,
    sample_rows,
    sample_table,
    update_metrics,
)
from nemo_moslim.training.run_log import RunLog
from nemo_moslim.training.telemetry import peak_memory_gigabytes
from nemo_moslim.training.trained_model import FrozenWeights, TrainedModel


class PolicyTraining:
    """One run; `training/train_policy.py` puts its parts together."""

    def __init__(
        self,
        config: PolicyTrainingConfig,
        algorithm: Algorithm,
        policy: TrainedModel,
        critic: Critic | None,
        collector: Collector,
        train: PromptDataset,
        validation: PromptDataset | None,
        vocab_size: int,
        pad_id: int,
        contexts: dict,
        start: dict,
        loggers: list,
        stop: StopRequest,
    ):
        self.config, self.algorithm, self.policy, self.critic = config, algorithm, policy, critic
        self.collector, self.train, self.validation = collector, train, validation
        self.vocab_size, self.pad_id, self.contexts, self.start = vocab_size, pad_id, contexts, start
        self.schema, self.clock = collector.scorer.schema, collector.clock
        self.models = {"": policy} | (critic.models if critic else {})
        self.reference = FrozenWeights(policy.module)  # before a checkpoint is loaded: the initial policy
        self.step = self._resume()
        self.log = RunLog(config.run_dir, self.step, config.trainer.max_steps, config.trainer.log_every, loggers)
        self.stop = stop

    def run(self) -> bool:
        """Train until max_steps or SIGTERM; True if it came to the end.

        Raises:
            ServiceError: the reward model's service is away for too long, refuses, or serves another model; the steps
                that are done are saved.
        """
        self.stop.listen()
        try:
            self._train()
        except ServiceUnavailable:
            if not any_rank(self.stop.told):
                raise
            self._tell_stopping()
        self.log.close()
        return self.step >= self.config.trainer.max_steps

    def _train(self) -> None:
        trainer = self.config.trainer
        if self.step == 0 and self.validation:
            self._write_first_validation()
        while self.step < trainer.max_steps:
            started, state = time.perf_counter(), self._state()
            try:
                row = self.train_step()
            except ServiceError:  # neither policy nor critic has changed since the last step
                self._save_last_step(state)
                raise
            self.step += 1
            try:
                validation = self._validate() if self._validation_is_due() else {}
            except ServiceError:  # the step itself is done
                self._finish_step(row, {}, started, save=True)
                raise
            stopping = any_rank(self.stop.told)
            last = stopping or self.step == trainer.max_steps
            save = last or self.step % trainer.checkpoint_every == 0 or bool(validation)
            self._finish_step(row, validation, started, save)
            if stopping and self.step < trainer.max_steps:
                self._tell_stopping()
                break

    def _validation_is_due(self) -> bool:
        """Also after the last step, which could not be the best one otherwise."""
        trainer = self.config.trainer
        return self.step % trainer.validate_every == 0 or self.step == trainer.max_steps

    def _finish_step(self, row: dict, validation: dict[str, float], started: float, save: bool) -> None:
        """The step's row and, with `save`, its checkpoint.

        The checkpoint is found only once the row is written: after a kill in between, the step is done again.
        """
        unfinished = self._write_checkpoint(self._state()) if save else None
        phases = {name: round(seconds, 4) for name, seconds in self.clock.take().items()}
        seconds = time.perf_counter() - started
        row["seconds"] = {"step": round(seconds, 4), **phases}
        row["answers_per_second"] = round(row["answers"] / seconds, 2)
        row["tokens_per_second"] = round(row["tokens"] / phases["generation"], 1)
        self.log.write({"step": self.step, **row, **({"validation": validation} if validation else {})})
        if unfinished:
            self._publish(unfinished, validation)

    def _tell_stopping(self) -> None:
        if is_rank_zero():
            print(f"stopping at step {self.step}: told to (SIGTERM); the same command resumes", flush=True)

    def train_step(self) -> dict:
        """One step of the method; its metrics.

        Raises:
            FloatingPointError: logits, a reward, a KL, a loss or a gradient that is not finite; the place is named.
        """
        config, step = self.config, self.step
        prompts = prompts_of_step(len(self.train), step, config.batch.prompts, config.trainer.seed)
        self.log.phase("sampling and scoring")
        answers = self.collector.sample(self.train, prompts, step)
        scored = self.collector.send(answers, step)  # a service scores while the passes below run

        def learnt() -> Rollout:
            return rewards_to_learn(scored(), config.objective, self.schema)

        usable = answers.finished if config.cut_answers == "mask" else np.ones(len(answers), dtype=bool)
        known = learnt() if self.algorithm.chooses_by_reward else answers
        chosen, counts, left_out = self.algorithm.choose(known, usable)
        updates, critic_updates = self._deal(answers, chosen, counts)
        batches = [batch for update in updates for batch in update]
        critic_batches = [batch for update in critic_updates for batch in update]

        self.log.phase("log-probabilities")
        sampled = config.old_logprobs == "generator"
        with self.clock.phase("logprobs"):
            old = [generator_logprobs(batch, answers) for batch in batches] if sampled else self._logprobs(batches)
        with self.clock.phase("reference"), self.reference:
            ref = self._logprobs(whole_answers(batches, answers))
        batches = with_field(batches, old_logprobs=old, ref_logprobs=ref)
        self.log.phase("scores and values")
        if self.critic:
            if self.critic.in_service:
                scored()
            with self.clock.phase("values"):
                batches = with_field(batches, old_values=self.critic.values(critic_batches))

        rollout = scored()
        batches = with_probabilities(batches, rollout)
        kl = answer_kl(rollout, batches)
        check_finite_kl(kl, rollout, step_name(step))
        batches, prepared = self.algorithm.prepare(learnt(), batches)
        counted = counted_answers(batches)
        self.log.phase("update")
        rate = self.policy.set_learning_rate(step, config.trainer.max_steps)
        metrics = self._update(regrouped(batches, updates), critic_batches, critic_updates, rollout.prompts)
        if (step + 1) % config.trainer.samples_every == 0:
            rows = sample_rows(rollout, self.schema, config.trainer.samples_shown)
            self.log.samples(step + 1, rows, sample_table(rollout, self.schema, len(rows), f"step {step + 1}"))
        return {
            **rollout_metrics(rollout, self.schema),
            "kl": float(kl.sum() / max(counted, 1)),
            **({} if sampled else mismatch(rollout, batches)),
            **metrics,
            **prepared,
            **left_out,
            "lr": rate,
            "answers": len(rollout),
            "tokens": sum(map(len, rollout.answers)),
            "memory_gigabytes": round(peak_memory_gigabytes(), 3),
        }

    def _deal(
        self, sampled: SampledAnswers, chosen: np.ndarray, counted: np.ndarray
    ) -> tuple[list[list[PolicyBatch]], list[list[PolicyBatch]]]:
        """This rank's micro-batches of each update; the critic's are the same rows, perhaps without tags."""
        config, algorithm = self.config, self.algorithm
        lengths = np.array([len(sampled.prompt_tokens[r]) + len(sampled.answers[r]) for r in chosen])
        seed = (config.trainer.seed, self.step)
        group = len(chosen) // config.batch.prompts  # answers to one prompt, which stay together where they can
        unit = math.gcd(group, config.batch.micro_size)
        plan = deal(lengths, unit, config.batch.mini_size, config.batch.micro_size, seed)
        rank, ranks = data_parallel_place()
        multiple = row_multiple(config.parallel, config.precision)

        def build(tagged: bool) -> list[list[PolicyBatch]]:
            return [
                [
                    policy_batch(sampled, chosen[rows], counted, self.pad_id, multiple, tagged, shares_prompts())
                    for rows in mini[rank::ranks]
                ]
                for mini in plan
            ]

        updates = build(tagged=True)
        if not self.critic:
            return updates, []
        return updates, updates if algorithm.config.critic_reads_preferences else build(tagged=False)

    def _logprobs(self, batches: list[PolicyBatch]) -> list[Tensor]:
        """Of the policy's current weights: fp32 [B, T] per micro-batch, on every stage."""

        def collect(batch: PolicyBatch, hidden: Tensor) -> dict:
            return {"values": self._answer_logprobs(self.policy.module, hidden, batch)[0]}

        return self.policy.answer_columns(batches, hidden_states_step, collect)

    def _answer_logprobs(self, module: torch.nn.Module, hidden: Tensor, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        config = self.config
        return answer_logprobs(
            module, hidden, batch, self.vocab_size, config.generation.temperature, config.batch.logprob_chunk
        )

    def _update(
        self,
        updates: list[list[PolicyBatch]],
        critic_batches: list[PolicyBatch],
        critic_plan: list[list[PolicyBatch]],
        prompts: Sequence,
    ) -> dict[str, float]:
        """All epochs of critic and policy; the metrics of the last, and the first update's ratio to the old policy.

        The critic goes first: neither reads what the other learns, and when a service's critic fails, the policy is
        still what it was. `prompts` are the rollout's, for errors.
        """

        sampled = self.config.old_logprobs == "generator"  # the first update's log-probabilities are the trainer's own
        names = (*self.algorithm.metric_names, *(MISMATCH_SUMS if sampled else ()))

        def loss(module: torch.nn.Module, hidden: Tensor, batch: PolicyBatch):
            logprobs, entropy = self._answer_logprobs(module, hidden, batch)
            total, count, sums = self.algorithm.loss(logprobs, entropy, batch)
            return total, count, sums | (mismatch_sums(logprobs, batch) if sampled else {})

        orders = [
            np.random.default_rng([self.config.trainer.seed, self.step, epoch]).permutation(len(updates))
            for epoch in range(self.algorithm.epochs)
        ]
        learnt = []
        if self.critic:
            with self.clock.phase("critic update"):
                critic_updates = self._critic_batches(updates, critic_batches, critic_plan)
                learnt = self.critic.learn(critic_updates, orders, self.step)
        first, totals = None, []
        for epoch, order in enumerate(orders):
            totals = []
            for number, index in enumerate(order):
                place = update_place(self.step + 1, epoch + 1, number + 1)
                with self.clock.phase("update"):
                    try:
                        sums = self.policy.update(updates[index], hidden_states_step, loss, names, place)
                    except FloatingPointError as error:
                        prompt = prompts[int(updates[index][0].rows[0])]
                        raise FloatingPointError(f"policy: {error}; the first prompt here is {prompt!r}") from None
                first = first or sums
                totals.append({**sums, **(learnt[epoch][number] if learnt else {})})
        return update_metrics(totals, first)

    def _critic_batches(self, updates, critic_batches, critic_plan) -> list[list[PolicyBatch]]:
        """The critic's batches with what was computed for the policy's: values, returns, and what scores say."""
        if not self.critic or self.algorithm.config.critic_reads_preferences:
            return updates
        flat = [batch for update in updates for batch in update]
        names = ("old_values", "returns", "probabilities")
        filled = with_field(critic_batches, **{name: [getattr(batch, name) for batch in flat] for name in names})
        return regrouped(filled, critic_plan)

    def _validate(self) -> dict[str, float]:
        """Mapped reward and hit rates on prompts that are not trained on."""
        if not self.validation:
            return {}
        self.log.phase("validation")
        with self.clock.phase("validation"):
            once = replace(self.collector, samples=1, clock=Clock())  # its phases are not a training step's
            rollout = once.collect(self.validation, np.arange(len(self.validation)), VALIDATION_STEP)
        return rollout_metrics(rollout, self.schema, by_level=False)

    def _write_first_validation(self) -> None:
        """Row 0 of metrics.jsonl: what the initial policy does."""
        row = {"step": 0, "seconds": {}, "validation": self._validate()}
        self.clock.take()
        self.log.write(row)

    def _state(self) -> dict:
        """What a checkpoint holds besides the models: what a controller has made of `kl_coef`, where there is one, and
        the `starting_points`."""
        return {"kl_coef": self.algorithm.kl_coef if self._has_controller() else None, "start": self.start}

    def _has_controller(self) -> bool:
        return getattr(self.algorithm.config, "kl_target", None) is not None

    def _write_checkpoint(self, state: dict) -> Path:
        beside = partial(self.critic.save, step=self.step) if self.critic else None
        with self.clock.phase("checkpoint"):
            return write_checkpoint(self.config.run_dir, self.step, self.models, state, self.contexts, beside)

    def _publish(self, unfinished: Path, validation: dict[str, float]) -> None:
        run_dir = self.config.run_dir
        if validation:  # before the checkpoint has its name: a kill in between must not leave it unmarked
            keep_best(run_dir, self.step, validation["reward"])
        publish_checkpoint(unfinished)
        if is_rank_zero():
            remove_old_checkpoints(run_dir, self.config.trainer.keep_checkpoints)

    def _save_last_step(self, state: dict) -> None:
        """A checkpoint of the steps that are done, unless there is one."""
        found = list_checkpoints(self.config.run_dir)
        if self.step > (step_of(found[-1]) if found else 0):
            self._publish(self._write_checkpoint(state), {})

    def _resume(self) -> int:
        found = list_checkpoints(self.config.run_dir)
        if not found:
            if self.critic:
                self.critic.resume(None)
            return 0
        if is_rank_zero():
            print(f"resuming from {found[-1]}", flush=True)
        state = load_checkpoint(found[-1], self.models)
        if self.critic:
            self.critic.resume(found[-1])
        if state["kl_coef"] is not None and self._has_controller():
            self.algorithm.kl_coef = state["kl_coef"]
        return state["step"]


def check_finite_kl(kl: Tensor, rollout: Rollout, place: str) -> None:
    """FloatingPointError naming the first prompt whose answer's KL [R] is NaN or infinite."""
    bad = (~torch.isfinite(kl)).nonzero()[:, 0].tolist()
    if bad:
        raise FloatingPointError(
            f"{place}: the KL to the reference of {len(bad)} answers is not finite, first for the prompt "
            f"{rollout.prompts[bad[0]]!r}; weights are left as they were and the last checkpoint stays; lower "
            "optimizer.lr or look at the policy"
        )
