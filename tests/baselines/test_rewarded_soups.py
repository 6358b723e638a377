"""Policies mixed by their weights: tensor by tensor, in any layout, and used like any run."""

import json
from types import SimpleNamespace

import pytest
import torch
from training_client import weights

from nemo_moslim.run_folder import resolve_checkpoint


@pytest.fixture(scope="module")
def other_run(trainings, sft_run, sft_dir, tiny_model, tmp_path_factory):
    """A policy that went on from the language model for five steps."""
    run = tmp_path_factory.mktemp("other")
    trainings.train("train_sft", f"model.init={sft_run}", f"data={sft_dir}", *tiny_model, "trainer.max_steps=5",
                    "trainer.seed=7", f"run_dir={run}")  # fmt: skip
    return run


@pytest.fixture(scope="module")
def soups(trainings, sft_run, other_run, tmp_path_factory):
    """Mixtures made on one rank, on two tensor-parallel and on two pipeline-parallel ranks."""
    folder = tmp_path_factory.mktemp("soups")
    layouts = {"one": (1, []), "tensor": (2, ["parallel.tensor=2"]), "pipeline": (2, ["parallel.pipeline=2"])}
    for layout, (ranks, settings) in layouts.items():
        runs = [
            ["merge", [f"runs=[{sft_run},{other_run}]", f"weights=[{a},{1 - a}]", f"output={folder}/{layout}-{a}"]]
            for a in (1.0, 0.25)
        ]
        trainings.run("train_several", ranks=ranks, runs=[[e, [*arguments, *settings]] for e, arguments in runs])
    return folder


def model_weights(run):
    return {k: v for k, v in weights(resolve_checkpoint(run)).items() if not k.startswith("optimizer")}


def test_every_tensor_is_the_weighted_sum(soups, sft_run, other_run):
    first, second = model_weights(sft_run), model_weights(other_run)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for layout in ("one", "tensor", "pipeline"):
        mixed = model_weights(soups / f"{layout}-0.25")
        assert mixed.keys() == first.keys()
        for name in mixed:
            expected = 0.25 * first[name].double() + 0.75 * second[name].double()
            torch.testing.assert_close(mixed[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_all_of_one_policy_is_that_policy_to_the_bit(soups, sft_run):
    first = model_weights(sft_run)
    for layout in ("one", "tensor", "pipeline"):
        assert all(torch.equal(tensor, first[name]) for name, tensor in model_weights(soups / f"{layout}-1.0").items())


def test_a_soup_answers(trainings, soups, sft_run, tmp_path):
    """All of one policy answers like it."""
    (tmp_path / "questions.jsonl").write_text('{"prompt": "red apple"}\n{"prompt": "name some nice fruits"}\n')
    answers = {}
    for name, policy in (("soup", soups / "tensor-1.0"), ("policy", sft_run)):
        trainings.train("generate", f"policy={policy}", f"input={tmp_path}/questions.jsonl",
                        f"output={tmp_path}/{name}.jsonl", "generation.max_new_tokens=6")  # fmt: skip
        answers[name] = [json.loads(line)["response"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert answers["soup"] == answers["policy"] and any(answers["soup"])


def test_runs_mix_with_hugging_face_folders(tmp_path):
    """A folder of a dense model says nothing of experts, where a run holds defaults that nothing reads."""
    from nemo_moslim.baselines.rewarded_soups import check_alike

    (tmp_path / "tokenizer.json").write_text("{}")

    def source(**architecture):
        return SimpleNamespace(config=None, tokenizer_folder=tmp_path, architecture=architecture)

    defaults = dict(moe_router_topk=2, moe_router_pre_softmax=False, moe_ffn_hidden_size=None)
    run, folder = source(num_layers=2, num_moe_experts=None, **defaults), source(num_layers=2, num_moe_experts=None)
    check_alike(["run", "folder"], [run, folder])
    check_alike(["folder", "run"], [folder, run])
    mixture = source(num_layers=2, num_moe_experts=4, moe_router_topk=2)
    for pair in ([folder, mixture], [mixture, folder], [run, mixture]):
        with pytest.raises(ValueError, match="runs: b has num_moe_experts=.*, a has .*: only equal architectures mix"):
            check_alike(["a", "b"], pair)
    wider = source(num_layers=2, num_moe_experts=4, moe_router_topk=2, moe_shared_expert_intermediate_size=8)
    with pytest.raises(ValueError, match="b has moe_shared_expert_intermediate_size=8, a has None"):
        check_alike(["a", "b"], [mixture, wider])


def test_what_does_not_mix_is_refused(
    trainings, sft_run, reward_run, soups, sft_dir, tokenizer_dir, tiny_model, tmp_path
):
    wide = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", *tiny_model, "trainer.max_steps=1", "model.num_layers=4"]
    trainings.train("train_sft", *wide, f"run_dir={tmp_path}/deep")
    cases = {
        (f"runs=[{sft_run},{reward_run}]", "weights=[0.5,0.5]"): "is a reward model",
        (f"runs=[{sft_run},{tmp_path}/deep]", "weights=[0.5,0.5]"): "has num_layers=4",
        (f"runs=[{sft_run},{sft_run}]", "weights=[0.5,0.6]"): "sum to 1, got 1.1",
        (f"runs=[{sft_run},{sft_run}]", "weights=[1.5,-0.5]"): "expected values of 0 or above",
        (f"runs=[{sft_run}]", "weights=[0.5,0.5]"): "expected one for each of the 1 runs",
    }
    arguments = [[*case, f"output={tmp_path}/soup"] for case in cases]
    arguments.append([f"runs=[{sft_run}]", "weights=[1.0]", f"output={soups}/one-1.0"])
    job = trainings.run("call_with_errors", entry="merge", cases=arguments)
    for expected, found in zip([*cases.values(), "a run with checkpoints"], job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
    assert not (tmp_path / "soup").exists()
