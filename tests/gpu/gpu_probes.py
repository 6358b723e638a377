"""What the tests here run in a process of their own, on the GPU.

python gpu_probes.py reads lines of JSON, [FUNCTION, ARGUMENTS], and answers each with a line of JSON.

Every function but `context_places` also runs without a GPU (with megatron-core's local layers):
tests/training/test_gpu_probes.py.
"""

import contextlib
import gc
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def run(function: str, arguments: dict):
    """What a function of this file returns; the process is left to the next one as this one found it."""
    import torch
    from megatron.core.models.gpt import gpt_layer_specs

    from nemo_moslim.models import layer_spec
    from nemo_moslim.parallel.layout import leave_process_group

    result = globals()[function](**arguments)
    leave_process_group()
    layer_spec.HAVE_TE = gpt_layer_specs.HAVE_TE
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def start(transformer_engine: bool):
    """Process groups of one rank, on the CPU platform where there is no GPU; the layout.

    Without Transformer Engine (though it be installed) models are built of megatron-core's local layers.
    """
    import torch

    from nemo_moslim.models import layer_spec
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize

    if not torch.cuda.is_available():
        cpu.enable()
    if not transformer_engine:
        layer_spec.HAVE_TE = False
    parallel = settings().parallel
    initialize(parallel, seed=1)
    return parallel


def settings():
    """conf/gpu_checks.yaml."""
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.gpu_checks_config import GPUChecksConfig

    return parse(compose_config("gpu_checks"), GPUChecksConfig)


def fp8_refusal(recipe: str, sizes: dict) -> str | None:
    """Why this device cannot run a recipe; None where it can. `sizes` are a model's, under megatron-core's names."""
    from nemo_moslim.parallel.platform import check_precision, this_platform

    try:
        check_precision("fp8", recipe, settings().parallel, sizes, this_platform())
    except ValueError as error:
        return str(error)
    return None


def train(entry: str, arguments: list[str]) -> dict:
    """`examples/ENTRY.py arguments…`; the backends of its process group."""
    import torch.distributed as dist

    from nemo_moslim.training import supervised, train_policy

    seen = {}

    def watched(leave):
        def wrapped():
            seen["backend"] = str(dist.get_backend_config())
            leave()

        return wrapped

    spec = importlib.util.spec_from_file_location("entry", ROOT / "examples" / f"{entry}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.ExitStack() as patches:
        for owner in (supervised, train_policy):
            replacement = watched(owner.leave_process_group)
            patches.enter_context(mock.patch.object(owner, "leave_process_group", replacement))
        module.main([*arguments, "--traceback"])
    return seen


def rated_rows(model, tokenizer: Path, file: str, limit: int | None = None):
    """The first `limit` rows of a file of ratings, for a reward model."""
    from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
    from nemo_moslim.data.reward_dataset import RewardDataset

    rows = [json.loads(line) for line in Path(file).read_text().splitlines()][:limit]
    encoder = ChatEncoder(load_tokenizer(tokenizer))
    return RewardDataset.build(rows, model.config.schema, encoder, 64, "raise", 16, origin=file)


def scores(run: str, data: str, precision: str, transformer_engine: bool) -> dict:
    """Probabilities of all classes for the rows of a file, and what the model is made of."""
    parallel = start(transformer_engine)
    from nemo_moslim.rollout.open_model import open_reward_model
    from nemo_moslim.rollout.score import score_rows

    model, tokenizer = open_reward_model(run, parallel, precision)
    found = score_rows(model, rated_rows(model, tokenizer, data), micro_size=8)
    return {
        "scores": found.tolist(),
        "classes": sorted({type(module).__name__ for module in model.module.modules()}),
        "head": sorted({str(value.dtype) for value in (model.head.weight, *model.head.statistics)}),
        "backbone": str(next(model.module.decoder.layers[0].mlp.parameters()).dtype),
    }


def packed_scores(run: str, data: str) -> dict:
    """Logits of the first 24 rows of a file in bf16: padded, eight rows at a time, and the same eight packed."""
    parallel = start(transformer_engine=True)
    import numpy as np

    from nemo_moslim.rollout.open_model import open_reward_model
    from nemo_moslim.rollout.score import forward_micro_batches

    model, tokenizer = open_reward_model(run, parallel, "bf16")
    model.module.eval()
    dataset = rated_rows(model, tokenizer, data, 24)

    def logits(make):
        found = []
        for rows in np.arange(24).reshape(3, 8):
            kept = forward_micro_batches(model.module, [make(rows)], lambda _, output: {"logits": output}, 512)
            found += kept[0]["logits"].float().tolist()
        return found

    return {"padded": logits(dataset.batch), "packed": logits(dataset.packed_batch)}


def context_places(cu_seqlens: list[int], ranks: int) -> dict:
    """Places of a packed row's tokens on every context-parallel rank: this package's, and Transformer Engine's."""
    import torch
    import transformer_engine.pytorch  # noqa: F401 (loads what the next line imports)
    import transformer_engine_torch

    from nemo_moslim.batches import context_positions

    ends, length = torch.tensor(cu_seqlens, dtype=torch.int32, device="cuda"), cu_seqlens[-1]
    split = transformer_engine_torch.thd_get_partitioned_indices
    return {
        "mine": [sum(context_positions(ends, length // ranks, rank, ranks)).tolist() for rank in range(ranks)],
        "theirs": [split(ends, length, ranks, rank).tolist() for rank in range(ranks)],
    }


def reward_passes(run: str, data: str) -> dict[str, dict]:
    """`twice` for padded and packed rows of a reward model with class weights, in bf16."""
    parallel = start(transformer_engine=True)
    from nemo_moslim.models.reward_model import reward_model_step, reward_sums
    from nemo_moslim.rollout.open_model import open_reward_model

    model, tokenizer = open_reward_model(run, parallel, "bf16")
    model.config.class_weights = [0.5] * sum(model.config.levels)
    dataset = rated_rows(model, tokenizer, data, 16)

    def loss(module, output, batch):
        return *reward_sums(output, batch, model.config)[:2], {}

    gradients = gradients_of(trained_model(model), reward_model_step, loss)
    return {name: twice(gradients, two_batches(make)) for name, make in ways(dataset)}


def policy_passes(run: str, data: str) -> dict[str, dict]:
    """`twice` for a language model in bf16: padded and packed text, a policy's answers, and their log-probabilities
    without gradients."""
    parallel = start(transformer_engine=True)
    from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
    from nemo_moslim.data.sft_dataset import SFTDataset
    from nemo_moslim.models.policy import answer_logprobs, hidden_states_step, language_model_step
    from nemo_moslim.rollout.open_model import open_policy
    from nemo_moslim.rollout.score import forward_micro_batches
    from nemo_moslim.training.algorithm import policy_loss

    model, tokenizer = open_policy(run, parallel, "bf16")
    examples = [json.loads(line) for line in Path(data).read_text().splitlines()][:16]
    dataset = SFTDataset.build(examples, ChatEncoder(load_tokenizer(tokenizer)), "answers", 64, "raise", 16, data)

    def text_loss(module, output, batch):
        return *model.loss_terms(batch, output)[:2], {}

    def logprobs(hidden, batch):
        return answer_logprobs(model.module, hidden, batch, model.config.vocab_size, 1.0, 16)

    def answers_loss(module, hidden, batch):
        loss, count, _ = policy_loss(*logprobs(hidden, batch), batch, clip_ratio=0.2, entropy_coef=0.01)
        return loss, count, {}

    def without_gradients(batches):
        model.module.eval()
        collect = lambda batch, hidden: {"sum": logprobs(hidden, batch)[0].sum()[None]}  # noqa: E731
        kept = forward_micro_batches(model.module, batches, collect, 64, hidden_states_step)
        return [k["sum"] for k in kept], []

    answers = [answer_batch(seed) for seed in (1, 2)]
    trained = trained_model(model)
    gradients = gradients_of(trained, language_model_step, text_loss)
    found = {f"text, {name}": twice(gradients, two_batches(make)) for name, make in ways(dataset)}
    gradients = gradients_of(trained, hidden_states_step, answers_loss)
    return found | {"policy": twice(gradients, answers), "log-probabilities": twice(without_gradients, answers)}


def ways(dataset) -> list[tuple]:
    """How rows become a micro-batch."""
    return [("padded", dataset.batch), ("packed", dataset.packed_batch)]


def two_batches(make) -> list:
    """Micro-batches of rows 0 to 7 and 8 to 15."""
    import numpy as np

    return [make(rows) for rows in np.arange(16).reshape(2, 8)]


def trained_model(model):
    """The model as it is trained outside NeMo's Trainer, less the end of a step's backward pass."""
    from nemo_moslim.training.trained_model import TrainedModel

    trained = TrainedModel(model, settings().optimizer, "bf16", 64)
    model.config.finalize_model_grads_func = None  # reads the count on the host, once a step
    return trained


def gradients_of(trained, forward, loss):
    """A function from micro-batches to their sums of loss and count, and the gradients, not divided by the count."""

    def gradients(batches):
        sums = trained.gradients(batches, forward, loss, ["loss", "count"])
        return sums, [parameter.main_grad for parameter in trained.module.parameters()]

    return gradients


def twice(run_once, batches) -> dict:
    """`first`: the loss and the norm of the gradients; `second`: the same of another run, in which the host may not
    wait for the GPU; `waited`: where it did, or None."""

    def numbers(sums, gradients):
        squares = sum(gradient.double().square().sum() for gradient in gradients)
        return [float(sum(sums)[0]), float(squares) ** 0.5]

    found = {"first": numbers(*run_once(batches)), "second": None, "waited": None}  # the first compiles and allocates
    try:
        with no_host_waits():
            made = run_once(batches)
        found["second"] = numbers(*made)
    except RuntimeError:
        found["waited"] = traceback.format_exc()[-4000:]
    return found


@contextlib.contextmanager
def no_host_waits():
    """A call that makes the host wait for the GPU raises RuntimeError inside."""
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")


def answer_batch(seed: int):
    """Four answers of up to eight random tokens, one of them empty."""
    import torch

    from nemo_moslim.batches import PolicyBatch

    empty = torch.zeros(4, 8)
    return PolicyBatch(
        tokens=torch.randint(200, (4, 32), generator=torch.Generator().manual_seed(seed)),
        prompt_lengths=torch.tensor([9, 20, 4, 11]),
        response_mask=torch.arange(8) < torch.tensor([8, 3, 5, 0])[:, None],
        rows=torch.arange(4),
        old_logprobs=empty,
        ref_logprobs=empty,
        old_values=empty,
        advantages=torch.ones(4, 8),
        returns=empty,
    )


def greedy_answers(run: str, prompts: list[list[int]], transformer_engine: bool) -> dict:
    """Most likely tokens in fp32 with the KV cache, and the same positions by one pass over the whole sequence.

    Returns:
        `tokens` and `logprobs` of the generator, per prompt; `again`: the whole pass's log-probabilities of these
        tokens; `best`: those of its own most likely tokens.
    """
    parallel = start(transformer_engine)
    import torch

    from nemo_moslim.config import GenerationConfig
    from nemo_moslim.rollout.generate import MegatronGenerator
    from nemo_moslim.rollout.open_model import open_policy

    model, _ = open_policy(run, parallel, "fp32")
    vocab, limit = model.config.vocab_size, 16
    sampling = GenerationConfig(limit, temperature=0.0, top_p=1.0, top_k=0, stop_tokens=[], batch_size=4)
    generator = MegatronGenerator(model.module, sampling, [vocab], vocab, 128)  # no token ends an answer
    made = generator.generate(prompts, [(1, place) for place in range(len(prompts))], 1)
    again, best = [], []
    for prompt, answer in zip(prompts, made.tokens, strict=True):
        ids = torch.tensor([[*prompt, *answer.tolist()]]).cuda()
        with torch.no_grad():
            logits = model.module(ids, torch.arange(ids.shape[1]).cuda()[None], attention_mask=None)
        logprobs = logits[0, len(prompt) - 1 : -1, :vocab].float().log_softmax(-1)
        again.append(logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist())
        best.append(logprobs.amax(-1).tolist())
    return {
        "tokens": [tokens.tolist() for tokens in made.tokens],
        "logprobs": [logprobs.tolist() for logprobs in made.logprobs],
        "again": again,
        "best": best,
    }


def main() -> None:
    """Answer until stdin ends; a function that raises ends the process, its traceback on stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    sys.path.insert(0, str(ROOT))
    from nemo_moslim.console import quiet_libraries

    quiet_libraries()
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), file=answers, flush=True)
    os._exit(0)  # taking all of NeMo down in order takes seconds


if __name__ == "__main__":
    main()
