"""The pieces of a benchmark without a second process: losses, rows, rates, refusals."""

import dataclasses
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.benchmark.contest import Contest, tolerance
from nemo_moslim.benchmark.mfu import model_flops_utilization, round_flops
from nemo_moslim.benchmark.peer_process import UNLABELLED, Round
from nemo_moslim.benchmark.report import ratios, summary
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.functional.classification import encode_labels, per_head_loss

GIVEN = ["what=rm", "output=x.json", "data=d", "tokenizer=t"]


def config(*overrides) -> BenchmarkConfig:
    return parse(compose_config("benchmark", [*GIVEN, *overrides]), BenchmarkConfig)


def contest(**changes) -> Contest:
    """A contest without processes."""
    made = Contest.__new__(Contest)
    usual = {"config": config(), "by_items": False, "differences": {}, "together": None, "tolerance": tolerance("fp32")}
    made.__dict__.update(usual | changes)
    return made


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8), st.integers(0, 99))
def test_the_peers_loss_is_ours(rows, seed):
    from nemo_moslim.benchmark.peer_trainer import head_losses

    logits = torch.randn(len(rows), 5, generator=torch.Generator().manual_seed(seed))
    named = [{name: level for name, level in zip("ab", row, strict=True) if level} for row in rows]
    targets, mask = encode_labels(named, ["a", "b"], [3, 2])
    labels = torch.tensor([[level - 1 if level else UNLABELLED for level in row] for row in rows])
    expected, _ = per_head_loss(logits, targets, mask, [3, 2])
    torch.testing.assert_close(head_losses(logits, labels, [3, 2]), expected, rtol=1e-5, atol=1e-6)


def test_the_peer_pads_on_the_right_and_counts_what_is_real(tmp_path):
    from nemo_moslim.benchmark.peer_trainer import Padding, RatedRows

    file = tmp_path / "rows.npz"
    np.savez(file, tokens=np.array([5, 6, 7, 8, 9]), offsets=np.array([0, 2, 5]), labels=np.array([[0, -100], [2, 1]]))
    rows, padding = RatedRows(file), Padding(pad_id=1)
    batch = padding([rows[0], rows[1]])
    assert len(rows) == 2 and (padding.tokens, padding.rows) == (5, 2)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[0, -100], [2, 1]]


def test_sides_that_differ_are_not_timed():
    one = contest()
    one.compare("loss", [[1.0, 2.0]], [[1.0, 2.00005]])
    assert one.differences["loss"] == pytest.approx(5e-5)
    for theirs in ([1.0, 2.001], [1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="do not compute the same loss"):
            one.compare("loss", [1.0, 2.0], theirs)


def test_bf16_may_differ_by_its_rounding_and_no_more():
    one = contest(tolerance=tolerance("bf16"))
    one.compare("loss", [1.0, 2.0], [1.0, 2.03])
    for theirs in ([1.0, 2.2], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="do not compute the same loss"):
            one.compare("loss", [1.0, 2.0], theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peers_first_loss_is_in_the_tasks_dtype(tmp_path, dtype):
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    from nemo_moslim.benchmark.peer_trainer import RewardTraining, head_losses

    sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1, num_labels=3, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(Qwen2Config(**sizes)).eval()
    model.save_pretrained(tmp_path / "reward")
    np.savez(tmp_path / "rows.npz", tokens=np.array([5, 6, 7]), offsets=np.array([0, 3]), labels=np.array([[2]]))
    task = {"folder": str(tmp_path), "reward": str(tmp_path / "reward"), "levels": [3], "pad_id": 0, "dtype": dtype}
    found = RewardTraining(task).check([0])["loss"]
    rows, label = torch.tensor([[5, 6, 7]]), torch.tensor([[2]])
    with torch.no_grad():
        losses = {
            name: float(head_losses(model.to(getattr(torch, name))(rows).logits, label, [3]))
            for name in ("float32", "bfloat16")
        }
    assert losses["float32"] != losses["bfloat16"] and found == pytest.approx(losses[dtype], abs=1e-7)


def test_trl_loads_policy_and_reference_in_the_tasks_dtype(tmp_path, monkeypatch):
    """With a stand-in for TRL that keeps what it is given."""
    given = {}
    stand_in = ModuleType("trl")
    stand_in.RLOOConfig = lambda folder, **settings: given.update(settings)
    stand_in.RLOOTrainer = lambda **settings: given.update(settings) or SimpleNamespace(train=lambda: None)
    monkeypatch.setitem(sys.modules, "trl", stand_in)
    monkeypatch.delitem(sys.modules, "nemo_moslim.benchmark.peer_rloo", raising=False)
    from nemo_moslim.benchmark import peer_rloo

    monkeypatch.delitem(sys.modules, "nemo_moslim.benchmark.peer_rloo")  # nobody else gets the stand-in
    monkeypatch.setattr(peer_rloo, "Rewards", lambda task, size: None)
    monkeypatch.setattr(peer_rloo, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda *_, **__: None))
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "p", "plain": "p", "asked": [1], "tokens": [1]}]))
    generation = dict(samples=2, max_new_tokens=4, temperature=1.0, top_p=1.0, top_k=0)
    training = dict(answers=4, kl_coef=0.1, clip_ratio=0.2, lr=1e-4, clip_grad=1.0)
    task = {"folder": str(tmp_path), "policy": "POLICY", "dtype": "bfloat16", "generation": generation,
            "training": training, "seed": 1, "steps": 1}  # fmt: skip
    peer_rloo.RLOOSteps(task).rounds({"batch_size": 2, "sorted": True}, None)
    assert given["model"] == "POLICY" and given["model_init_kwargs"]["dtype"] == "bfloat16"


def test_ratios_are_of_rounds_in_the_same_turn():
    """A machine that slows down slows both: 2x in every turn, whatever the turn's speed."""
    ours = [Round(1.0, 1.0, 100, 10), Round(2.0, 1.0, 100, 10), Round(8.0, 1.0, 100, 10)]
    theirs = [Round(2.0, 3.0, 100, 5), Round(4.0, 3.0, 100, 5), Round(16.0, 4.0, 100, 5)]
    by_tokens, by_items = contest(), contest(by_items=True)
    assert ratios(ours, theirs, by_tokens, "seconds") == {"median": 2.0, "lowest": 2.0, "highest": 2.0}
    assert ratios(ours, theirs, by_tokens, "cpu_seconds") == {"median": 3.0, "lowest": 3.0, "highest": 4.0}
    assert ratios(ours, theirs, by_items, "seconds")["median"] == 4.0
    assert summary(ours, by_tokens)["per_second"] == 50.0 and summary(ours, by_items)["per_second"] == 5.0


@pytest.mark.parametrize("rows", [900, 60, 3])
def test_a_turn_takes_all_rows_that_trainer_sorts_together(rows):
    """Trainer's own order: lengths fall inside a turn, and jump up where the next one starts."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from nemo_moslim.benchmark.peer_trainer import steps_of_a_turn

    lengths = list(range(rows))
    found = [lengths[i] for i in get_length_grouped_indices(lengths, 4)]
    turn = 4 * steps_of_a_turn(rows, 4, 1, by_length=True)
    assert turn == {900: 200, 60: 12, 3: 4}[rows]
    for start in range(turn, rows, turn):  # the first turn's and another's longest rows change places
        within = found[start : start + turn]
        assert within[1:] == sorted(within[1:], reverse=True)
        assert found[start] > found[start - 1]
    assert steps_of_a_turn(rows, 4, 7, by_length=False) == 7


def test_batch_sizes_that_do_not_divide_the_step_are_left_out():
    one = contest(config=config("peer_batch_sizes=[4,8,12,24]"), together=24)
    assert one._sizes(1) == [4, 8, 12, 24] and one._sizes(2) == [4, 12]


def test_flops_of_a_7b_model():
    """Qwen2-7B: 6.53 billion weights in its layers (its 7.6 less embedding and vocabulary layer); attention beside."""
    sizes = dict(num_layers=28, hidden_size=3584, ffn_hidden_size=18944, num_attention_heads=28, num_query_groups=4)
    turn = Round(1.0, 1.0, tokens=1, items=1)
    assert round_flops("scoring", sizes, turn, leaves_out=False) / 2 == pytest.approx(6.53e9, rel=0.01)


def test_flops_of_a_turn_by_hand(monkeypatch):
    """Two layers of 36 + 12 + 12 + 36 + 180 weights over rows of 3 and 5 tokens, 6 + 15 pairs of three heads of 2."""
    sizes = dict(
        num_layers=2, hidden_size=6, ffn_hidden_size=10, num_attention_heads=3, num_query_groups=1, vocab_size=7
    )
    turn = Round(seconds=2.0, cpu_seconds=1.0, tokens=8, items=2, pairs=21, read=3)
    layers = 2 * (2 * 276 * 8 + 4 * 6 * 21)
    last = 2 * 180 * (8 - 3)  # the last feed-forward at the 5 positions that are not read
    assert round_flops("scoring", sizes, turn, leaves_out=False) == layers
    assert round_flops("rm", sizes, turn, leaves_out=True) == 3 * (layers - last)
    assert round_flops("logprob", sizes, turn, leaves_out=True) == layers - last + 2 * 6 * 7 * 3
    assert model_flops_utilization("rm", sizes, [turn], "bf16") is None  # no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    bf16, fp8 = (model_flops_utilization("rm", sizes, [turn], p, leaves_out=True) for p in ("bf16", "fp8"))
    assert bf16 == 2 * fp8 == pytest.approx(3 * (layers - last) / 2.0 / 989e12)
    assert model_flops_utilization("generate", sizes, [turn], "bf16") is None


def test_flops_of_a_mixture_count_the_experts_that_a_token_meets():
    """Qwen2-57B-A14B: 14 billion active weights, less the 2 x 0.54 of embedding and vocabulary layer."""
    sizes = dict(num_layers=28, hidden_size=3584, ffn_hidden_size=18944, num_attention_heads=28, num_query_groups=4,
                 num_moe_experts=64, moe_router_topk=8, moe_ffn_hidden_size=2560,
                 moe_shared_expert_intermediate_size=20480)  # fmt: skip
    turn = Round(1.0, 1.0, tokens=1, items=1)
    assert round_flops("scoring", sizes, turn, leaves_out=False) / 2 == pytest.approx(13.1e9, rel=0.02)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("what=rl", "what='rl': expected one of rm, generate"),
        ("against=trl", "against='trl': expected transformers with what=rm"),
        ("tokenizer=null", "tokenizer=None: expected DIR"),
        ("peer_batch_sizes=[]", "peer_batch_sizes"),
        ("rounds=0", "rounds=0"),
    ],
)
def test_settings_that_cannot_run_are_named(override, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        config(override)


def test_a_peer_that_cannot_start_says_why(tmp_path):
    from nemo_moslim.benchmark.peer_process import PeerGroup

    (tmp_path / "task.json").write_text(json.dumps({"what": "generate"}))
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    interpreter.chmod(0o755)
    with pytest.raises(ValueError, match="peer_python=INTERPRETER.*no such module"):
        PeerGroup(str(interpreter), tmp_path, 1, 1)


def test_a_round_is_what_the_slowest_process_took(tmp_path):
    from nemo_moslim.benchmark.peer_process import PeerGroup

    group = PeerGroup.__new__(PeerGroup)
    answers = [
        {"seconds": 2.0, "cpu_seconds": 1.5, "tokens": 30, "items": 3, "pairs": 90, "read": 3},
        {"seconds": 3.0, "cpu_seconds": 2.0, "tokens": 10, "items": 2, "pairs": 20, "read": 2},
    ]
    group.__dict__["ask"] = lambda **_: answers
    assert dataclasses.astuple(group.round()) == (3.0, 3.5, 40, 5, 110, 5)


def test_operator_shares_are_of_the_whole():
    from nemo_moslim.benchmark.operators import shares

    events = [SimpleNamespace(key=name, count=1, self_cpu_time_total=t) for name, t in (("a", 1), ("b", 3), ("c", 0))]
    assert shares(events) == [
        {"operator": "b", "calls": 1, "share": 0.75},
        {"operator": "a", "calls": 1, "share": 0.25},
    ]
