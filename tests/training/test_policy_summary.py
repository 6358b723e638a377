"""summary.json of a policy run."""

import json
from types import SimpleNamespace

import torch

from nemo_moslim.data.prompt_dataset import PromptDataset


def test_peak_memory_is_the_largest_of_all_ranks_and_a_run_without_a_step_has_a_summary(monkeypatch, tmp_path):
    from nemo_moslim.training import telemetry, train_policy

    def other_rank_has_more(values, op, group=None):
        assert group is None and op == torch.distributed.ReduceOp.MAX  # the whole launch
        values.fill_(7.5)

    factory = torch.tensor
    monkeypatch.setattr(telemetry.torch, "tensor", lambda values, device: factory(values))  # no device here
    monkeypatch.setattr(torch.distributed, "all_reduce", other_rank_has_more)
    prompts = PromptDataset(["a", "b"], [{}] * 2, [], [], cut=1, dropped=3)
    training = SimpleNamespace(step=0, train=prompts, validation=None)
    train_policy.write_summary(SimpleNamespace(run_dir=str(tmp_path)), training, finished=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["peak_memory_gigabytes_per_rank"] == 7.5
    assert summary["steps"] == 0 and summary["finished"] is False and summary["train"] == {}
    assert summary["prompts"] == {"train": {"used": 2, "cut": 1, "dropped": 3}, "validation": None}
