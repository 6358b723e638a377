"""Policy training (train_policy.py) in one layout: policy, reference, reward model and critic share the GPUs.

Phases are those of training/rl_loop.py and carry its names.
"""

import math
from dataclasses import dataclass, replace

from nemo_moslim.planning import cost, memory
from nemo_moslim.planning.plan import (
    ALWAYS,
    Item,
    Plan,
    layout_overrides,
    phase_peaks,
    recompute_value,
    stages_to_look_at,
)
from nemo_moslim.planning.settings import PlanConfig
from nemo_moslim.planning.shape import Layout, ModelShape
from nemo_moslim.planning.shards import ShardCounter

POLICY, REFERENCE, REWARD, CRITIC = "policy", "reference", "reward model", "critic"
GENERATION, SCORING, LOGPROBS, REFERENCE_PASS = "generation", "scoring", "logprobs", "reference"
VALUES, UPDATE, CRITIC_UPDATE = "values", "update", "critic update"


@dataclass(frozen=True)
class Backbones:
    """Shapes and shards: the policy's, and those of reward model and critic, which may be of another size."""

    policy: ModelShape
    reward: ModelShape
    policy_shards: ShardCounter
    reward_shards: ShardCounter


@dataclass(frozen=True)
class PolicyTask:
    """One layout with two choices: whether the reward model waits on the host, and how many answers run at a time."""

    config: PlanConfig
    models: Backbones
    layout: Layout
    offload: bool
    generation_size: int

    @property
    def has_critic(self) -> bool:
        return self.config.task == "ppo"

    @property
    def phases(self) -> list[str]:
        """In the order of a step."""
        critic = [VALUES, CRITIC_UPDATE] if self.has_critic else []
        return [GENERATION, SCORING, LOGPROBS, REFERENCE_PASS, *critic[:1], UPDATE, *critic[1:]]

    @property
    def generation_prompts(self) -> int:
        """Prompts of one batch of generation on one rank."""
        per_batch = max(1, self.generation_size // self.config.algorithm.samples)
        return min(per_batch, self.config.batch.prompts // self.layout.data)

    @property
    def micro_batches(self) -> int:
        """Of an update, on one rank."""
        return self.config.mini_size // (self.layout.micro_size * self.layout.data)

    def items(self, stage: int) -> tuple[Item, ...]:
        """Memory on a GPU of this stage, answers and rows at their longest."""
        items = [*self._policy_items(stage), *self._reward_items(stage)]
        return tuple(items + self._critic_items(stage) if self.has_critic else items)

    def _policy_items(self, stage: int) -> list[Item]:
        config, layout, shape = self.config, self.layout, self.models.policy
        length, last = config.model.max_length, stage == layout.pipeline - 1
        state = memory.state_bytes(self.models.policy_shards.shard("policy", layout, stage), layout)
        items = [Item(POLICY, what, ALWAYS, size) for what, size in state._asdict().items()]
        prompts, answers = self.generation_prompts, self.generation_prompts * config.algorithm.samples
        read = prompts * (length - config.max_new_tokens)
        prefill = memory.forward_workspace(shape, layout.in_generation(), read)
        draw = memory.sampling_bytes(shape, answers) if last else 0.0
        tokens = layout.micro_size * length
        forward = memory.forward_workspace(shape, layout, tokens)
        saved = memory.stage_activations(shape, layout, tokens, stage, self.micro_batches)
        items += [
            Item(POLICY, "KV cache", GENERATION, memory.kv_cache_bytes(shape, layout, answers, length)),
            Item(POLICY, "reading prompts, or drawing tokens", GENERATION, max(prefill, draw)),
            Item(POLICY, "forward pass", LOGPROBS, forward),
            Item(POLICY, "forward pass", REFERENCE_PASS, forward),
            Item(POLICY, "activations", UPDATE, saved),
        ]
        if last:
            chunk = min(config.batch.logprob_chunk, layout.micro_size * config.max_new_tokens)
            once = memory.logprob_bytes(shape, layout, chunk, backward=False)
            both = memory.logprob_bytes(shape, layout, chunk, backward=True)
            items += [Item(POLICY, "logits of a chunk", phase, once) for phase in (LOGPROBS, REFERENCE_PASS)]
            items.append(Item(POLICY, "logits of a chunk, vocabulary gradient", UPDATE, both))
        return items

    def _reward_items(self, stage: int) -> list[Item]:
        layout, shape, model = self.layout, self.models.reward, self.config.reward_model or self.config.model
        weights = memory.weight_bytes(self.models.reward_shards.shard("reward", layout, stage))
        forward = memory.forward_workspace(shape, layout, self.config.batch.score_size * model.max_length)
        return [
            Item(REWARD, "weights", SCORING if self.offload else ALWAYS, weights),
            Item(REWARD, "forward pass", SCORING, forward),
        ]

    def _critic_items(self, stage: int) -> list[Item]:
        layout, shape = self.layout, self.models.reward
        tokens = layout.micro_size * self.config.model.max_length
        state = memory.state_bytes(self.models.reward_shards.shard("critic", layout, stage), layout)
        saved = memory.stage_activations(shape, layout, tokens, stage, self.micro_batches)
        return [
            *(Item(CRITIC, what, ALWAYS, size) for what, size in state._asdict().items()),
            Item(CRITIC, "forward pass", VALUES, memory.forward_workspace(shape, layout, tokens)),
            Item(CRITIC, "activations", CRITIC_UPDATE, saved),
        ]

    def host(self) -> dict[str, float]:
        """Bytes on a node: every rank's copies of the reference and, beside it, of the policy whose place it takes; the
        reward model's where it is offloaded."""
        ranks = min(self.config.gpu.gpus_per_node, self.config.gpus)
        stages = stages_to_look_at(self.layout)

        def copies(counter: ShardCounter, kind: str) -> float:
            return ranks * max(memory.weight_bytes(counter.shard(kind, self.layout, stage)) for stage in stages)

        reward = {REWARD: copies(self.models.reward_shards, "reward")} if self.offload else {}
        return {REFERENCE: 2 * copies(self.models.policy_shards, "policy"), **reward}

    def seconds(self, rates: cost.Rates) -> dict[str, float]:
        """Per phase of a step, at the mean lengths."""
        config, layout = self.config, self.layout
        data, stages = config.data, layout.pipeline
        length = data.prompt_tokens + data.answer_tokens
        trained = config.trained_answers // (layout.micro_size * layout.data)  # micro-batches
        tokens, answers = layout.micro_size * length, layout.micro_size * data.answer_tokens
        policy = cost.stage_seconds(self.models.policy, layout, rates, tokens, length, predicted=answers)
        forward = policy.all_micro_batches(stages, trained, backward=False)
        updates = config.algorithm.epochs * (config.trained_answers // config.mini_size)
        found = {
            GENERATION: self._generation_seconds(rates),
            SCORING: self._scoring_seconds(rates, length),
            LOGPROBS: forward,
            REFERENCE_PASS: forward + self._swap_seconds(rates),
            UPDATE: updates * self._update_seconds(policy, "policy", rates),
        }
        if self.has_critic:
            critic = cost.stage_seconds(self.models.reward, layout, rates, tokens, length, predicted=0)
            found[VALUES] = critic.all_micro_batches(stages, trained, backward=False)
            found[CRITIC_UPDATE] = updates * self._update_seconds(critic, "critic", rates)
        return {phase: found[phase] for phase in self.phases}

    def _generation_seconds(self, rates: cost.Rates) -> float:
        """Rows leave the batch when their answer ends; a batch runs until the longest has reached the limit."""
        config, layout, shape = self.config, self.layout.in_generation(), self.models.policy
        data, prompts = config.data, self.generation_prompts
        batches = math.ceil(config.batch.prompts / layout.data / prompts)
        tokens = prompts * data.prompt_tokens
        read = cost.stage_seconds(shape, layout, rates, tokens, data.prompt_tokens, predicted=prompts).forward
        running = prompts * config.algorithm.samples * data.answer_tokens / config.max_new_tokens
        cached = data.prompt_tokens + data.answer_tokens / 2
        decode = cost.decode_seconds(shape, layout, rates, running, cached)
        return batches * (layout.pipeline * read + config.max_new_tokens * decode)

    def _scoring_seconds(self, rates: cost.Rates, length: int) -> float:
        """Passes of as many micro-batches as `micro_batches_per_pass` (rollout/score.py), all of them filled up."""
        config, layout = self.config, self.layout
        size = config.batch.score_size
        micro_batches = 1 if layout.pipeline == 1 else 4 * layout.pipeline
        calls = math.ceil(config.answers / (layout.data * size * micro_batches))
        passes = cost.stage_seconds(self.models.reward, layout, rates, size * length, length, predicted=0)
        move = 0.0
        if self.offload:
            weights = memory.weight_bytes(self.models.reward_shards.shard("reward", layout, 0))
            move = weights / rates.host  # to the GPU; unchanged, so not back
        return calls * passes.all_micro_batches(layout.pipeline, micro_batches, backward=False) + move

    def _swap_seconds(self, rates: cost.Rates) -> float:
        """The policy's weights go, the reference's come, and the policy's come back: three copies (`FrozenWeights`)."""
        return 3 * memory.weight_bytes(self.models.policy_shards.shard("policy", self.layout, 0)) / rates.host

    def _update_seconds(self, passes: cost.StageSeconds, kind: str, rates: cost.Rates) -> float:
        counter = self.models.policy_shards if kind == "policy" else self.models.reward_shards
        gradients = cost.gradient_seconds(counter.shard(kind, self.layout, 0), self.layout, rates)
        return cost.update_seconds(passes, gradients, self.layout.pipeline, self.micro_batches, overlap=False)

    def overrides(self) -> tuple[str, ...]:
        """Settings of train_policy.py."""
        config, batch = self.config, self.config.batch
        return (
            *layout_overrides(self.layout),
            "optimizer.overlap=false",
            f"algorithm={config.task}",
            f"recompute={recompute_value(self.layout)}",
            f"offload={str(self.offload).lower()}",
            f"max_length={config.model.max_length}",
            f"batch.prompts={batch.prompts}",
            f"batch.mini_size={config.mini_size}",
            f"batch.micro_size={self.layout.micro_size}",
            f"batch.score_size={batch.score_size}",
            f"batch.logprob_chunk={batch.logprob_chunk}",
            f"generation.batch_size={self.generation_size}",
            f"generation.max_new_tokens={config.max_new_tokens}",
            f"algorithm.samples={config.algorithm.samples}",
            f"algorithm.epochs={config.algorithm.epochs}",
        )

    def plan(self, rates: cost.Rates) -> Plan:
        """Everything about this layout."""
        found = {stage: self.items(stage) for stage in stages_to_look_at(self.layout)}
        fullest = max(found, key=lambda stage: max(phase_peaks(found[stage], self.phases).values()))
        data = self.config.data
        return Plan(
            layout=self.layout,
            stage=fullest,
            items=found[fullest],
            host=self.host(),
            seconds=self.seconds(rates),
            steps=math.ceil(data.rows * data.epochs / self.config.batch.prompts),
            model_flops=None,
            choices={"offload": str(self.offload).lower(), "generation": str(self.generation_size)},
            overrides=self.overrides(),
        )


def plan_policy(
    config: PlanConfig, models: Backbones, layout: Layout, offload: bool, usable: float, rates: cost.Rates
) -> Plan:
    """With the first of search.generation_size that fits into `usable` bytes, else with the last."""
    task = PolicyTask(config, models, layout, offload, config.search.generation_size[0])
    for size in config.search.generation_size:
        task = replace(task, generation_size=size)
        peaks = (max(phase_peaks(task.items(s), task.phases).values()) for s in stages_to_look_at(layout))
        if max(peaks) <= usable:
            break
    return task.plan(rates)
