"""`train_dpo.py`: a policy learns from preference pairs on NeMo's Trainer.

The walk: pairs -> PairDataset -> log-probabilities of the reference, once for the fixed data -> PairPolicyModel ->
NeMo's Trainer.
"""

import time
from dataclasses import replace

import numpy as np
import torch

from nemo_moslim.baseline_config import PairTrainingConfig
from nemo_moslim.batches import PairBatch
from nemo_moslim.data.pair_dataset import PairDataset
from nemo_moslim.data.pairs import read_pairs, weighted_margins
from nemo_moslim.models.layer_spec import shares_prompts
from nemo_moslim.models.pair_policy import PairPolicyConfig, PairPolicyModel
from nemo_moslim.models.policy import answer_logprobs, hidden_states_step
from nemo_moslim.parallel.layout import (
    from_last_stage,
    initialize,
    leave_process_group,
    sum_over_data_ranks,
    world_size,
)
from nemo_moslim.parallel.layout_checks import data_parallel_size
from nemo_moslim.rollout.open_model import open_policy
from nemo_moslim.rollout.score import forward_micro_batches, micro_batches_per_pass, rank_batches
from nemo_moslim.training.reference_cache import read_reference, reference_digest, write_reference
from nemo_moslim.training.supervised import SupervisedSetup

SPLITS = ("train", "validation")


def train_pairs(config: PairTrainingConfig) -> None:
    """Train a policy with DPO or MODPO; writes the run directory.

    Raises:
        ValueError: configuration, data or layout that cannot run.
    """
    setup = SupervisedSetup(config)
    vocab_entries = len(setup.encoder.tokenizer)
    datasets, weight = {}, 1.0
    for split, path in zip(SPLITS, setup.data_files(), strict=True):
        pairs, margins = read_pairs(path), None
        if config.loss == "modpo":
            margins, weight = weighted_margins(pairs, config.weights, config.margin_scale, str(path))
        datasets[split] = PairDataset.build(
            pairs,
            margins or [0.0] * len(pairs),
            encoder=setup.encoder,
            origin=str(path),
            share_prompts=shares_prompts(),
            **setup.row_options(),
        )
    logprobs, seconds = reference_logprobs(config, datasets, vocab_entries)
    datasets = {split: replace(datasets[split], ref_logprobs=logprobs[split]) for split in SPLITS}
    model_config = PairPolicyConfig(
        **setup.architecture(tie=True),
        **setup.run_settings(),
        asked=getattr(setup.source.config, "asked", None),
        beta=config.beta,
        weight=weight,
        vocab_entries=vocab_entries,
        logprob_chunk=config.logprob_chunk,
    )
    setup.fit(PairPolicyModel, model_config, *datasets.values(), seconds_before={"reference": seconds})


def reference_logprobs(
    config: PairTrainingConfig, datasets: dict[str, PairDataset], vocab_entries: int
) -> tuple[dict[str, np.ndarray], float]:
    """Of both answers of every pair under the initial policy, fp32 [P, 2] per split, and the seconds it took.

    They are kept in the run directory: a run that resumes need not compute them again.

    Raises:
        ValueError: the run directory holds those of other data or another policy, and checkpoints of a run with them.
    """
    digest = reference_digest(config.model.init, config.precision, datasets)
    if kept := read_reference(config.run_dir, digest):
        return kept
    started = time.perf_counter()
    found = _computed(config, datasets, vocab_entries)
    seconds = time.perf_counter() - started
    write_reference(config.run_dir, digest, found, seconds)
    leave_process_group()
    return found, seconds


def _computed(
    config: PairTrainingConfig, datasets: dict[str, PairDataset], vocab_entries: int
) -> dict[str, np.ndarray]:
    initialize(config.parallel, config.trainer.seed)
    model, _ = open_policy(config.model.init, config.parallel, "fp32" if config.precision == "fp32" else "bf16")
    module, micro_size = model.module, config.batch.micro_size

    def collect(batch: PairBatch, hidden: torch.Tensor) -> dict:
        logprobs = answer_logprobs(module, hidden, batch, vocab_entries, 1.0, config.logprob_chunk)[0]
        return {"pairs": logprobs.sum(-1).view(-1, 2)}

    found = {}
    for split, dataset in datasets.items():
        values = torch.zeros(len(dataset), 2, device="cuda")
        global_size = micro_size * micro_batches_per_pass() * data_parallel_size(config.parallel, world_size())
        for share, batches in rank_batches(dataset, global_size, micro_size):
            kept = forward_micro_batches(module, batches, collect, config.model.max_length, hidden_states_step)
            for pairs, part in zip(share, kept, strict=False):  # nothing is kept before the last stage
                real = torch.from_numpy(pairs >= 0)
                values[torch.from_numpy(pairs)[real]] = part["pairs"][real]
        found[split] = from_last_stage(sum_over_data_ranks(values)).cpu().numpy()
    return found
