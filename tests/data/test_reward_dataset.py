from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_moslim.data.reward_dataset import RewardDataset, class_weights
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = PreferenceSchema.from_dict(
    {
        "quality": {"levels": 3, "score_range": [1, 3], "levels_from": 1},
        "safety": {"levels": 2, "score_range": [1, 2], "levels_from": 1},
    }
)
RATINGS = [
    {"prompt": "nice name", "response": "good", "labels": {"quality": 3}, "source": "a"},
    {"prompt": "apple", "response": "red and green", "labels": {"quality": 1, "safety": 2}},
    {"prompt": "some fruits", "response": "they are red", "labels": {"safety": [0.25, 0.75]}, "source": "b"},
]


@pytest.fixture
def dataset(encoder):
    return RewardDataset.build(RATINGS, SCHEMA, encoder, 128, "raise", 8, "file")


def test_a_batch_holds_rows_labels_and_last_positions(dataset, encoder):
    batch = dataset.batch(np.array([1, 0]))
    assert batch.targets.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert batch.label_mask.tolist() == [[True, True], [True, False]]
    assert batch.tokens.shape[1] % 8 == 0 and batch.tokens.dtype == torch.int64
    for place, index in enumerate((1, 0)):
        length = dataset.lengths[index]
        assert batch.tokens[place, :length].tolist() == dataset.rows.row(index).tolist()
        assert (batch.tokens[place, length:] == encoder.pad_id).all()
        assert batch.tokens[place, batch.last_index[place]] == encoder.eos_id


def test_what_a_loss_counts(dataset):
    assert dataset.counted == 4  # labelled (row, head) pairs, per_head
    assert replace(dataset, counts_rows=True).counted == 3  # rows, joint and aligned


def test_a_filler_labels_nothing(dataset, encoder):
    batch = dataset.batch(np.array([-1, 2]))
    assert batch.label_mask.tolist() == [[False, False], [False, True]]
    assert batch.targets.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0.25, 0.75]]
    assert (batch.tokens[0] == encoder.pad_id).all() and batch.last_index[0] == 0
    assert not dataset.batch(np.array([-1, -1])).label_mask.any()


def test_dropped_rows_take_their_labels_with_them(encoder):
    long_row = {"prompt": "apple", "response": "red " * 60, "labels": {"quality": 2}, "source": "c"}
    dataset = RewardDataset.build([RATINGS[0], long_row, RATINGS[2]], SCHEMA, encoder, 64, "drop", 8, "file")
    assert len(dataset) == 2 and dataset.rows.dropped == 1
    assert dataset.sources == ["a", "b"]
    assert dataset.targets.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0.25, 0.75]]


def test_class_counts_are_label_mass(dataset):
    assert dataset.class_counts().tolist() == [1, 0, 1, 0.25, 1.75]


def test_class_weights_by_hand():
    counts = torch.tensor([6.0, 3.0, 1.0, 8.0, 2.0])
    # inverse: every class of a head gets the same weight mass, n / (K * count)
    expected = [10 / (3 * 6), 10 / (3 * 3), 10 / 3, 10 / (2 * 8), 10 / (2 * 2)]
    torch.testing.assert_close(class_weights(counts, [3, 2], "inverse"), torch.tensor(expected))
    # inverse square root: count**-0.5 scaled to a mean of 1 over the labels
    raw = np.array([8.0, 2.0]) ** -0.5
    two = class_weights(counts, [3, 2], "inverse_sqrt")[3:]
    np.testing.assert_allclose(two, raw * 10 / (np.sqrt(8) + np.sqrt(2)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["inverse", "inverse_sqrt"])
def test_class_weights_average_to_one_over_each_heads_labels(kind):
    counts = torch.tensor([60.0, 13.0, 1.0, 7.0, 7.0])
    weights = class_weights(counts, [3, 2], kind)
    for head in (slice(0, 3), slice(3, 5)):
        assert (weights[head] * counts[head]).sum() / counts[head].sum() == pytest.approx(1.0)
    assert weights[0] < weights[1] < weights[2] and weights[3] == weights[4]


def test_head_weights_by_hand():
    counts = torch.tensor([6.0, 2.0, 1.0, 1.0])  # heads of 8 and 2 labels: 1/8 and 1/2, mean 1/5 over the 10 labels
    expected = torch.tensor([5 / 8, 5 / 8, 5 / 2, 5 / 2])
    torch.testing.assert_close(class_weights(counts, [2, 2], "none", "inverse"), expected)
    both = class_weights(counts, [2, 2], "inverse", "inverse_sqrt")
    torch.testing.assert_close((both * counts).sum(), counts.sum())
    torch.testing.assert_close(both[2] / both[:2].dot(counts[:2]).div(8), torch.tensor(2.0))  # sqrt(8 / 2)


def test_class_weights_of_an_empty_level_are_refused():
    assert class_weights(torch.tensor([1.0, 0.0]), [2], "none") is None
    with pytest.raises(ValueError, match="class_weights=inverse.*no training row.*class_weights=none"):
        class_weights(torch.tensor([1.0, 0.0]), [2], "inverse")
    # weights of heads alone are finite as long as every head has a label
    weights = class_weights(torch.tensor([3.0, 0.0, 0.0, 1.0]), [2, 2], "none", "inverse")
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2 / 3, 2.0, 2.0]))
    with pytest.raises(ValueError, match="head_weights=inverse: a level has no training row"):
        class_weights(torch.tensor([3.0, 1.0, 0.0, 0.0]), [2, 2], "none", "inverse")
