"""What training_server.py can run on its ranks. Each function returns something that JSON holds."""

import contextlib
import importlib.util
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path

from model_probes import (  # noqa: F401
    configuration_classes,
    first_experts,
    open_in_layouts,
    peak_memory,
    published_sizes,
)
from planning_probes import (  # noqa: F401
    allocated_state,
    peak_gigabytes,
    planned_state,
    plans_with_and_without_pruning,
    published_counts,
    saved_by_a_layer,
)
from service_probes import rewards_in_process, rewards_of_service  # noqa: F401

NAMES = ("chosen", "rejected")
ROOT = Path(__file__).resolve().parents[2]


def example(name: str):
    """The module examples/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(entry: str, arguments: list[str], fault: dict | None = None) -> None:
    """`examples/ENTRY.py arguments…`; `fault` kills the process at a named moment of a step's checkpoint."""
    if fault:
        plan_fault(**fault)
    example(entry).main([*arguments, "--traceback"])


def run_script(path: str, arguments: list[str]) -> None:
    """`python PATH arguments…`"""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def train_several(runs: list[list]) -> None:
    """Several trainings in the same process(es), one after the other: [entry, arguments] each."""
    for entry, arguments in runs:
        train(entry, arguments)


def plan_fault(moment: str, step: int) -> None:
    """A signal to this process in or after a step.

    Moments: "sigterm" (SIGTERM while the step runs, on the last rank only), and SIGKILL around the checkpoint of the
    step: "writing" (weights are written, context/ is not), "unmarked" (complete, best.json not yet written), "unnamed"
    (complete but for its name).
    """
    from nemo.lightning.io.pl import TrainerContext

    from nemo_moslim.training import checkpoint, telemetry

    if moment in ("collect", "prepare", "update", "policy checkpoint", "old checkpoints"):
        plan_policy_fault(moment, step)
        return
    if moment == "sigterm":
        original = telemetry.Telemetry.on_train_batch_start

        def on_train_batch_start(self, trainer, *rest):
            if trainer.global_step == step - 1 and trainer.global_rank == trainer.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, trainer, *rest)

        telemetry.Telemetry.on_train_batch_start = on_train_batch_start
        return

    def deadly(function, wanted):
        def wrapped(*args, **kwargs):
            if wanted(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    name = checkpoint.checkpoint_name(step)
    if moment == "writing":
        TrainerContext.io_dump = deadly(TrainerContext.io_dump, lambda self, folder, **_: name in str(folder))
    elif moment == "unnamed":
        Path.rename = deadly(Path.rename, lambda self, target: Path(target).name == name)
    elif moment == "unmarked":
        checkpoint.mark_best = deadly(checkpoint.mark_best, lambda run_dir, marked, *_: marked == name)
    else:
        raise ValueError(moment)


def plan_policy_fault(moment: str, step: int) -> None:
    """SIGKILL of this process in a phase of a policy's step, in the middle of writing its checkpoint, or once it is
    there and before the old ones are removed."""
    from nemo_moslim.rollout.collect import Collector
    from nemo_moslim.training import rl_checkpoint, rl_loop
    from nemo_moslim.training.trained_model import TrainedModel

    reached = []

    def deadly(function, counts):
        def wrapped(*args, **kwargs):
            if counts(*args, **kwargs):
                reached.append(1)
            if len(reached) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    if moment == "collect":  # a training step's, not a validation's
        wanted = lambda self, data, prompts, number: number != rl_loop.VALIDATION_STEP  # noqa: E731
        Collector.sample = deadly(Collector.sample, wanted)
    elif moment == "prepare":
        rl_loop.answer_kl = deadly(rl_loop.answer_kl, lambda *_: True)
    elif moment == "update":
        TrainedModel.update = deadly(TrainedModel.update, lambda *_: True)
    elif moment == "old checkpoints":
        rl_loop.remove_old_checkpoints = deadly(rl_loop.remove_old_checkpoints, lambda *_: True)
    else:
        rl_checkpoint.dist_checkpointing.save = deadly(rl_checkpoint.dist_checkpointing.save, lambda *_, **__: True)


def call_with_errors(entry: str, cases: list[list[str]]) -> list[dict]:
    """`examples/ENTRY.py` with each list of arguments: its exit code and what it wrote to stderr."""
    from nemo_moslim.parallel.layout import leave_process_group

    main, results = example(entry).main, []
    for arguments in cases:
        text, code = io.StringIO(), 0
        with contextlib.redirect_stderr(text):
            try:
                main(arguments)
            except SystemExit as stop:
                code = stop.code
        leave_process_group()  # where the error came after it was made
        results.append({"code": code, "stderr": text.getvalue()})
    return results


def lone_module(run_dir: str, weights_of: str):
    """The megatron module of a run's model on one rank, outside NeMo's Trainer, and its configuration.

    Args:
        run_dir: whose context/ tells the model.
        weights_of: the run whose last checkpoint fills it; a vocabulary layer is not read into heads.
    """
    from nemo.lightning import io as nemo_io

    from nemo_moslim.config import ParallelConfig
    from nemo_moslim.data.chat import load_tokenizer
    from nemo_moslim.models.initial_weights import RunSource, load_weights
    from nemo_moslim.models.reward_model import find_head
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize
    from nemo_moslim.run_folder import list_checkpoints

    cpu.enable()
    initialize(ParallelConfig(1, 1, None, 1, 1, None, False, False, "alltoall"), seed=1)
    context = list_checkpoints(run_dir)[-1] / "context"
    config = nemo_io.load_context(context, subpath="model.config")
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        setattr(config, name, 1)
    config.sequence_parallel = False
    tokenizer = load_tokenizer(RunSource(list_checkpoints(run_dir)[-1]).tokenizer_folder)
    tokenizer.vocab_size_padded = config.vocab_size
    module = config.configure_model(tokenizer, pre_process=True, post_process=True)
    start = list_checkpoints(weights_of)[-1]
    load_weights(module, start, ("output_layer.",) if find_head(module) and weights_of != run_dir else ())
    return module.eval(), config, tokenizer


def naive_reward_step(run_dir: str, init: str, data: str, global_size: int, micro_size: int, buckets: int) -> dict:
    """The first training step of a reward model by loops over rows and heads, one row at a time without padding.

    Returns loss, gradient norm, and the probabilities and labels of the rows.
    """
    import torch

    from nemo_moslim.data.chat import ChatEncoder
    from nemo_moslim.data.encoded_rows import encode_rows
    from nemo_moslim.data.length_batches import TrainingBatches

    module, config, tokenizer = lone_module(run_dir, init)
    ratings = [json.loads(line) for line in (Path(data) / "train.jsonl").read_text().splitlines()]
    rows = encode_rows(ratings, ChatEncoder(tokenizer), 64, "raise", "train")
    plan = TrainingBatches(rows.lengths, global_size, micro_size, micro_size, buckets, seed=1)
    chosen = plan.step(0).flatten().tolist()
    loss, count, kept = 0.0, 0, []
    for index in chosen:
        tokens = torch.tensor(rows.row(index)[None].astype("int64"))
        logits = module(tokens, torch.arange(tokens.shape[1])[None], attention_mask=None)[0, -1]
        probabilities, offset = [], 0
        for dimension in config.schema.dimensions:
            scores = logits[offset : offset + dimension.levels]
            probabilities += (scores.exp() / scores.exp().sum()).tolist()
            if (level := ratings[index]["labels"].get(dimension.name)) is not None:
                weight = config.class_weights[offset + level - 1] if config.class_weights else 1.0
                loss = loss - weight * (scores[level - 1] - scores.exp().sum().log())
                count += 1
            offset += dimension.levels
        kept.append({"probabilities": probabilities, "labels": ratings[index]["labels"]})
    (loss / count).backward()
    return {"loss": loss.item() / count, "grad_norm": gradient_norm(module), "rows": kept}


def naive_sft_step(run_dir: str, init: str, data: str, global_size: int, micro_size: int, buckets: int) -> dict:
    """The first step of supervised fine-tuning by a loop over the answers' tokens: loss and gradient norm."""
    import torch

    from nemo_moslim.data.chat import ChatEncoder
    from nemo_moslim.data.encoded_rows import encode_rows
    from nemo_moslim.data.length_batches import TrainingBatches

    module, config, tokenizer = lone_module(run_dir, init)
    examples = [json.loads(line) for line in (Path(data) / "train.jsonl").read_text().splitlines()]
    encoder = ChatEncoder(tokenizer)
    rows = encode_rows(examples, encoder, 64, "raise", "train")
    plan = TrainingBatches(rows.lengths, global_size, micro_size, micro_size, buckets, seed=1)
    chosen = plan.step(0).flatten().tolist()
    loss, count = 0.0, 0
    for index in chosen:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": examples[index]["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(examples[index]["response"], add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        tokens = torch.tensor([prompt + answer])
        logits = module(tokens, torch.arange(tokens.shape[1])[None], attention_mask=None)[0]
        for place, token in enumerate(answer, start=len(prompt)):
            loss = loss - logits[place - 1].float().log_softmax(-1)[token]
            count += 1
    (loss / count).backward()
    return {"loss": loss.item() / count, "grad_norm": gradient_norm(module), "count": count}


def naive_pair_step(
    run_dir: str, init: str, data: str, global_size: int, micro_size: int, buckets: int, **loss
) -> dict:
    """The first step of DPO or MODPO by loops over pairs and tokens: loss, gradient norm, log-probabilities of answers.

    Args:
        loss: beta, weight, and `others`, dimension -> weight times scale, of MODPO's margins.
    """
    import numpy as np
    import torch

    from nemo_moslim.data.length_batches import TrainingBatches

    module, _, tokenizer = lone_module(run_dir, init)
    entries = len(tokenizer)
    pairs = [json.loads(line) for line in (Path(data) / "train.jsonl").read_text().splitlines()]

    def logprob(prompt: str, response: str):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        tokens = torch.tensor([before + answer])
        logits = module(tokens, torch.arange(tokens.shape[1])[None], attention_mask=None)[0, :, :entries].float()
        total = sum(logits[len(before) + i - 1].log_softmax(-1)[token] for i, token in enumerate(answer))
        return total, tokens.shape[1]

    sums, lengths = [], []
    with torch.no_grad():
        for pair in pairs:
            (chosen, a), (rejected, b) = (logprob(pair["prompt"], pair[name]) for name in NAMES)
            sums.append([chosen.item(), rejected.item()])
            lengths.append(a + b)
    plan = TrainingBatches(np.array(lengths), global_size, micro_size, micro_size, buckets, seed=1)
    total = 0.0
    rows = plan.step(0).flatten().tolist()
    for index in rows:
        pair = pairs[index]
        gain = [logprob(pair["prompt"], pair[name])[0] - ref for name, ref in zip(NAMES, sums[index], strict=True)]
        margin = sum(weight * pair["margins"][name] for name, weight in loss["others"].items())
        total = total - torch.sigmoid((loss["beta"] * (gain[0] - gain[1]) - margin) / loss["weight"]).log()
    (total / len(rows)).backward()
    return {"loss": total.item() / len(rows), "grad_norm": gradient_norm(module), "logprobs": sums}


def gradient_norm(module) -> float:
    """Euclidean norm over all gradients."""
    return sum(p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None) ** 0.5


def head_probabilities(run_dir: str, checkpoint_of: str, data: str) -> list[list[float]]:
    """Probabilities of every training row under a run's best checkpoint, one row at a time without padding."""
    import torch

    from nemo_moslim.data.chat import ChatEncoder
    from nemo_moslim.data.encoded_rows import encode_rows
    from nemo_moslim.functional.classification import probabilities
    from nemo_moslim.models.initial_weights import load_weights

    module, config, tokenizer = lone_module(run_dir, run_dir)
    load_weights(module, Path(checkpoint_of))
    ratings = [json.loads(line) for line in (Path(data) / "train.jsonl").read_text().splitlines()]
    rows, found = encode_rows(ratings, ChatEncoder(tokenizer), 64, "raise", "train"), []
    with torch.no_grad():
        for index in range(len(rows)):
            tokens = torch.tensor(rows.row(index)[None].astype("int64"))
            logits = module(tokens, torch.arange(tokens.shape[1])[None], attention_mask=None)[0, -1]
            found.append(probabilities(logits, config.levels, config.loss).tolist())
    return found


def generation_against_full_forward(run_dir: str, prompts: list[list[int]], temperature: float, batches: list[int]):
    """Answers by the generator at several batch sizes, and by a loop that runs the whole sequence for every token.

    Returns:
        {"naive": answers, "10": answers, …}, each a list of [tokens, logprobs, finished].
    """
    import torch

    from nemo_moslim.config import GenerationConfig
    from nemo_moslim.rollout.generate import MegatronGenerator
    from nemo_moslim.rollout.sampling import sample_tokens, uniform_draws

    module, _, tokenizer = lone_module(run_dir, run_dir)
    eos, vocab, limit, samples = tokenizer.eos_token_id, len(tokenizer), 12, 2
    seeds = [(1, place, sample) for place in range(len(prompts)) for sample in range(samples)]
    found = {"naive": []}
    for row, seed in enumerate(seeds):
        tokens, logprobs = list(prompts[row // samples]), []
        draws = uniform_draws([seed], limit)
        for place in range(limit):
            with torch.no_grad():
                ids = torch.tensor([tokens])
                logits = module(ids, torch.arange(len(tokens))[None], attention_mask=None)[:, -1, :vocab]
            new, logprob = sample_tokens(logits, draws[:, place], temperature, 1.0, 0)
            tokens.append(int(new))
            logprobs.append(float(logprob))
            if int(new) == eos:
                break
        found["naive"].append([tokens[len(prompts[row // samples]) :], logprobs, tokens[-1] == eos])
    for size in batches:
        settings = GenerationConfig(limit, temperature, 1.0, 0, [], size)
        made = MegatronGenerator(module, settings, [eos], vocab, 64).generate(prompts, seeds, samples)
        rows = zip(made.tokens, made.logprobs, made.finished, strict=True)
        found[str(size)] = [[t.tolist(), lp.tolist(), bool(f)] for t, lp, f in rows]
    return found


def train_policy_with_bad_reward(arguments: list[str], step: int) -> None:
    """`examples/train_policy.py` whose reward model answers NaN in a step."""
    import nemo_moslim.rollout.score as score

    original, calls = score.map_rewards, []

    def broken(*args):
        rewards, parts = original(*args)
        calls.append(1)
        return (rewards * float("nan"), parts) if len(calls) == step + 1 else (rewards, parts)  # call 1 validates

    score.map_rewards = broken
    train("train_policy", arguments)


def throughput(settings: list[str], memory: int, output: str) -> dict:
    """`examples/gpu_checks.py` without its tests on the CPU platform: what it wrote, and the layers that fit into
    `memory` bytes. Then again with measurements that fail, and with made-up figures."""
    import torch

    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.evaluation import throughput as rates
    from nemo_moslim.gpu_checks_config import GPUChecksConfig
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import leave_process_group

    cpu.enable()
    seven_billion = parse(compose_config("gpu_checks"), GPUChecksConfig)
    config = parse(compose_config("gpu_checks", [*settings, f"output={output}", "tests=false"]), GPUChecksConfig)
    checks, results = example("gpu_checks"), Path(output) / "results.json"
    failed = checks.run_checks(config)
    whole = json.loads(results.read_text())
    shape = seven_billion.shape
    found = {
        "failed": failed,
        "results": whole,
        "lines": [rates.as_line({**row, "mfu": 0.5}) for row in whole["rates"]],
        "layers": [rates.layers_that_fit(shape, tokens, memory, fp8=False) for tokens in (4096, 8192, 16384)],
        "fp8_layers": rates.layers_that_fit(shape, 4096, memory, fp8=True),
        "all": rates.layers_that_fit(config.shape, 16, memory, fp8=False),
        "activations": rates.activation_bytes(config.shape),
    }
    leave_process_group()

    def out_of_memory(config, precision="bf16", packed=False):
        raise torch.OutOfMemoryError(f"{precision} packed={packed}")

    def reads_what_is_written(config):
        found["written"] = json.loads(results.read_text())["rates"]
        raise KeyError("generation")

    rates.measure_training = rates.measure_logprobs = out_of_memory
    rates.measure_generation = reads_what_is_written
    found |= {"failed_again": checks.run_checks(config), "bad": json.loads(results.read_text())}

    def made_up(config, precision="bf16", packed=False):
        tokens, mfu = {"bf16": (1000, 0.5), "fp8 tensorwise": (1400, 0.35), "fp8 delayed": (1250, 0.3)}[precision]
        return {"tokens_per_second": tokens * (2 if packed else 1), "mfu": mfu}

    rates.measure_training = made_up
    rates.measure_logprobs = rates.measure_generation = lambda _: {"tokens_per_second": 9, "mfu": 0.4}
    rates.refusal = lambda _, precision: "too old" if precision == "fp8 blockwise" else None
    rows = list(rates.measure(seven_billion))
    goals = rates.goals(rows)
    return found | {"compared": rows, "goals": goals, "goal_lines": list(map(rates.goal_line, goals))}


def gpu_probes(calls: list[list]) -> list:
    """Functions of tests/gpu/gpu_probes.py one after the other, [name, arguments] each: what they return."""
    from nemo_moslim.parallel import cpu

    cpu.enable()
    spec = importlib.util.spec_from_file_location("gpu_probes", ROOT / "tests" / "gpu" / "gpu_probes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [module.run(*call) for call in calls]


def passed_on(settings: list[str], gpu: bool, entry: str = "train_rm") -> dict:
    """What NeMo and megatron-core are given for these settings of a training, with or without a GPU in sight."""
    import torch

    from nemo_moslim.baseline_config import PairTrainingConfig
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import RewardModelTrainingConfig, parse
    from nemo_moslim.models.backbone import dispatch_settings, run_settings
    from nemo_moslim.training.optimizer import data_parallel_settings
    from nemo_moslim.training.strategy import megatron_strategy, overlap_callbacks, precision_plugin

    kind = {"train_rm": RewardModelTrainingConfig, "train_dpo": PairTrainingConfig}[entry]
    config = parse(compose_config(entry, ["run_dir=r", "data=d", *settings]), kind)
    torch.cuda.is_available = lambda: gpu
    strategy = megatron_strategy(config)
    policy = data_parallel_settings(config.optimizer, gather_ahead=False)
    return {
        "parallelism": {k: v for k, v in vars(strategy.parallelism).items() if isinstance(v, int | bool | None)},
        "data_parallel": vars(strategy.ddp_config),
        "policy_data_parallel": vars(policy),
        "precision": {
            k: str(v) for k, v in vars(precision_plugin(config.precision, config.fp8_recipe).dtype_config).items()
        },
        "overlap": [vars(callback.user_comm_overlap_cfg) for callback in overlap_callbacks(config)],
        "model": run_settings(config.model) | dispatch_settings(config.parallel, config.batch.fixed_length),
    }


def packed_against_padded(reward_run: str, ratings: str, sft_run: str, texts: str) -> dict[str, float]:
    """Scores, losses and all gradients of packed rows against the same rows padded; largest differences, and scales.

    Packs of 64 tokens: 23 rated answers for the reward model, 19 texts for the language model.
    """
    import numpy as np
    import torch

    from nemo_moslim.data.chat import ChatEncoder
    from nemo_moslim.data.packed_dataset import PackedDataset
    from nemo_moslim.data.reward_dataset import RewardDataset
    from nemo_moslim.data.sft_dataset import SFTDataset
    from nemo_moslim.models.policy import language_model_step
    from nemo_moslim.models.reward_model import reward_model_step, reward_sums
    from nemo_moslim.parallel.layout import leave_process_group

    def read(folder: str, count: int) -> list[dict]:
        return [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()[:count]]

    def compare(name: str, module, data, evaluate) -> dict[str, float]:
        packed = PackedDataset.build(data, 64, seed=1)
        found = []
        for batch in (data.batch(np.arange(len(data))), packed.batch(np.arange(len(packed)))):
            module.zero_grad()
            scores, loss = evaluate(batch)
            loss.backward()
            found.append((scores, loss.item(), torch.cat([p.grad.flatten() for p in module.parameters()])))
        (scores, loss, gradient), (packed_scores, packed_loss, packed_gradient) = found
        order = torch.from_numpy(packed.packs.rows)
        return {
            f"{name}_packs": len(packed),
            f"{name}_scores": (packed_scores - scores[order]).abs().max().item(),
            f"{name}_loss": abs(loss - packed_loss) / abs(loss),
            f"{name}_gradient": ((gradient - packed_gradient).norm() / gradient.norm()).item(),
        }

    module, config, tokenizer = lone_module(reward_run, reward_run)
    module.train()
    encoder = ChatEncoder(tokenizer)
    rated = RewardDataset.build(read(ratings, 23), config.schema, encoder, 64, "raise", 8, "train")

    def rate(batch):
        logits = reward_model_step(module, batch)
        return logits.detach(), reward_sums(logits, batch, config)[0]

    report = compare("reward", module, rated, rate)
    leave_process_group()
    language_model, _, _ = lone_module(sft_run, sft_run)
    language_model.train()
    text = SFTDataset.build(read(texts, 19), encoder, "answers", 64, "raise", 8, "train")

    def read_text(batch):
        batch = batch.to_device()
        losses = language_model_step(language_model, batch)
        sequence = batch.counted_rows
        if batch.packing is not None:
            sequence = torch.bucketize(batch.counted_places, batch.packing.cu_seqlens[1:], right=True)
        return torch.zeros(len(text)).index_add(0, sequence, losses.detach()), losses.sum()

    return report | compare("text", language_model, text, read_text)


def shared_prompts_against_rows(reward_run: str, sft_run: str, ratings: str) -> dict[str, float]:
    """Answers that share prompts against the same rows apart: largest differences, gradients relative to their norm.

    Log-probabilities and entropies of answers, with gradients, and the reward model's scores of rated answers.
    """
    import numpy as np
    import torch

    from nemo_moslim.batches import SampledAnswers
    from nemo_moslim.data.chat import ChatEncoder
    from nemo_moslim.data.reward_dataset import RewardDataset
    from nemo_moslim.data.shared_prompts import AnswersTogether
    from nemo_moslim.models.policy import answer_logprobs, hidden_states_step
    from nemo_moslim.models.reward_model import reward_model_step
    from nemo_moslim.parallel.layout import leave_process_group
    from nemo_moslim.training.rl_batches import policy_batch

    module, config, tokenizer = lone_module(sft_run, sft_run)
    module.train()
    draw = np.random.default_rng(1)
    prompt_of, prompts, answers = [0, 0, 0, 1, 2, 2], [draw.integers(5, 100, size) for size in (9, 4, 14)], []
    for size in (3, 1, 8, 5, 1, 12):
        answers.append(draw.integers(5, 100, size).astype(np.int32))
    sampled = SampledAnswers(
        prompts=[""] * 6, preferences=[{}] * 6, prompt_tokens=[prompts[p].astype(np.int32) for p in prompt_of],
        plain_prompt_tokens=[], answers=answers, texts=[""] * 6, finished=np.ones(6, dtype=bool),
        generator_logprobs=[], groups=torch.tensor(prompt_of), asked=torch.zeros(6, 1, dtype=torch.int64),
    )  # fmt: skip
    counted, found = np.array([True, True, False, True, True, True]), []
    weights = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    for share in (False, True):
        batch = policy_batch(sampled, np.arange(6), counted, pad_id=0, multiple=8, share=share).to_device()
        module.zero_grad()
        hidden = hidden_states_step(module, batch)
        logprobs, entropy = answer_logprobs(module, hidden, batch, len(tokenizer), 1.0, 16)
        ((logprobs - 0.1 * entropy) * weights).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        found.append((logprobs.detach(), entropy.detach(), gradient, batch))
    (logprobs, entropy, gradient, rows), (*shared, batch) = found
    report = {
        "tokens_of_rows": rows.tokens.numel(),
        "tokens": batch.together.tokens.numel(),
        "logprobs": (shared[0] - logprobs).abs().max().item(),
        "entropy": (shared[1] - entropy).abs().max().item(),
        "gradient": ((shared[2] - gradient).norm() / gradient.norm()).item(),
    }
    leave_process_group()

    module, config, tokenizer = lone_module(reward_run, reward_run)
    lines = [json.loads(line) for line in (Path(ratings) / "train.jsonl").read_text().splitlines()[:8]]
    rated = [{**line, "prompt": lines[p]["prompt"]} for line, p in zip(lines, [0, 0, 1, 2, 2, 2, 3, 3], strict=True)]
    dataset = RewardDataset.build(rated, config.schema, ChatEncoder(tokenizer), 64, "raise", 8, "train")
    together, order = AnswersTogether.build(dataset, 4), np.array([3, 4, 5, 0, 1, -1, 2])
    module.train()
    weights, found = torch.randn(len(order), 1, generator=torch.Generator().manual_seed(1)), []
    for rows in (dataset.batch(order), together.batch(order)):
        module.zero_grad()
        scores = reward_model_step(module, rows.to_device())
        (scores * weights).sum().backward()
        found.append((scores.detach(), torch.cat([p.grad.flatten() for p in module.parameters()])))
    leave_process_group()
    (apart, gradient), (shared, shared_gradient) = found
    return report | {
        "blocks": together.blocks,
        "scores": (apart - shared).abs().max().item(),
        "score_gradient": ((gradient - shared_gradient).norm() / gradient.norm()).item(),
    }


def train_with_scores(runs: list[list], context: bool = False) -> list[list]:
    """`train_several`, or `train_along_the_sequence` with `context`.

    Returns:
        Per run what this rank's loss counted in the first step: logits of answers, or losses of tokens.
    """
    from nemo_moslim.batches import RewardBatch
    from nemo_moslim.models.summed_loss import SummedLossReduction

    scores, original = [], SummedLossReduction.forward

    def recorded(self, batch, output):
        if self._training and self._model[0].trainer.global_step == 0:
            counted = batch.label_mask.any(1) if isinstance(batch, RewardBatch) else slice(None)
            scores[-1].extend(output.detach()[counted].tolist())
        return original(self, batch, output)

    SummedLossReduction.forward = recorded
    for run in runs:
        scores.append([])
        (train_along_the_sequence if context else train_several)([run])
    return scores


def train_along_the_sequence(runs: list[list]) -> None:
    """`train_several` with context parallelism on the CPU, by an attention that stands in."""
    from context_attention import GatheringAttention

    from nemo_moslim.models import layer_spec
    from nemo_moslim.parallel import start_checks
    from nemo_moslim.training import strategy

    def prepare(megatron):
        megatron.timers = None
        return megatron

    layer_spec.SDPACoreAttention = GatheringAttention
    layer_spec._check_local = lambda config: None
    start_checks.check_platform = lambda *_: None
    strategy.cpu.prepare_strategy = prepare
    train_several(runs)
