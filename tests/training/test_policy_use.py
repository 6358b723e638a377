"""A trained policy through the entry points that use it: export, generation, evaluation of control."""

import json
import shutil

import pytest
import torch


@pytest.fixture(scope="module")
def policy_run(trainings, policy_arguments, tmp_path_factory):
    """A policy after two steps on two tensor-parallel ranks."""
    run = tmp_path_factory.mktemp("policy") / "run"
    trainings.train(
        "train_policy", *policy_arguments, f"run_dir={run}", "algorithm.samples=2", "trainer.max_steps=2",
        "parallel.tensor=2", ranks=2,
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def exported(trainings, policy_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "policy"
    trainings.train("export_hf", f"run={policy_run}", f"output={folder}")
    return folder


def test_the_exported_policy_gives_the_trainers_logprobs(exported, encoder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    text = (exported / "README.md").read_text()
    assert "| helpfulness | `<helpfulness 1>` | `<helpfulness 5>` |" in text and "| harmless |" in text
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor(encoder.encode_prompts(["red apple"]))).logits).all()


def test_greedy_answers_equal_those_of_stock_transformers(trainings, policy_run, exported, encoder, tmp_path):
    """From the run on two ranks and from the exported folder on one."""
    from transformers import AutoModelForCausalLM

    rows = [
        {"prompt": "red apple", "preferences": {"helpfulness": 5, "harmless": 2}},
        {"prompt": "name some nice fruits", "preferences": {}},
        {"prompt": "tell me, {about} [them]", "preferences": {"honesty": 1}, "kept": "as it is"},
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for number, (policy, ranks, layout) in enumerate(((policy_run, 2, ["parallel.tensor=2"]), (exported, 1, []))):
        output = tmp_path / f"answers{number}.jsonl"
        trainings.train(
            "generate", f"policy={policy}", f"input={questions}", f"output={output}", "generation.temperature=0",
            "generation.max_new_tokens=6", *layout, ranks=ranks,
        )  # fmt: skip
        found.append([json.loads(line) for line in output.read_text().splitlines()])
    assert found[0] == found[1] and [{k: v for k, v in row.items() if k != "response"} for row in found[0]] == rows
    model = AutoModelForCausalLM.from_pretrained(exported).eval()
    tags = ["<helpfulness 5><harmless 2> ", "", "<honesty 1> "]
    for row, tag in zip(found[0], tags, strict=True):
        prompt = torch.tensor(encoder.encode_prompts([tag + row["prompt"]]))
        with torch.no_grad():
            made = model.generate(prompt, max_new_tokens=6, do_sample=False, temperature=None, top_p=None, top_k=None)
        assert encoder.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True) == row["response"]


def test_one_prompt_and_every_level(trainings, exported):
    job = trainings.train(
        "generate", f"policy={exported}", "prompt=<harmless 2> red, apple [x]", "compare=helpfulness",
        "generation.max_new_tokens=4",
    )  # fmt: skip
    for level in range(1, 6):
        assert "<harmless 2><helpfulness" in job.output() and f"{level}>" in job.output()


def test_control_is_judged_by_the_reward_model(trainings, policy_run, reward_run, prompt_dir, tmp_path):
    arguments = [
        "task=controllability", f"policy={policy_run}", f"reward={reward_run}", f"data={prompt_dir}/train.jsonl",
        f"train={prompt_dir}/validation.jsonl", "generation.max_new_tokens=6", "untagged=5", "bootstrap_samples=50",
        "every_level=3",
        "long_prompts=cut_left",
    ]  # fmt: skip
    reports = []
    for ranks, layout in ((1, []), (2, [])):
        output = tmp_path / str(ranks)
        trainings.train("evaluate", *arguments, *layout, f"output={output}", ranks=ranks)
        reports.append(json.loads((output / "control.json").read_text()))
        for name in ("control", "control_confusion", "control_pairs"):
            assert (output / f"{name}.png").stat().st_size > 10_000
    assert reports[0] == reports[1]
    report = reports[0]
    asked = [json.loads(line)["preferences"] for line in (prompt_dir / "train.jsonl").read_text().splitlines()]
    assert report["helpfulness"]["n"] == sum("helpfulness" in p for p in asked)
    assert report["overall"]["untagged"]["n"] == sum(not p for p in asked) + 5
    assert report["overall"]["prompts_cut"] == 1 and report["overall"]["cut_for_scoring"] == 0.0  # cut_left
    assert report["overall"]["judge"] == "reward_model" and report["overall"]["unseen"]["n"] > 0
    answers = [json.loads(line) for line in (tmp_path / "1" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 45 and all(1 <= row["levels"]["helpfulness"] <= 5 for row in answers)
    shown = [json.loads(line) for line in (tmp_path / "1" / "every_level.jsonl").read_text().splitlines()]
    levels = [("helpfulness", n) for n in range(1, 6)] + [("honesty", n) for n in range(1, 6)]
    levels += [("harmless", 1), ("harmless", 2)]
    assert [dict([level]) for level in levels] * 3 == [row["preferences"] for row in shown]
    assert [row["prompt"] for row in shown] == [row["prompt"] for row in answers[:3] for _ in levels]


def with_other_token_numbers(run, copy):
    """A copy of a run whose tokenizer has two tokens the other way round."""
    shutil.copytree(run, copy)
    for file in copy.rglob("tokenizer.json"):
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(content))
    return copy


def test_mistakes_are_told_in_one_line(
    trainings, policy_run, exported, reward_run, sft_run, prompt_dir, policy_arguments, tmp_path
):
    rest = [argument for argument in policy_arguments if not argument.startswith("policy=")]
    other = with_other_token_numbers(sft_run, tmp_path / "other")
    train = [*policy_arguments, f"run_dir={tmp_path}/run"]
    settings = (policy_run / "config.yaml").read_text()
    cases = {
        "train_policy": [
            ([*rest, f"policy={reward_run}", f"run_dir={tmp_path}/run"], "a reward model, where a language model"),
            ([*train, f"reward={sft_run}"], "a language model, not a reward model"),
            ([*train, "max_length=20"], "row 1 has"),
            ([*train, "generation.max_new_tokens=90"], "leaves no room for a prompt"),
            ([*train, "algorithm.samples=1"], "algorithm.samples=1"),
            ([*train, "batch.mini_size=5"], "batch.mini_size=5"),
            ([*train, "algorithm=dpo"], "algorithm"),
            ([*rest, f"policy={other}", f"run_dir={tmp_path}/run", "algorithm=ppo"], "numbers tokens otherwise"),
            ([*train, "algorithm.beta=1"], "beta"),
            ([*policy_arguments, f"run_dir={policy_run}", "trainer.seed=77"], "and is 77 now: give another run_dir"),
            ([*train, "generation.stop_tokens=[red apple]"], "generation.stop_tokens=['red apple']: 'red apple' is"),
        ],
        "evaluate": [
            (["task=controllability", f"policy={policy_run}", f"data={prompt_dir}/train.jsonl", f"output={tmp_path}/c"],
             "reward is not set"),
            (["task=controllability", f"policy={policy_run}", f"data={prompt_dir}/train.jsonl", f"output={tmp_path}/c",
              "judge=world"], "are not the world's"),
        ],
        "generate": [
            ([f"policy={policy_run}", "prompt=<helpfulness 9> a"], "level of helpfulness must be in 1..5"),
            ([f"policy={policy_run}", "prompt=a", "compare=beauty"], "unknown dimension 'beauty'"),
            ([f"policy={policy_run}", f"input={prompt_dir}/train.jsonl"], "output"),
            ([f"policy={policy_run}", "input=a", "output=b", "compare=harmless"],
             "compare='harmless': expected no compare"),
            *(
                ([f"policy={policy}", "preferences=datatype2", "prompt=<helpfulness 1> a",
                  "generation.max_new_tokens=8"],
                 "ask for helpfulness in 2 levels, and the policy was trained to follow helpfulness in 5")
                for policy in (policy_run, exported)
            ),
        ],
    }  # fmt: skip
    for entry, wrong in cases.items():
        job = trainings.run("call_with_errors", entry=entry, cases=[arguments for arguments, _ in wrong])
        for (_, expected), found in zip(wrong, job.results()[0], strict=True):
            assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
            assert len(found["stderr"].strip().splitlines()) <= 2, found
    assert not (tmp_path / "c").exists()
    assert (policy_run / "config.yaml").read_text() == settings
