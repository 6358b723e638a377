"""The reference's log-probabilities are those of this data and this policy, or are computed again."""

from dataclasses import replace

import numpy as np
import pytest

from nemo_moslim.data.encoded_rows import EncodedRows
from nemo_moslim.data.pair_dataset import PairDataset
from nemo_moslim.run_folder import mark_best
from nemo_moslim.training.reference_cache import read_reference, reference_digest, write_reference

FOUND = {"train": np.array([[-1.0, -2.0]], dtype=np.float32)}


def pairs(tokens):
    """One pair, whose answers have two tokens each."""
    rows = EncodedRows(
        np.array(tokens, np.int32), np.array([0, 3, 6]), np.array([1, 1]), np.arange(2), np.zeros(2, dtype=bool), 0
    )
    return {"train": PairDataset(rows, np.array([[0, 1]]), np.zeros(1), np.zeros((1, 2)), 0, 1)}


@pytest.fixture
def init(tmp_path):
    """A run with two checkpoints, the first of them marked."""
    run = tmp_path / "init"
    for name in ("step=000002", "step=000004"):
        for part in ("weights", "context"):
            (run / "checkpoints" / name / part).mkdir(parents=True)
    mark_best(run, "step=000002", "loss", 1.0)
    return run


def test_it_is_read_where_nothing_has_changed(init, tmp_path):
    digest = reference_digest(str(init), "fp32", pairs([1, 2, 3, 1, 4, 5]))
    write_reference(tmp_path / "run", digest, FOUND, 2.5)
    again = reference_digest(f"{init}/checkpoints/../checkpoints/step=000002", "fp32", pairs([1, 2, 3, 1, 4, 5]))
    found, seconds = read_reference(tmp_path / "run", again)
    assert list(found) == ["train"] and (found["train"] == FOUND["train"]).all() and seconds == 2.5


def test_other_data_of_the_same_shape_another_policy_or_precision_is_noticed(init, tmp_path):
    data = pairs([1, 2, 3, 1, 4, 5])
    write_reference(tmp_path, reference_digest(str(init), "fp32", data), FOUND, 1.0)
    shorter = {"train": replace(data["train"], rows=replace(data["train"].rows, offsets=np.array([0, 2, 6])))}
    others = [
        reference_digest(str(init), "fp32", pairs([1, 2, 3, 1, 4, 6])),
        reference_digest(str(init), "fp32", shorter),
        reference_digest(str(init), "bf16", data),
        reference_digest(f"{init}/checkpoints/step=000004", "fp32", data),
    ]
    mark_best(init, "step=000004", "loss", 0.5)
    others.append(reference_digest(str(init), "fp32", data))
    assert [read_reference(tmp_path, digest) for digest in others] == [None] * 5
    (tmp_path / "checkpoints" / "step=000002" / "weights").mkdir(parents=True)
    with pytest.raises(ValueError, match="of other data, model.init or precision: choose another run_dir"):
        read_reference(tmp_path, others[0])


def test_one_that_does_not_tell_what_it_belongs_to_is_not_believed(tmp_path):
    np.savez(tmp_path / "reference_logprobs.npz", seconds=1.0, **FOUND)
    assert read_reference(tmp_path, "digest") is None
