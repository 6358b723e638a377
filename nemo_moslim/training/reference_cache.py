"""Log-probabilities of fixed pairs under the initial policy, kept in the run directory with what they belong to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nemo_moslim.data.pair_dataset import PairDataset
from nemo_moslim.parallel.layout import is_rank_zero
from nemo_moslim.run_folder import is_run, list_checkpoints, resolve_checkpoint

REFERENCE_FILE = "reference_logprobs.npz"


def reference_digest(init: str, precision: str, datasets: Mapping[str, PairDataset]) -> str:
    """Of all that they depend on: the checkpoint or folder that `init` stands for, precision, the pairs' tokens."""
    checkpoint = resolve_checkpoint(init) if is_run(init) else Path(init)
    digest = hashlib.sha256(json.dumps([str(checkpoint.resolve()), precision, list(datasets)]).encode())
    for dataset in datasets.values():
        rows = dataset.rows
        for values in (rows.tokens, rows.offsets, rows.prompt_lengths, dataset.places):
            digest.update(f"{values.dtype} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def read_reference(run_dir: str | Path, digest: str) -> tuple[dict[str, np.ndarray], float] | None:
    """What `write_reference` kept: fp32 [P, 2] per split, and the seconds it took; None where it has to be computed.

    Raises:
        ValueError: the run has checkpoints, and learnt against the log-probabilities of other data or another policy.
    """
    file = Path(run_dir) / REFERENCE_FILE
    if not file.is_file():
        return None
    with np.load(file) as kept:
        found = dict(kept)
    if str(found.pop("digest", "")) == digest:
        return found, float(found.pop("seconds"))
    if list_checkpoints(run_dir):
        raise ValueError(
            f"run_dir={run_dir} learnt against the reference log-probabilities of other data, model.init or precision: "
            f"choose another run_dir for these, or remove {file} to compute them anew and resume"
        )
    return None


def write_reference(run_dir: str | Path, digest: str, logprobs: dict[str, np.ndarray], seconds: float) -> None:
    """Keep log-probabilities for `read_reference`; on rank 0."""
    if not is_rank_zero():
        return
    file = Path(run_dir) / REFERENCE_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}")
    with unfinished.open("wb") as stream:
        np.savez(stream, digest=digest, seconds=seconds, **logprobs)
    unfinished.replace(file)
