"""What is told of a rollout."""

from types import SimpleNamespace

import pytest
import torch

from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.training.rl_metrics import mismatch_sums, sample_table


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


def test_the_mismatch_is_of_the_answers_that_count():
    batch = SimpleNamespace(
        old_logprobs=torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]),
        response_mask=torch.tensor([[True, True], [False, False]]),
    )
    sums = mismatch_sums(torch.tensor([[-1.5, -1.75], [-9.0, -9.0]]), batch)
    assert {name: float(value) for name, value in sums.items()} == {"mismatch": 0.75, "mismatch_max": 0.5}


@pytest.mark.parametrize(("sums", "tokens"), [({"count": 4.0}, 4), ({"count": 2.0, "tokens": 5.0}, 5)])
def test_a_steps_mismatch_is_its_first_updates(sums, tokens):
    from nemo_moslim.training.rl_metrics import update_metrics

    rest = {"loss": 1.0, "entropy": 1.0, "grad_norm": 1.0, "ratio_deviation_max": 0.1, **sums}
    first, second = rest | {"mismatch": 0.75, "mismatch_max": 0.5}, rest | {"mismatch": 9.0, "mismatch_max": 9.0}
    metrics = update_metrics([second, first], first)
    assert metrics["mismatch"] == 0.75 / tokens and metrics["mismatch_max"] == 0.5
