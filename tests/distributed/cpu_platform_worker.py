"""One rank of the CPU platform's tests: prints one line of JSON per result, from one rank.

    losses TP PP SP EP EXPERTS        losses and gradient norm of three steps of a small model, from fixed weights
    patches                           which patches are missed: each is left out in a forked process of its own
"""

import argparse
import json
import os
import sys

import torch

VOCAB, SEQUENCE, BATCH, STEPS = 64, 16, 4, 3


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--expert", type=int, default=1)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--distributed-optimizer", action="store_true")
    parser.add_argument("--checkpoint", help="save after step 2 of 4, load into a new model, compare the end bitwise")
    parser.add_argument("--without", nargs="*", default=[])
    arguments = parser.parse_args()

    from nemo_moslim.parallel import cpu

    cpu.enable(without=arguments.without)
    torch.distributed.init_process_group("gloo")
    run = Run(arguments)
    if arguments.checkpoint:
        run.resume(arguments.checkpoint)
    else:
        run.train(STEPS)
    torch.distributed.destroy_process_group()


class Run:
    """A small Qwen2-like model on the layout of the command line, with megatron-core's DDP, optimizer and schedule."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from megatron.core import parallel_state
        from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        self.arguments = arguments
        parallel_state.initialize_model_parallel(
            arguments.tensor, arguments.pipeline, expert_model_parallel_size=arguments.expert
        )
        model_parallel_cuda_manual_seed(1)
        data_parallel = parallel_state.get_data_parallel_world_size()
        init_num_microbatches_calculator(0, None, BATCH, 1, data_parallel)
        self.build()

    def build(self) -> None:
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

        self.config = make_config(self.arguments)
        self.gpt = make_model(self.config)
        fill_by_name(self.gpt)
        sharded = self.arguments.distributed_optimizer
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=sharded)
        self.model = DistributedDataParallel(self.config, ddp, self.gpt)
        optimizer = OptimizerConfig(
            optimizer="adam", lr=1e-2, use_distributed_optimizer=sharded, bf16=False, params_dtype=torch.float32
        )
        self.optimizer = get_megatron_optimizer(optimizer, [self.model])

    def train(self, steps: int, first: int = 0, quiet: bool = False) -> list[float]:
        from megatron.core import parallel_state
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss
        forward_backward = get_forward_backward_func()
        losses = []
        for step in range(first, first + steps):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            reduced = forward_backward(
                forward_step_func=forward_step,
                data_iterator=batches(step),
                model=[self.model],
                num_microbatches=get_num_microbatches(),
                seq_length=SEQUENCE,
                micro_batch_size=1,
                forward_only=False,
            )
            _, norm, _ = self.optimizer.step()
            if parallel_state.is_pipeline_last_stage():
                mean = torch.stack([r["loss"] for r in reduced]).mean()
                torch.distributed.all_reduce(mean, group=parallel_state.get_data_parallel_group())
                losses.append(mean.item() / parallel_state.get_data_parallel_world_size())
                if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1 and not quiet:
                    print(json.dumps({"step": step, "loss": losses[-1], "norm": float(norm)}), flush=True)
        return losses

    def resume(self, directory: str) -> None:
        """Four steps straight against two, a distributed checkpoint, and two from it in a new model."""
        from megatron.core import dist_checkpointing

        self.train(2, quiet=True)
        metadata = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}

        def sharded(loading: bool) -> dict:
            model = self.gpt.sharded_state_dict(metadata=metadata)
            optimizer = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)
            return {"model": model, "optimizer": optimizer}

        if torch.distributed.get_rank() == 0:
            os.makedirs(directory, exist_ok=True)
        torch.distributed.barrier()
        dist_checkpointing.save(sharded(False), directory)
        self.train(2, first=2, quiet=True)
        straight = {name: p.detach().clone() for name, p in self.gpt.named_parameters()}
        self.build()
        state = dist_checkpointing.load(sharded(True), directory)
        self.gpt.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train(2, first=2, quiet=True)
        same = all(torch.equal(straight[name], p) for name, p in self.gpt.named_parameters())
        print(json.dumps({"rank": torch.distributed.get_rank(), "bitwise": same}), flush=True)


def make_config(arguments: argparse.Namespace):
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nemo_moslim.parallel import cpu

    experts = arguments.experts
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
        tensor_model_parallel_size=arguments.tensor,
        pipeline_model_parallel_size=arguments.pipeline,
        expert_model_parallel_size=arguments.expert,
        sequence_parallel=arguments.sequence_parallel,
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
