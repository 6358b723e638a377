"""What is told of a rollout."""

from types import SimpleNamespace

import torch

from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.training.rl_metrics import sample_table


def test_sample_answers_are_shown_as_they_are():
    from rich.console import Console

    schema = PreferenceSchema.from_dict({"harmless": {"levels": 2, "score_range": [0, 1], "levels_from": 1}})
    text = "[/x] [your city]"
    rollout = SimpleNamespace(
        prompts=[text], preferences=[{}], texts=[text], groups=torch.tensor([0]), rewards=torch.tensor([0.5]),
        obtained=torch.tensor([[1]]),
    )  # fmt: skip
    console = Console(width=120)
    with console.capture() as capture:
        console.print(sample_table(rollout, schema, 1, "step 1"))
    assert capture.get().count(text) == 2
