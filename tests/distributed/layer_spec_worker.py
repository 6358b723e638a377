"""One rank that builds whole models from `decoder_layer_spec`; prints one line of JSON: name of the check -> number."""

import json
import tempfile

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VOCAB, HIDDEN, HEADS, GROUPS, FFN, LAYERS, LENGTH = 48, 32, 4, 2, 40, 2, 12
LONG = 1000  # tokens: a bool for each pair of them takes more than any state of two rows


def main() -> None:
    torch.set_num_threads(1)
    from nemo_moslim.parallel import cpu
    from nemo_moslim.training.checkpoint import write_in_this_process

    cpu.enable()
    write_in_this_process()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    torch.manual_seed(2)
    report = {**compare_with_transformers(), **generate(), **largest_tensors(), **read_early()}
    for name, fields in KINDS.items():
        report |= {**interchange(name, fields), **answer_unequal(name, fields)}
    print(json.dumps(report), flush=True)


MIXTURE = {
    "num_moe_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 24,
    "moe_shared_expert_intermediate_size": 16,
    "moe_router_load_balancing_type": "none",
}
KINDS = {
    "dense": {},
    "dense with norms of queries and keys": {"qk_layernorm": True, "kv_channels": 12, "add_qkv_bias": False},
    "mixture": MIXTURE,
    "mixture with a gate": {**MIXTURE, "gate": True},
}


def make_config(**fields):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nemo_moslim.parallel import cpu

    return TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        ffn_hidden_size=FFN,
        normalization="RMSNorm",
        layernorm_epsilon=1e-6,
        gated_linear_unit=True,
        activation_func=functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        **{"add_qkv_bias": True, **fields},
        **cpu.cpu_model_overrides(),
    )


def config_of(fields: dict):
    """Of one of `KINDS`."""
    config = make_config(**{field: value for field, value in fields.items() if field != "gate"})
    config.moe_shared_expert_gate = fields.get("gate", False)
    return config


def make_model(config, spec=None):
    from megatron.core.models.gpt.gpt_model import GPTModel

    from nemo_moslim.models.layer_spec import decoder_layer_spec

    config.vocab_size = VOCAB  # NeMo's configs have it, the generator asks for it
    return GPTModel(
        config,
        spec or decoder_layer_spec(config),
        vocab_size=VOCAB,
        max_sequence_length=64,
        position_embedding_type="rope",
        rotary_base=1_000_000,
        share_embeddings_and_output_weights=False,
    ).eval()


def randomize(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    return tokens, torch.arange(LENGTH).expand(3, -1)


def compare_with_transformers() -> dict[str, float]:
    """transformers' Qwen2 and megatron-core's model with its weights: logits and the gradient of the embedding."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    theirs = Qwen2ForCausalLM(config).eval()
    randomize(theirs)
    ours = make_model(make_config())
    copy_qwen2(theirs, ours)
    tokens, positions = prompts()
    expected, got = theirs(tokens).logits, ours(tokens, positions, None)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (expected * weights).mean().backward()
    (got * weights).mean().backward()
    gradients = theirs.model.embed_tokens.weight.grad, ours.embedding.word_embeddings.weight.grad
    shape = (3, 1, LENGTH, LENGTH)
    forbidden = torch.ones(shape, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, LENGTH, dtype=torch.long)
    padding[1, -4:] = 1  # forbidden keys
    padded = theirs(tokens, attention_mask=1 - padding).logits
    ours_padded = ours(tokens, positions, padding.bool()[:, None, None])
    return {
        "transformers": (expected - got).abs().max().item(),
        "transformers_scale": expected.abs().max().item(),
        "transformers_gradient": (gradients[0] - gradients[1]).abs().max().item() / gradients[0].abs().max().item(),
        "transformers_full_mask": (expected - ours(tokens, positions, forbidden)).abs().max().item(),
        "transformers_padding_mask": (padded - ours_padded)[padding == 0].abs().max().item(),
    }


@torch.no_grad()
def copy_qwen2(theirs, ours) -> None:
    """By hand: per query group its query heads, then its key, then its value; the gate before the up projection."""
    size, per_group = HIDDEN // HEADS, HEADS // GROUPS
    ours.embedding.word_embeddings.weight.copy_(theirs.model.embed_tokens.weight)
    ours.decoder.final_layernorm.weight.copy_(theirs.model.norm.weight)
    ours.output_layer.weight.copy_(theirs.lm_head.weight)
    for source, target in zip(theirs.model.layers, ours.decoder.layers, strict=True):
        attention = source.self_attn
        for name in ("weight", "bias"):
            q, k, v = (getattr(getattr(attention, p), name) for p in ("q_proj", "k_proj", "v_proj"))
            rows = []
            for group in range(GROUPS):
                rows.append(q[group * per_group * size : (group + 1) * per_group * size])
                rows.append(k[group * size : (group + 1) * size])
                rows.append(v[group * size : (group + 1) * size])
            getattr(target.self_attention.linear_qkv, name).copy_(torch.cat(rows))
        target.self_attention.linear_proj.weight.copy_(attention.o_proj.weight)
        target.mlp.linear_fc1.weight.copy_(torch.cat([source.mlp.gate_proj.weight, source.mlp.up_proj.weight]))
        target.mlp.linear_fc2.weight.copy_(source.mlp.down_proj.weight)
        target.input_layernorm.weight.copy_(source.input_layernorm.weight)
        target.pre_mlp_layernorm.weight.copy_(source.post_attention_layernorm.weight)


@torch.no_grad()
def generate() -> dict[str, float]:
    """A KV cache filled in steps of 5 (prefill), 1, 1, 3 and 2 tokens against one forward over all twelve."""
    from nemo_moslim.models.local_layers import PromptCache

    model = make_model(make_config())
    randomize(model)
    tokens, positions = prompts()
    full = model(tokens, positions, None)
    context = PromptCache(3, LENGTH)
    context.materialize_only_last_token_logits = False
    parts, start = [], 0
    for step in (5, 1, 1, 3, 2):
        piece = slice(start, start + step)
        parts.append(
            model(tokens[:, piece], positions[:, piece], None, inference_context=context, runtime_gather_output=True)
        )
        context.sequence_len_offset += step
        start += step
    return {"cache": (torch.cat(parts, dim=1) - full).abs().max().item(), "cache_scale": full.abs().max().item()}


@torch.no_grad()
def answer_unequal(name: str, fields: dict) -> dict[str, float]:
    """Prompts of 4, 9 and 6 tokens read at once, rows repeated and chosen, against every row in a pass of its own.

    Every row goes on with the tokens that follow its prompt, so that a second answer is the same.
    """
    from nemo_moslim.rollout.generate import _right_padded, _Runner

    model = make_model(config_of(fields))
    randomize(model)
    tokens, positions = prompts()
    lengths = torch.tensor([4, 9, 6])
    padded, counted = _right_padded([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)], 9)
    assert counted.tolist() == lengths.tolist()
    runner, rows = _Runner(model, 3, LENGTH), torch.arange(3)
    found, expected = [runner.read(padded, lengths)], []
    for place, chosen in enumerate(([2, 0, 0, 1], [0, 2, 3])):
        runner.select(torch.tensor(chosen))
        rows = rows[chosen]
        found.append(runner.step(tokens[rows, lengths[rows] + place]))
    for place, chosen in enumerate(([0, 1, 2], [2, 0, 0, 1], [2, 0, 1])):
        for row in chosen:
            end = int(lengths[row]) + place
            expected.append(model(tokens[row : row + 1, :end], positions[:1, :end], None)[0, -1])
    expected = torch.stack(expected)
    difference = (torch.cat(found) - expected).abs().max().item()
    return {f"{name}_unequal": difference, f"{name}_unequal_scale": expected.abs().max().item()}


class LargestTensor(TorchDispatchMode):
    """Inside the block: bytes of the largest storage that an operation gave."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return result


def largest_tensors() -> dict[str, float]:
    """In a step of training over two long rows, and where two long prompts, one of them shorter, are read."""
    from nemo_moslim.rollout.generate import _Runner

    model = make_model(make_config())
    tokens = torch.randint(0, VOCAB, (2, LONG))
    with LargestTensor() as training:
        model.train()(tokens, torch.arange(LONG).expand(2, -1), None).mean().backward()
    runner = _Runner(model, 2, LONG + 1)
    with torch.no_grad(), LargestTensor() as reading:
        runner.read(tokens, torch.tensor([LONG - 300, LONG]))
    return {"largest_in_training": training.size, "largest_in_prompts": reading.size}


READS = {  # rows, places, whether no row is there twice
    "repeated": ([0, 2, 2], [3, 1, LENGTH - 1], False),
    "once": ([2, 0], [3, LENGTH - 1], True),
    "every row once": ([0, 1, 2], [3, LENGTH - 1, 0], True),
}


def read_early() -> dict[str, float]:
    """Logits and all gradients where the last layer runs at a few positions alone, and where at all."""
    from nemo_moslim.models.read_positions import reading

    report = {}
    for kind in ("dense", "dense with norms of queries and keys"):
        model = make_model(make_config(**KINDS[kind])).train()
        randomize(model)
        for name, (rows, places, once) in READS.items():
            report |= {f"{kind}_{name}_{k}": v for k, v in compare_reads(model, rows, places, once).items()}
    model.config.recompute_granularity = "full"
    with reading(model, torch.tensor(rows), torch.tensor(places)) as recomputed:
        report["read_recomputed"] = float(recomputed)
    return report


def compare_reads(model, rows: list[int], places: list[int], once: bool) -> dict[str, float]:
    from nemo_moslim.models.read_positions import reading

    tokens, positions = prompts()
    rows, places = torch.tensor(rows), torch.tensor(places)
    weights = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(3))
    attention, found, calls = model.decoder.layers[-1].self_attention, [], []
    original = attention.attend_once
    attention.attend_once = lambda *args: (calls.append(1), original(*args))[1]
    for early in (False, True):
        model.zero_grad()
        if early:
            with reading(model, rows, places, one_each=once) as is_early:
                logits = model(tokens, positions, None)[0]
        else:
            logits = model(tokens, positions, None)[rows, places]
        (logits * weights).sum().backward()
        found.append((logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    del attention.attend_once
    (plain, gradient), (read, read_gradient) = found
    return {
        "early": float(is_early),
        "attended_once": float(len(calls)),
        "states": ((plain - read).abs().max() / plain.abs().max()).item(),
        "gradient": ((gradient - read_gradient).abs().max() / gradient.abs().max()).item(),
    }


def interchange(name: str, fields: dict) -> dict[str, float]:
    """Keys and shapes of a distributed checkpoint of the local spec against Transformer Engine's, and a checkpoint
    written by each and read by the other."""
    from megatron.core import dist_checkpointing

    config = config_of(fields)
    local, fused = make_model(config), make_model(config, transformer_engine_like_spec(config))
    entries = [
        {(e.key, type(e).__name__, e.global_shape) for e in flat(model.sharded_state_dict())}
        for model in (local, fused)
    ]
    report = {f"{name}_keys_differ": len(entries[0] ^ entries[1]), f"{name}_keys": len(entries[0])}
    tokens, positions = prompts()
    for source, target, direction in ((local, fused, "to_fused"), (fused, local, "from_fused")):
        randomize(source)
        directory = tempfile.mkdtemp()
        dist_checkpointing.save(source.sharded_state_dict(), directory)
        target.load_state_dict(dist_checkpointing.load(target.sharded_state_dict(), directory))
        with torch.no_grad():
            outputs = source(tokens, positions, None), target(tokens, positions, None)
        report[f"{name}_{direction}"] = (outputs[0] - outputs[1]).abs().max().item()
    return report


def flat(sharded: dict):
    for entry in sharded.values():
        built = entry.build() if hasattr(entry, "build") else entry
        yield from built if isinstance(built, list | tuple) else (built,)


def transformer_engine_like_spec(config):
    """The local spec rebuilt with Transformer Engine's parameter names: norms inside the linears that follow them
    (`layer_norm_weight`), and the key map of megatron-core 0.15.3's `get_gpt_layer_with_transformer_engine_spec`."""
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.identity_op import IdentityOp

    from nemo_moslim.models.layer_spec import decoder_layer_spec

    class NormLinear(ColumnParallelLinear):
        def __init__(self, input_size, *args, **kwargs):
            super().__init__(input_size, *args, **kwargs)
            self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size))

        def forward(self, x, *args, **kwargs):
            x = functional.rms_norm(x, x.shape[-1:], self.layer_norm_weight, config.layernorm_epsilon)
            return super().forward(x, *args, **kwargs)

    spec = decoder_layer_spec(config)
    for layer in spec.submodules.layer_specs:
        layer.submodules.input_layernorm = IdentityOp
        layer.submodules.self_attention.submodules.linear_qkv = NormLinear
        if config.num_moe_experts is None:
            layer.submodules.pre_mlp_layernorm = IdentityOp
            layer.submodules.mlp.submodules.linear_fc1 = NormLinear
        layer.submodules.sharded_state_dict_keys_map = {
            "mlp.0.weight": "mlp.linear_fc1.layer_norm_weight",
            "mlp.0.bias": "mlp.linear_fc1.layer_norm_bias",
            "mlp.1.basic_ops.0.weight": "mlp.linear_fc1.weight",
            "mlp.1.basic_ops.1.bias": "mlp.linear_fc1.bias",
            "mlp.3.basic_ops.0.weight": "mlp.linear_fc2.weight",
            "mlp.3.basic_ops.1.bias": "mlp.linear_fc2.bias",
        }
    return spec


if __name__ == "__main__":
    main()
