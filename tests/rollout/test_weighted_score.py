"""Several reward models as one scorer: whose dimension is whose, weights by name."""

import pytest
import torch

from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.weighted_score import WeightedScorer, weight_vector


def schema(**levels):
    return PreferenceSchema.from_dict({name: {"levels": k, "score_range": [0, 1]} for name, k in levels.items()})


class Model:
    """A reward model that answers fixed probabilities; `events` are what was asked of all of them, in order."""

    events = []

    def __init__(self, rows, cut, **levels):
        self.schema, self.rows, self.cut = schema(**levels), torch.tensor(rows), torch.tensor(cut)

    def start(self, prompts, responses):
        assert prompts == ["p", "p"] and responses == ["a", "b"]
        self.events.append("started")

        def found():
            self.events.append("waited for")
            return self.rows, self.cut

        return found


TWO_HEADS = Model([[0.0, 0.0, 1.0, 0.2, 0.8], [0.5, 0.5, 0.0, 1.0, 0.0]], [False, True], helpfulness=3, harmless=2)
ONE_HEAD = Model([[1.0, 0.0, 0.0], [0.0, 0.4, 0.6]], [True, True], honesty=3)


def test_scores_of_two_models_by_hand(monkeypatch):
    monkeypatch.setattr(Model, "events", [])
    scorer = WeightedScorer([TWO_HEADS, ONE_HEAD], {"honesty": 2.0, "helpfulness": 0.5})
    assert scorer.schema.names == ("helpfulness", "harmless", "honesty")
    started = scorer.start(["p", "p"], ["a", "b"], [{"helpfulness": 1}, {}])  # what is asked for does not matter
    assert Model.events == ["started"] * 2  # of two services both score
    scores = started()
    # helpfulness 1, 1/4; harmless 0.8, 0 with weight 0; honesty 0, 0.8
    torch.testing.assert_close(scores.parts, torch.tensor([[0.5, 0.0, 0.0], [0.125, 0.0, 1.6]]))
    torch.testing.assert_close(scores.rewards, torch.tensor([0.5, 1.725]))
    assert scores.obtained.tolist() == [[3, 2, 1], [1, 1, 3]] and scores.cut == 2


def test_without_weights_all_count_alike():
    assert weight_vector(None, ["a", "b", "c"]).tolist() == pytest.approx([1 / 3] * 3)
    assert weight_vector({"b": 2}, ["a", "b"]).tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("models", "weights", "message"),
    [
        ([TWO_HEADS, TWO_HEADS], None, "harmless, helpfulness is in more than one of the reward models"),
        ([Model([[1.0]], [False], honesty=1)], None, "honesty has one level"),
        ([ONE_HEAD], {"beauty": 1.0}, "objective.weights: 'beauty' is no dimension of the reward models; they have h"),
    ],
)
def test_models_and_weights_that_do_not_fit_are_refused(models, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedScorer(models, weights)
