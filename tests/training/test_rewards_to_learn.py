"""What the algorithms learn from under each objective, by hand."""

from types import SimpleNamespace

import pytest
import torch

from nemo_moslim.batches import Rollout
from nemo_moslim.policy_config import GDPOObjective, PreferencesObjective, WeightedSumObjective
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.training.objective import rewards_to_learn


def schema(**levels):
    return PreferenceSchema.from_dict({name: {"levels": k, "score_range": [0, 1]} for name, k in levels.items()})


def rollout(parts, fines, groups):
    """The part of a rollout that objectives read."""
    count = len(parts)
    rest = dict(prompts=[""] * count, preferences=[{}] * count, prompt_tokens=[], plain_prompt_tokens=[], answers=[])
    rest |= dict(
        texts=[""] * count,
        finished=None,
        generator_logprobs=[],
        obtained=None,
        asked=None,
        probabilities=None,
        cut_for_scoring=0,
    )
    parts = torch.tensor(parts)
    return Rollout(**rest, groups=torch.tensor(groups), rewards=parts.sum(-1) - torch.tensor(fines), parts=parts)


def test_gdpo_normalises_scores_in_their_groups_and_keeps_fines():
    # Weights 2 and 0.5: parts are weight * score. Scores 0, 1 | 0, 1 and 0, 0 | 0, 4.
    made = rollout([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [2.0, 2.0]], [0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1])
    objective = GDPOObjective("gdpo", {"honesty": 0.5, "helpfulness": 2.0}, 1e-9)
    learnt = rewards_to_learn(made, objective, schema(helpfulness=3, honesty=3))
    # z: -1, 1 | -1, 1 and 0, 0 | -1, 1. Sums -2, 2, -2.5, 2.5: mean 0, deviation sqrt((4 + 6.25) / 2).
    expected = torch.tensor([-2.0, 2.0, -2.5, 2.5]) / 5.125**0.5 - torch.tensor([0.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(learnt.rewards, expected)
    assert learnt.parts is made.parts and made.rewards.tolist() == [0.0, 2.0, -1.0, 4.0]


def test_gdpo_leaves_out_a_dimension_of_weight_zero():
    made = rollout([[0.0, 0.0], [1.0, 0.0]], [0.0, 0.0], [0, 0])
    learnt = rewards_to_learn(made, GDPOObjective("gdpo", {"helpfulness": 1.0}, 1e-9), schema(helpfulness=3, honesty=3))
    torch.testing.assert_close(learnt.rewards, torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("objective", [PreferencesObjective("preferences"), WeightedSumObjective("weighted_sum", None)])
def test_other_objectives_learn_from_the_rewards_as_they_are(objective):
    made = SimpleNamespace(rewards=torch.ones(2))
    assert rewards_to_learn(made, objective, schema(helpfulness=3)) is made
