"""A supervised run's layout, precision and overlaps in the terms of NeMo's Trainer."""

import torch
from lightning.pytorch import Callback
from megatron.core.distributed import DistributedDataParallelConfig
from nemo import lightning as nl

from nemo_moslim.baseline_config import PairTrainingConfig
from nemo_moslim.config import SupervisedConfig
from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.layout import next_store
from nemo_moslim.training.optimizer import data_parallel_settings

# Values of nemo/collections/llm/recipes/precision/mixed_precision.py, but for weights, which stay in bf16: initial
# weights, Hugging Face export and the fp32 heads beside them know no FP8 tensors.
FP8_SETTINGS = {
    "delayed": dict(fp8_margin=0, fp8_amax_history_len=1024, fp8_amax_compute_algo="max"),
    "tensorwise": dict(first_last_layers_bf16=True, num_layers_at_start_in_bf16=1, num_layers_at_end_in_bf16=1),
    "blockwise": {},
}


def megatron_strategy(config: SupervisedConfig) -> nl.MegatronStrategy:
    """The layout over this launch's ranks; process groups meet in this process's own store after the first training."""
    parallel = config.parallel
    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_slices,
        sequence_parallel=parallel.sequence,
        pipeline_dtype=torch.float32 if config.precision == "fp32" else torch.bfloat16,
        ddp=supervised_data_parallel(config),
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,
        replace_progress_bar=False,
    )
    strategy.store = next_store()
    return cpu.prepare_strategy(strategy)


def supervised_data_parallel(config: SupervisedConfig) -> DistributedDataParallelConfig:
    """`data_parallel_settings` of a training on NeMo's Trainer.

    Pairs are learnt from the vocabulary layer's weight without its forward pass, in which megatron-core would wait for
    a weight that is gathered ahead.
    """
    return data_parallel_settings(config.optimizer, gather_ahead=not isinstance(config, PairTrainingConfig))


def precision_plugin(precision: str, fp8_recipe: str) -> nl.MegatronMixedPrecision:
    """NeMo's precision plugin for fp32, bf16, or fp8 (bf16 with Transformer Engine's fp8 layers)."""
    if precision == "fp32":
        return nl.MegatronMixedPrecision(precision="32")
    fp8 = dict(fp8="hybrid", fp8_recipe=fp8_recipe, **FP8_SETTINGS[fp8_recipe]) if precision == "fp8" else {}
    return nl.MegatronMixedPrecision(
        precision="bf16-mixed", params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, **fp8
    )


def overlap_callbacks(config: SupervisedConfig) -> list[Callback]:
    """NeMo's overlap of communication and computation on a GPU: tensor parallel as asked for, data parallel as the
    strategy has it, pipeline exchange where the schedule is interleaved."""
    if not torch.cuda.is_available():
        return []
    from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback

    data_parallel = supervised_data_parallel(config)
    overlap = MegatronCommOverlapCallback(
        tp_comm_overlap=config.parallel.tensor_overlap,
        overlap_grad_reduce=data_parallel.overlap_grad_reduce,
        overlap_param_gather=data_parallel.overlap_param_gather,
    )
    return [overlap]
