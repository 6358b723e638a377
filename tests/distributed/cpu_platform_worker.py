"""One rank of the CPU platform's tests; prints a line of JSON per result.

    layouts LAYOUT...   per layout: losses and gradient norms of three steps, from weights that no layout changes;
                        with `resume=1`: is a run through a distributed checkpoint bitwise the run straight through?
    missing             what fails where one patch is left out: each in a forked process of its own, one rank;
                        and the losses that other layouts must equal
    timers              what two ranks do with parts of unequal sizes, with and without the patch for them;
                        does a rank that alone asks for megatron-core's timers wait for ever? (after LAYOUT...)

A LAYOUT is written like `tensor=2,sequence=1`; the fields are those of `Layout`.
"""

import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass

import torch

VOCAB, SEQUENCE, BATCH, STEPS = 64, 16, 4, 3


@dataclass(frozen=True)
class Layout:
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    experts: int = 0  # experts of the mixture; 0 is a dense model
    sequence: int = 0  # sequence parallelism
    zero: int = 0  # distributed optimizer
    resume: int = 0

    @classmethod
    def parse(cls, text: str) -> "Layout":
        return cls(**{key: int(value) for key, value in (pair.split("=") for pair in text.split(",") if pair)})


def main() -> None:
    from nemo_moslim.training.checkpoint import write_in_this_process

    torch.set_num_threads(1)
    write_in_this_process()  # nothing is left behind by a rank that ends at once
    mode, *layouts = sys.argv[1:]
    if mode == "missing":
        report_missing()
        return
    from nemo_moslim.parallel import cpu

    cpu.enable()
    torch.distributed.init_process_group("gloo")
    for text in layouts:
        report = run_layout(Layout.parse(text))
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            print(json.dumps({"layout": text, **report}), flush=True)
    if mode == "timers":
        report_unequal_parts()
        report_timers()
    torch.distributed.destroy_process_group()


def run_layout(layout: Layout) -> dict:
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import (
        destroy_num_microbatches_calculator,
        init_num_microbatches_calculator,
    )
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, expert_model_parallel_size=layout.expert)
    model_parallel_cuda_manual_seed(1)
    init_num_microbatches_calculator(0, None, BATCH, 1, parallel_state.get_data_parallel_world_size())
    run = Run(layout)
    report = run.resume() if layout.resume else run.train(STEPS)
    destroy_num_microbatches_calculator()
    parallel_state.destroy_model_parallel()
    return report


def report_missing() -> None:
    """Forks after the slow imports; a child without the patch NAME says how far a step of training got."""
    import megatron.core.optimizer  # noqa: F401

    import nemo_moslim.models.layer_spec  # noqa: F401
    from nemo_moslim.parallel import cpu

    for name in ("", *(name for name in cpu.patch_names() if name != "unequal_parts")):  # which takes two ranks
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        try:
            exercise([name] if name else [])
            result = "ok"
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        print(json.dumps({"without": name, "result": result[:300]}), flush=True)
        return


def exercise(without: list[str]) -> None:
    """What NeMo's and megatron-core's code does with CUDA, on one rank: a mixture of experts, saved and resumed."""
    import megatron.core.optimizer.clip_grads as clip_grads

    from nemo_moslim.parallel import cpu

    def kernel(*_):
        raise RuntimeError("a CUDA kernel of Transformer Engine was given tensors of the CPU")

    clip_grads.l2_norm_impl = clip_grads.multi_tensor_scale_impl = kernel  # as where Transformer Engine is installed
    cpu.enable(without=without)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    with torch.cuda.stream(torch.cuda.Stream()):  # as NeMo's MegatronParallel builds DDP
        report = run_layout(Layout(experts=4, zero=1, resume=int(without in ([], ["adam"]))))
    if not report.get("bitwise", True):
        raise AssertionError("resume is not bitwise")
    if not without:
        for text in ("", "experts=4"):
            print(json.dumps({"layout": text, **run_layout(Layout.parse(text))}), flush=True)
    peak = torch.tensor(torch.cuda.max_memory_allocated(), pin_memory=True).to("cuda", non_blocking=True)
    if not 2**20 < peak.item() < 2**45:
        raise AssertionError(f"peak memory {peak.item()}")
    sizes = torch.tensor([3])
    received = torch.empty(3)
    torch.distributed.all_to_all_single(received, torch.arange(3.0), sizes, sizes)


def report_unequal_parts() -> None:
    """Of the two ranks, the first holds the rows 1, 2 and 3, the second the row 4; then the first none."""
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
    )

    rank, group = torch.distributed.get_rank(), torch.distributed.group.WORLD
    for sizes in ([3, 1], [0, 4]):
        rows = torch.arange(1.0, 5.0)[:, None]
        own = rows.split(sizes)[rank].clone().requires_grad_()
        gathered = gather_from_sequence_parallel_region(own, group=group, output_split_sizes=sizes)
        (gathered * rows * 10**rank).sum().backward()
        every = (rows * 10**rank).requires_grad_()
        reduced = reduce_scatter_to_sequence_parallel_region(every, group=group, input_split_sizes=sizes)
        (reduced * 10**rank).sum().backward()
        found = [values.flatten().tolist() for values in (gathered, own.grad, reduced, every.grad)]
        print(json.dumps({"unequal": sizes, "rank": rank, "found": found}), flush=True)
    try:
        torch.distributed.all_gather.__wrapped__([torch.empty(3), torch.empty(1)], torch.empty((3, 1)[rank]))
    except RuntimeError as error:
        if not rank:
            print(json.dumps({"without": "unequal_parts", "result": str(error)}), flush=True)


def report_timers() -> None:
    from megatron.core.timers import Timers

    timers = Timers(1, "minmax")
    timers("step", log_level=0).start()
    timers("step").stop()
    if torch.distributed.get_rank() == 0:
        asking = threading.Thread(target=timers.get_all_timers_string, daemon=True)
        asking.start()
        asking.join(3.0)
        print(json.dumps({"waiting": asking.is_alive()}), flush=True)
        sys.stdout.flush()
    else:
        threading.Event().wait(5.0)
    os._exit(0)


class Run:
    """A small Qwen2-like model in megatron-core's DDP, optimizer and pipeline schedule."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.build()

    def build(self) -> None:
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
            finalize_model_grads,
        )
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

        self.config = make_config(self.layout)
        self.gpt = make_model(self.config)
        fill_by_name(self.gpt)
        zero = bool(self.layout.zero)
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=zero)
        self.model = DistributedDataParallel(self.config, ddp, self.gpt)
        optimizer = OptimizerConfig(
            optimizer="adam", lr=1e-2, use_distributed_optimizer=zero, bf16=False, params_dtype=torch.float32
        )
        self.optimizer = get_megatron_optimizer(optimizer, [self.model])
        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss

    def train(self, steps: int, first: int = 0) -> dict:
        """Losses (last stage only) averaged over the data-parallel ranks, and gradient norms."""
        from megatron.core import parallel_state
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        losses, norms = [], []
        for step in range(first, first + steps):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            reduced = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=batches(step),
                model=[self.model],
                num_microbatches=get_num_microbatches(),
                seq_length=SEQUENCE,
                micro_batch_size=1,
                forward_only=False,
            )
            norms.append(float(self.optimizer.step()[1]))
            if parallel_state.is_pipeline_last_stage():
                mean = torch.stack([r["loss"] for r in reduced]).mean()
                torch.distributed.all_reduce(mean, group=parallel_state.get_data_parallel_group())
                losses.append(mean.item() / parallel_state.get_data_parallel_world_size())
        return {"losses": losses, "norms": norms}

    def resume(self) -> dict:
        """Four steps straight against two, a distributed checkpoint, and two more from it in a new model."""
        from megatron.core import dist_checkpointing

        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
        }

        def sharded(loading: bool) -> dict:
            model = self.gpt.sharded_state_dict(metadata=metadata)
            optimizer = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)
            return {"model": model, "optimizer": optimizer}

        self.train(2)
        directory = [tempfile.mkdtemp() if torch.distributed.get_rank() == 0 else None]
        torch.distributed.broadcast_object_list(directory)
        dist_checkpointing.save(sharded(False), directory[0])
        self.train(2, first=2)
        straight = {name: p.detach().clone() for name, p in self.gpt.named_parameters()}
        self.build()
        state = dist_checkpointing.load(sharded(True), directory[0])
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train(2, first=2)
        same = all(torch.equal(straight[name], p) for name, p in self.gpt.named_parameters())
        everywhere = torch.tensor(int(same))
        torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN)
        return {"bitwise": bool(everywhere.item())}


def make_config(layout: Layout):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nemo_moslim.parallel import cpu

    experts = layout.experts
    mixture = {
        "num_moe_experts": experts,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 32,
        "moe_shared_expert_intermediate_size": 48,
        "moe_token_dispatcher_type": "alltoall",
        "moe_router_load_balancing_type": "none",
    }
    return TransformerConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        expert_model_parallel_size=layout.expert,
        sequence_parallel=bool(layout.sequence),
        pipeline_dtype=torch.float32,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        **(mixture if experts else {}),
        **cpu.cpu_model_overrides(),
    )


def make_model(config):
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel

    from nemo_moslim.models.layer_spec import decoder_layer_spec

    return GPTModel(
        config,
        decoder_layer_spec(config),
        vocab_size=VOCAB,
        max_sequence_length=SEQUENCE,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def fill_by_name(model: torch.nn.Module) -> None:
    """The same weights on every layout: each tensor is drawn whole from its global name, then this rank's part kept."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    for key, entry in model.sharded_state_dict().items():
        shards = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
        shards = shards if isinstance(shards, list | tuple) else [shards]
        for shard in shards:
            if not isinstance(shard, ShardedTensor) or shard.data is None:
                continue
            generator = torch.Generator().manual_seed(sum(map(ord, shard.key)))
            whole = torch.randn(shard.global_shape, generator=generator) * (0.5 if "norm" not in key else 0.1)
            whole = whole + (1.0 if "norm" in key else 0.0)
            own = whole[shard.global_slice()]
            with torch.no_grad():
                shard.data.copy_(own.reshape(shard.data.shape))


def batches(step: int):
    """The rows of this data-parallel rank: the global batch is the same on every layout."""
    from megatron.core import parallel_state

    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, VOCAB, (BATCH, SEQUENCE + 1), generator=generator)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for row in rows[rank::size]:
        yield row[None]


def forward_step(iterator, model):
    row = next(iterator)
    tokens, labels = row[:, :-1], row[:, 1:]
    positions = torch.arange(SEQUENCE)[None]

    def loss_function(output: torch.Tensor):
        loss = output.float().mean()
        return loss, {"loss": loss.detach().clone()}

    return model(tokens, positions, None, labels=labels), loss_function


if __name__ == "__main__":
    sys.exit(main())
