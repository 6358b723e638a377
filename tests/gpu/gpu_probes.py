"""What the tests here run in processes of their own: python gpu_probes.py FUNCTION JSON, the result as the last line.

Every function also runs without a GPU (with megatron-core's local layers), so that it can be tried on any machine.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(transformer_engine: bool):
    """Process groups of one rank, on the CPU platform where there is no GPU; the layout.

    Without Transformer Engine (though it be installed) models are built of megatron-core's local layers.
    """
    import torch

    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.gpu_checks_config import GPUChecksConfig
    from nemo_moslim.models import layer_spec
    from nemo_moslim.parallel import cpu
    from nemo_moslim.parallel.layout import initialize

    if not torch.cuda.is_available():
        cpu.enable()
    if not transformer_engine:
        layer_spec.HAVE_TE = False
    parallel = parse(compose_config("gpu_checks"), GPUChecksConfig).parallel
    initialize(parallel, seed=1)
    return parallel


def train(entry: str, arguments: list[str]) -> dict:
    """`examples/ENTRY.py arguments…`; the backends of its process group."""
    import torch.distributed as dist

    from nemo_moslim.training import supervised, train_policy

    seen = {}

    def watched(leave):
        def wrapped():
            seen["backend"] = dist.get_backend_config()
            leave()

        return wrapped

    for module in (supervised, train_policy):
        module.leave_process_group = watched(module.leave_process_group)
    spec = importlib.util.spec_from_file_location("entry", ROOT / "examples" / f"{entry}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([*arguments, "--traceback"])
    return seen


def scores(run: str, data: str, precision: str, transformer_engine: bool) -> dict:
    """Probabilities of all classes for the rows of a file, and what the model is made of."""
    parallel = start(transformer_engine)
    from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
    from nemo_moslim.data.reward_dataset import RewardDataset
    from nemo_moslim.rollout.open_model import open_reward_model
    from nemo_moslim.rollout.score import score_rows

    model, tokenizer = open_reward_model(run, parallel, precision)
    ratings = [json.loads(line) for line in Path(data).read_text().splitlines()]
    encoder = ChatEncoder(load_tokenizer(tokenizer))
    dataset = RewardDataset.build(ratings, model.config.schema, encoder, 64, "raise", 16, origin=data)
    found = score_rows(model, dataset, micro_size=8)
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

    from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
    from nemo_moslim.data.reward_dataset import RewardDataset
    from nemo_moslim.rollout.open_model import open_reward_model
    from nemo_moslim.rollout.score import forward_micro_batches

    model, tokenizer = open_reward_model(run, parallel, "bf16")
    model.module.eval()
    ratings = [json.loads(line) for line in Path(data).read_text().splitlines()][:24]
    encoder = ChatEncoder(load_tokenizer(tokenizer))
    dataset = RewardDataset.build(ratings, model.config.schema, encoder, 64, "raise", 16, origin=data)

    def logits(make):
        found = []
        for rows in np.arange(24).reshape(3, 8):
            kept = forward_micro_batches(model.module, [make(rows)], lambda _, output: {"logits": output}, 512)
            found += kept[0]["logits"].float().tolist()
        return found

    return {"padded": logits(dataset.batch), "packed": logits(dataset.packed_batch)}


def policy_pass(run: str) -> dict:
    """Log-probabilities of a micro-batch, in which the host may not wait for the GPU."""
    parallel = start(transformer_engine=True)
    import torch

    from nemo_moslim.batches import PolicyBatch
    from nemo_moslim.models.policy import answer_logprobs, hidden_states_step
    from nemo_moslim.rollout.open_model import open_policy

    model, _ = open_policy(run, parallel, "bf16")
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(8) < torch.tensor([8, 3, 5, 0])[:, None]
    empty = torch.zeros(4, 8)
    batch = PolicyBatch(
        tokens=torch.randint(200, (4, 32), generator=generator),
        prompt_lengths=torch.tensor([9, 20, 4, 11]),
        response_mask=mask,
        rows=torch.arange(4),
        old_logprobs=empty,
        ref_logprobs=empty,
        old_values=empty,
        advantages=empty,
        returns=empty,
    )

    @torch.no_grad()
    def run_once(moved) -> torch.Tensor:
        hidden = hidden_states_step(model.module, moved)
        return answer_logprobs(model.module, hidden, moved, model.config.vocab_size, 1.0, 16)[0]

    moved = batch.to_device()
    expected = run_once(moved).cpu()  # also compiles and allocates, which may wait
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
    found = run_once(moved)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
    return {"expected": expected.tolist(), "found": found.cpu().tolist(), "mask": mask.tolist()}


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
    settings = GenerationConfig(limit, temperature=0.0, top_p=1.0, top_k=0, stop_tokens=[], batch_size=4)
    generator = MegatronGenerator(model.module, settings, [vocab], vocab, 128)  # no token ends an answer
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


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from nemo_moslim.console import quiet_libraries

    quiet_libraries()
    result = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    print("\n" + json.dumps(result), flush=True)
