"""Rates of one device on a stack of random weights: reward-model training, log-probabilities, sampling.

The measured code is the project's own: the training step of `training/trained_model.py`, the forward pass and the
chunked vocabulary layer of the policy, the sampler with its KV cache. One rank; `parallel.layout.initialize` comes
first. Everything also runs on the CPU platform, for tests.
"""

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from nemo_moslim.batches import Packing, PolicyBatch, RewardBatch
from nemo_moslim.config import GenerationConfig, to_plain
from nemo_moslim.evaluation.operators import profiled
from nemo_moslim.functional.flops import (
    feed_forward_flops,
    forward_flops,
    layer_weights,
    peak_flops,
    training_flops,
)
from nemo_moslim.gpu_checks_config import GPUChecksConfig, ShapeConfig
from nemo_moslim.models.policy import PolicyConfig, PolicyModel, answer_logprobs, hidden_states_step
from nemo_moslim.models.reward_model import (
    RewardModel,
    RewardModelConfig,
    reward_model_step,
    reward_sums,
)
from nemo_moslim.models.summed_loss import SummedLossModel
from nemo_moslim.parallel.platform import check_precision, this_platform
from nemo_moslim.planning import memory
from nemo_moslim.planning.shape import Layout, ModelShape
from nemo_moslim.planning.shards import count
from nemo_moslim.rollout.generate import MegatronGenerator
from nemo_moslim.rollout.open_model import place_on_layout
from nemo_moslim.rollout.score import forward_micro_batches
from nemo_moslim.training.strategy import FP8_SETTINGS
from nemo_moslim.training.telemetry import peak_memory_gigabytes
from nemo_moslim.training.trained_model import TrainedModel

TRAINED_BYTES = 18  # a weight in bf16, its gradient, master copy and two moments in fp32
FP8_BYTES = 2  # a layer's weight in FP8, plain and transposed, which Transformer Engine keeps
MEMORY_SHARE = 0.88  # of the device's memory; the rest is for work space and fragments
OPERATORS = 10  # that are kept of a profile
TRAINING, LOGPROBS = "reward-model training", "log-probabilities"


def measure(config: GPUChecksConfig) -> Iterator[dict]:
    """All rates, one row each, as they come, in the order in which the table shows them.

    A row that failed has its message under "error", one that this device cannot run the reason under "skipped". Rows of
    FP8 say under "fp8_by_bf16" how many times as many tokens per second they train as BF16.
    """
    bf16 = None
    for what, precision, run in (
        *((TRAINING, p, partial(measure_training, config, p)) for p in precisions(config)),
        ("packed reward training", "bf16", partial(measure_training, config, "bf16", packed=True)),
        (LOGPROBS, "bf16", partial(measure_logprobs, config)),
        ("generation", "bf16", partial(measure_generation, config)),
    ):
        row = {"what": what, "precision": precision, "shape": asdict(config.shape)}
        try:
            if reason := refusal(config, precision):
                row["skipped"] = f"not on this device: {reason}"
            else:
                row |= run()
        except Exception as error:  # out of memory, say: the other rows go on
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        if (what, precision) == (TRAINING, "bf16"):
            bf16 = row.get("tokens_per_second")
        if precision != "bf16" and bf16 and "tokens_per_second" in row:
            row["fp8_by_bf16"] = row["tokens_per_second"] / bf16
        yield row


def precisions(config: GPUChecksConfig) -> list[str]:
    """Those of reward-model training: bf16, then "fp8 RECIPE"."""
    return ["bf16", *(f"fp8 {recipe}" for recipe in config.training.fp8_recipes)]


def refusal(config: GPUChecksConfig, precision: str) -> str | None:
    """Why this device cannot run a precision; None where it can."""
    name, _, recipe = precision.partition(" ")
    try:
        check_precision(name, recipe, config.parallel, asdict(config.shape), this_platform())
    except ValueError as error:
        return str(error)
    return None


def as_line(row: dict) -> str:
    """A row of the table."""
    start = f"{row['what']:24} {row['precision']:16} "
    if "seconds" not in row:
        return start + row.get("skipped", f"failed: {row.get('error')}")
    mfu = f"{row['mfu']:6.1%}" if row["mfu"] is not None else "      "
    by_bf16 = f"  {row['fp8_by_bf16']:.2f} x BF16" if "fp8_by_bf16" in row else ""
    return start + (
        f"{row['layers']:3} layers  {row['tokens_per_second']:12,.0f} tokens/s"
        f"  MFU {mfu}  {row['seconds']:8.3f} s  {row['memory_gigabytes']:6.1f} GiB{by_bf16}"
    )


def goals(rows: list[dict]) -> list[dict]:
    """What the rates should reach, what was measured (the best recipe of FP8's; None where nothing was), and whether
    it is met."""

    def best(what: str, fp8: bool, figure: str) -> float | None:
        chosen = (row for row in rows if row["what"] == what and row["precision"].startswith("fp8") == fp8)
        return max((row[figure] for row in chosen if row.get(figure) is not None), default=None)

    wanted = (
        ("MFU of reward-model training in BF16", 0.5, best(TRAINING, False, "mfu")),
        ("FP8's tokens per second over BF16's, the best recipe", 1.3, best(TRAINING, True, "fp8_by_bf16")),
        ("MFU of log-probabilities", 0.5, best(LOGPROBS, False, "mfu")),
    )
    return [
        {"goal": name, "at_least": least, "measured": figure, "result": _result_of(least, figure)}
        for name, least, figure in wanted
    ]


def goal_line(goal: dict) -> str:
    """One of `goals` as text."""
    figure = "" if goal["measured"] is None else f" ({goal['measured']:.3f})"
    return f"{goal['goal']}, at least {goal['at_least']}: {goal['result']}{figure}"


def _result_of(least: float, figure: float | None) -> str:
    if figure is None:
        return "not measured"
    return "met" if figure >= least else "not met"


def measure_training(config: GPUChecksConfig, precision: str, packed: bool = False) -> dict:
    """A step of the reward model: forward, backward, gradient norm, optimizer; as many layers in every precision.

    With `packed` a row of `training.sequence_length` tokens holds `training.packed_rows` rated answers.
    """
    sizes, settings = asdict(config.shape), config.training
    tokens = settings.micro_size * settings.sequence_length
    layers = settings.layers or layers_that_fit(config.shape, tokens, device_memory(), bool(settings.fp8_recipes))
    sizes["num_layers"] = layers
    model_config = RewardModelConfig(
        **sizes, seq_length=settings.sequence_length, preferences=to_plain(config.preferences)
    )
    model = on_device(RewardModel(model_config), config, precision)
    trained = TrainedModel(model, config.optimizer, "bf16", settings.sequence_length)
    trained.set_learning_rate(0, config.warmup + config.repeats)
    together = settings.packed_rows if packed else 1
    length = settings.sequence_length // together
    batches = [reward_batch(config, number, together) for number in range(settings.micro_batches)]

    def loss(module, output, batch):
        return *reward_sums(output, batch, model_config)[:2], {}

    def step():
        trained.update(batches, reward_model_step, loss, (), "measurement")

    found = measured(step, config)
    rows = settings.micro_size * settings.micro_batches * together
    flops = training_flops(sizes, length, sum(model_config.levels))
    predicted = None
    if precision == "bf16":  # with FP8 it runs at every position, and the planner does not know its memory
        flops -= 3 * feed_forward_flops(sizes, length - 1)
        state = memory.state_bytes(count(model.module, ONE_RANK), ONE_RANK)
        predicted = sum(state) + memory.stage_activations(shape_of(sizes), ONE_RANK, tokens, 0, settings.micro_batches)
    return result(precision, layers, found, rows * length, rows * flops, predicted)


def measure_logprobs(config: GPUChecksConfig) -> dict:
    """Log-probabilities of answers: the forward pass, and the vocabulary layer at the answers' positions."""
    sizes, settings = asdict(config.shape), config.logprobs
    length = settings.prompt_length + settings.answer_length
    model = on_device(PolicyModel(PolicyConfig(**sizes, seq_length=length)), config, "bf16")
    batches = [policy_batch(config, number) for number in range(settings.micro_batches)]

    def collect(batch, hidden):
        return {"p": answer_logprobs(model.module, hidden, batch, sizes["vocab_size"], 1.0, settings.chunk)[0]}

    def run():
        forward_micro_batches(model.module, batches, collect, length, hidden_states_step)

    found = measured(run, config)
    rows = settings.micro_size * settings.micro_batches
    head = 2 * sizes["hidden_size"] * sizes["vocab_size"] * settings.answer_length
    unread = feed_forward_flops(sizes, settings.prompt_length)
    flops = rows * (forward_flops(sizes, length, 0) - unread + head)
    shape, tokens = shape_of(sizes), settings.micro_size * length
    predicted = memory.weight_bytes(count(model.module, ONE_RANK))
    predicted += memory.forward_workspace(shape, ONE_RANK, tokens)
    predicted += memory.logprob_bytes(shape, ONE_RANK, settings.chunk, backward=False)
    return result("bf16", sizes["num_layers"], found, rows * length, flops, predicted)


def measure_generation(config: GPUChecksConfig) -> dict:
    """Sampling: tokens of the answers per second; its MFU counts reading the prompts once, and every new token."""
    sizes, settings = asdict(config.shape), config.generation
    length = settings.prompt_length + settings.max_new_tokens
    model = on_device(PolicyModel(PolicyConfig(**sizes, seq_length=length)), config, "bf16")
    sampling = GenerationConfig(settings.max_new_tokens, 1.0, 1.0, 0, [], settings.batch_size)
    never = sizes["vocab_size"]  # as the end of an answer: no token has this number
    generator = MegatronGenerator(model.module, sampling, [never], sizes["vocab_size"], length)
    source = np.random.default_rng(config.seed)
    prompts = list(source.integers(0, sizes["vocab_size"], (settings.prompts, settings.prompt_length), dtype=np.int64))
    answers = settings.prompts * settings.samples
    seeds = [(config.seed, number) for number in range(answers)]

    found = measured(lambda: generator.generate(prompts, seeds, settings.samples), config)
    prompt, whole = (forward_flops(sizes, n, sizes["vocab_size"]) for n in (settings.prompt_length, length))
    flops = settings.prompts * prompt + answers * (whole - prompt)
    tokens = answers * settings.max_new_tokens
    shape, at_once = shape_of(sizes), min(settings.prompts, max(1, settings.batch_size // settings.samples))
    reading = memory.forward_workspace(shape, ONE_RANK.in_generation(), at_once * settings.prompt_length)
    drawing = memory.sampling_bytes(shape, at_once * settings.samples)
    predicted = memory.weight_bytes(count(model.module, ONE_RANK)) + max(reading, drawing)
    predicted += memory.kv_cache_bytes(shape, ONE_RANK, at_once * settings.samples, length)
    return result("bf16", sizes["num_layers"], found, tokens, flops, predicted)


def on_device(model: SummedLossModel, config: GPUChecksConfig, precision: str) -> SummedLossModel:
    """Random weights on this rank's device; `precision` is bf16 or "fp8 RECIPE" (weights stay in bf16)."""
    gc.collect()  # the model before: its hooks hold it in cycles
    torch.cuda.empty_cache()
    place_on_layout(model.config, config.parallel, "bf16")
    model.config.variable_seq_lengths = False
    if precision != "bf16":
        recipe = precision.removeprefix("fp8 ")
        for name, value in dict(fp8="hybrid", fp8_recipe=recipe, **FP8_SETTINGS[recipe]).items():
            setattr(model.config, name, value)
    model.configure_model()
    model.module.bfloat16().cuda().eval()
    return model


class Measured(NamedTuple):
    """Median seconds of the measured runs, the peak of memory (GiB), and the operators of one more run."""

    seconds: float
    peak: float
    operators: list[dict]


def measured(run: Callable[[], object], config: GPUChecksConfig) -> Measured:
    """Runs to warm up, runs to measure, and one under torch's profiler."""
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for number in range(config.warmup + config.repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= config.warmup:
            seconds.append(time.perf_counter() - started)
    peak = peak_memory_gigabytes()
    return Measured(statistics.median(seconds), peak, profiled(run)[:OPERATORS])


def result(precision: str, layers: int, found: Measured, tokens: int, flops: int, predicted: float | None) -> dict:
    """What a row says: rates from the median run, MFU against the device's peak in this precision (None if it is not
    known), and the planner's bytes beside the peak of memory, both in GiB (None where it has no formula)."""
    seconds = found.seconds
    peak = peak_flops(torch.cuda.get_device_name(), precision)
    return {
        "layers": layers,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tflops_per_second": flops / seconds / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "memory_gigabytes": found.peak,
        "predicted_gigabytes": None if predicted is None else predicted / 2**30,
        "operators": found.operators,
    }


ONE_RANK = Layout(tensor=1, pipeline=1, expert=1, data=1, micro_size=1, recompute="none")


def shape_of(sizes: dict) -> ModelShape:
    """The stack as the planner's formulas take it."""
    return ModelShape(
        layers=sizes["num_layers"],
        hidden=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        groups=sizes["num_query_groups"],
        head_size=sizes["hidden_size"] // sizes["num_attention_heads"],
        ffn=sizes["ffn_hidden_size"],
        vocab=sizes["vocab_size"],
    )


def device_memory() -> int:
    """Bytes of the device."""
    return torch.cuda.get_device_properties(0).total_memory


def layers_that_fit(shape: ShapeConfig, tokens: int, memory: int, fp8: bool) -> int:
    """Layers that can be trained without recomputation beside the embedding, with `tokens` in a micro-batch, in bf16
    or, with `fp8`, in either precision.

    Activations count as in bf16 with both.

    Raises:
        ValueError: not even one.
    """
    sizes = asdict(shape)
    room = MEMORY_SHARE * memory - TRAINED_BYTES * shape.vocab_size * shape.hidden_size
    weight = TRAINED_BYTES + (FP8_BYTES if fp8 else 0)
    layers = int(room // (weight * layer_weights(sizes) + activation_bytes(shape) * tokens))
    if layers < 1:
        raise ValueError(
            f"training: no layer of hidden_size={shape.hidden_size} fits into {memory / 2**30:.0f} GiB beside the "
            "embedding: lower shape.vocab_size or training.micro_size"
        )
    return min(layers, shape.num_layers)


def activation_bytes(shape: ShapeConfig) -> int:
    """Bytes that a token leaves in one layer for the backward pass, in bf16, with fused attention: inputs of both norms
    and what these give, query, key and value, the attention's result, gate, up and their product."""
    head_size = shape.hidden_size // shape.num_attention_heads
    key_value = 2 * shape.num_query_groups * head_size
    return 2 * (4 * shape.hidden_size + 2 * shape.hidden_size + key_value + 3 * shape.ffn_hidden_size)


def reward_batch(config: GPUChecksConfig, number: int, together: int = 1) -> RewardBatch:
    """Random rows of full length, a random level for every head; with `together` above 1 packs of as many rows."""
    settings, generator = config.training, torch.Generator().manual_seed(config.seed + number)
    levels = [dimension.levels for dimension in config.preferences.values()]
    rows, length = settings.micro_size * together, settings.sequence_length // together
    targets = [torch.nn.functional.one_hot(torch.randint(k, (rows,), generator=generator), k) for k in levels]
    tokens = torch.randint(config.shape.vocab_size, (rows, length), generator=generator)
    last_index, packing = torch.full((rows,), length - 1), None
    if together > 1:
        ends = length * torch.arange(rows + 1)
        tokens, last_index, packing = tokens.view(1, -1), ends[1:] - 1, Packing(ends.int(), length)
    return RewardBatch(
        tokens=tokens,
        last_index=last_index,
        targets=torch.cat(targets, -1).float(),
        label_mask=torch.ones(rows, len(levels), dtype=torch.bool),
        packing=packing,
    )


def policy_batch(config: GPUChecksConfig, number: int) -> PolicyBatch:
    """Random prompts and answers of full length."""
    settings, generator = config.logprobs, torch.Generator().manual_seed(config.seed + number)
    rows, empty = settings.micro_size, torch.zeros(settings.micro_size, settings.answer_length)
    length = settings.prompt_length + settings.answer_length
    return PolicyBatch(
        tokens=torch.randint(config.shape.vocab_size, (rows, length), generator=generator),
        prompt_lengths=torch.full((rows,), settings.prompt_length),
        response_mask=torch.ones(rows, settings.answer_length, dtype=torch.bool),
        rows=torch.arange(rows),
        old_logprobs=empty,
        ref_logprobs=empty,
        old_values=empty,
        advantages=empty,
        returns=empty,
    )
