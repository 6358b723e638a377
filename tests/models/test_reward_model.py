"""The head and its sums, without training; whole models are trained in tests/training."""

import math
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.batches import RewardBatch
from nemo_moslim.models.reward_model import (
    PreferenceHead,
    RewardModel,
    confusion_counts,
    macro_f1,
    mapping_statistics,
    reward_sums,
    weights_on,
)
from nemo_moslim.preferences import PreferenceSchema

SCHEMA = PreferenceSchema.from_dict(
    {
        "quality": {"levels": 3, "score_range": [1, 3], "levels_from": 1},
        "safety": {"levels": 2, "score_range": [1, 2], "levels_from": 1},
    }
)
LEVELS = [3, 2]


def config(**changes):
    values = dict(
        schema=SCHEMA, levels=LEVELS, class_weights=None, loss="per_head", label_smoothing=0.0,
        statistics_rows="labelled", std_floor=1e-4,
    )  # fmt: skip
    return types.SimpleNamespace(**values | changes)


def batch_of(labels):
    """A batch whose rows carry these levels (0: unlabelled); tokens do not matter."""
    targets, mask = torch.zeros(len(labels), 5), torch.zeros(len(labels), 2, dtype=torch.bool)
    for row, levels in enumerate(labels):
        for head, (level, offset) in enumerate(zip(levels, (0, 3), strict=True)):
            if level:
                targets[row, offset + level - 1] = 1
                mask[row, head] = True
    tokens = torch.zeros(len(labels), 8, dtype=torch.int64)
    return RewardBatch(tokens, torch.zeros(len(labels), dtype=torch.int64), targets, mask)


def head(seed=1, hidden=8):
    return PreferenceHead(hidden, 5, 0.02, seed, sequence_parallel=False)


def test_head_starts_from_its_seed_alone():
    torch.manual_seed(5)
    first = head().weight
    torch.manual_seed(6)
    assert torch.equal(first, head().weight) and not torch.equal(first, head(seed=2).weight)
    assert first.shape == (5, 8) and first.dtype == torch.float32


@pytest.mark.parametrize("cast", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_casts_leave_head_and_statistics_in_fp32(cast):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), head())
    before = model[1].weight.detach().clone()
    cast(model)
    assert model[0].weight.dtype != torch.float32
    assert torch.equal(model[1].weight, before)
    assert {t.dtype for t in [*model[1].parameters(), *model[1].buffers()]} == {torch.float32}
    logits, bias = model[1](torch.randn(3, 2, 8).to(model[0].weight.dtype))
    assert logits.dtype == torch.float32 and logits.shape == (3, 2, 5) and bias is None


def test_statistics_travel_in_the_state_and_below_the_floor_are_refused():
    source = head()
    source.statistics_mean += 0.5
    source.statistics_variance += 0.04
    target = head(seed=2)
    target.load_state_dict(source.state_dict())
    average, deviation = mapping_statistics(target, config())
    torch.testing.assert_close(average, torch.full((5,), 0.5))
    torch.testing.assert_close(deviation, torch.full((5,), 0.2))
    target.statistics_variance[4] = 0
    with pytest.raises(ValueError, match="safety.*2"):
        mapping_statistics(target, config())


def test_class_weights_multiply_each_labels_term_and_are_copied_to_the_device_once():
    batch, logits = batch_of([(1, 2), (3, 0)]), torch.zeros(2, 5)
    loss, count, _ = reward_sums(logits, batch, config(class_weights=[2.0, 1.0, 0.5, 1.0, 4.0]))
    assert count == 3 and float(loss) == pytest.approx((2 + 0.5) * math.log(3) + 4 * math.log(2))
    with torch.inference_mode():
        first = weights_on(torch.device("cpu"), (1.0, 3.0))
    assert first.tolist() == [1, 3] and not first.is_inference()
    assert weights_on(torch.device("cpu"), (1.0, 3.0)) is first


def test_confusion_by_hand():
    batch = batch_of([(1, 0), (3, 2), (3, 1), (0, 0)])
    logits = torch.tensor([[0, 1, 0, 9, 0], [0, 0, 2, 0, 1], [1, 0, 0, 0, 1], [9, 0, 0, 9, 0]]).float()
    quality, safety = confusion_counts(logits, batch.targets, batch.label_mask, LEVELS)
    assert quality.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert safety.tolist() == [[0, 1], [0, 1]]


def test_macro_f1_by_hand_and_against_scikit_learn():
    from sklearn.metrics import f1_score

    assert macro_f1(torch.tensor([[3.0, 1.0], [2.0, 4.0]])) == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert macro_f1(torch.tensor([[4.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])) == pytest.approx(8 / 9 / 2)
    matrix = torch.tensor([[5.0, 2, 1], [0, 3, 4], [2, 2, 6]])
    pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(int(matrix[i, j]))]
    truth, predicted = zip(*pairs, strict=True)
    assert macro_f1(matrix) == pytest.approx(f1_score(truth, predicted, average="macro"))


@settings(deadline=None, max_examples=30)
@given(
    labels=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=9), cut=st.integers(0, 9),
    loss=st.sampled_from(["per_head", "joint"]), rows=st.sampled_from(["labelled", "all"]),
)  # fmt: skip
def test_sums_are_additive_over_micro_batches_and_fillers(labels, cut, loss, rows):
    settings_ = config(loss=loss, statistics_rows=rows)
    logits = torch.randn(len(labels) + 1, 5, generator=torch.Generator().manual_seed(cut))
    whole = reward_sums(logits[:-1], batch_of(labels), settings_)[2]
    parts = [(logits[:cut], labels[:cut]), (logits[cut:], [*labels[cut:], (0, 0)])]
    if cut > len(labels):
        parts = [(logits, [*labels, (0, 0)])]
    split = sum(reward_sums(scores, batch_of(part), settings_)[2] for scores, part in parts if len(part))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_moments_count_labelled_rows_or_all_rows_with_a_label():
    batch = batch_of([(1, 0), (2, 2), (0, 0), (0, 1)])
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    p = torch.cat([logits[:, :3].softmax(-1), logits[:, 3:].softmax(-1)], -1).double()
    for rows, quality, safety in (("labelled", [0, 1], [1, 3]), ("all", [0, 1, 3], [0, 1, 3])):
        n, s1, s2 = reward_sums(logits, batch, config(statistics_rows=rows))[2][-15:].view(3, 5)
        assert n.tolist() == [len(quality)] * 3 + [len(safety)] * 2
        expected = torch.cat([p[quality, :3].sum(0), p[safety, 3:].sum(0)])
        torch.testing.assert_close(s1, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(s2[3:], p[safety, 3:].square().sum(0), rtol=1e-6, atol=0)


def test_metrics_by_hand_leave_out_heads_without_labels():
    model = RewardModel.__new__(RewardModel)
    model.__dict__["config"] = config()
    sums = torch.zeros(model.sums_size, dtype=torch.float64)
    assert len(sums) == 2 + 9 + 4 + 15
    sums[:2] = torch.tensor([3.0, 4.0])
    sums[2:11] = torch.tensor([[2.0, 1, 0], [0, 0, 0], [0, 0, 1]]).flatten()
    found = model.metrics(sums)
    f1 = (4 / 5 + 0 / 1 + 1) / 3
    expected = {"loss": 0.75, "accuracy/quality": 0.75, "macro_f1/quality": f1, "intensity_accuracy": 0.75}
    assert found == pytest.approx({**expected, "score": (0.75 + f1) / 2})
    assert model.metrics(torch.zeros(30, dtype=torch.float64)) == {"loss": 0.0, "intensity_accuracy": 0.0, "score": 0.0}
