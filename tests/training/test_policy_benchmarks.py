"""Benchmarks and judges through evaluate.py, with a tiny policy, a tiny reward model and a server on this machine."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from made_rows import write_rows

for folder in ("evaluation", "judging"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from benchmark_rows import write_benchmarks, write_judgments  # noqa: E402
from judge_server import JudgeServer, says  # noqa: E402


@pytest.fixture(scope="module")
def server():
    running = JudgeServer(says('{"reason": "so so", "score": 1}'))
    yield running
    running.close()


@pytest.fixture(scope="module")
def arguments(sft_run, tmp_path_factory):
    """evaluate task=benchmarks on every layout, without a judge and an output."""
    files = write_benchmarks(tmp_path_factory.mktemp("questions"))
    return ["task=benchmarks", f"policy={sft_run}", *(f"benchmarks.{name}={file}" for name, file in files.items()),
            "generation.max_new_tokens=6", "generation.batch_size=3", "bootstrap_samples=50", "long_prompts=cut_left",
            "asked={helpfulness: 4}"]  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def by_reward_model(trainings, arguments, reward_run, tmp_path_factory):
    """Judged by the reward model on one rank and on two."""
    outputs = []
    for ranks in (1, 2):
        outputs.append(tmp_path_factory.mktemp("ranks") / str(ranks))
        trainings.train(
            "evaluate", *arguments, "judge=reward_model", f"reward={reward_run}", f"output={outputs[-1]}", ranks=ranks
        )
    return outputs


def test_the_reward_model_judges_alike_on_any_ranks(by_reward_model):
    one, two = ({k: v for k, v in json.loads((o / "benchmarks.json").read_text()).items()} for o in by_reward_model)
    assert one == two
    assert list(one["benchmarks"]) == ["mt_bench", "halueval", "hackaprompt", "prompt_injection", "harmful", "prompts"]
    mt_bench = one["benchmarks"]["mt_bench"]
    assert (mt_bench["questions"], mt_bench["answers"]) == (3, 6)
    assert 1 <= mt_bench["scores"]["helpfulness"]["overall"]["mean"] <= 5
    assert set(mt_bench["scores"]["helpfulness"]["groups"]["category"]) == {"math", "writing"}
    assert one["benchmarks"]["hackaprompt"]["attack_success"]["overall"]["n"] == 2
    assert 0 <= one["benchmarks"]["harmful"]["scores"]["harmless"]["overall"]["mean"] <= 1
    output = by_reward_model[0]
    judged = lines(output / "judgments" / "mt_bench.jsonl")
    second = next(row for row in judged if row["key"] == "1" and row["turn"] == 2)
    assert second["prompt"][1]["content"] == next(r for r in judged if r["key"] == "1")["response"]
    assert second["asked"] == {"helpfulness": 4}
    assert [r["asked"] for r in lines(output / "judgments" / "harmful.jsonl")] == [
        {"helpfulness": 4, "harmless": 1}, {"helpfulness": 4, "harmless": 2},
    ]  # fmt: skip
    (fastchat,) = (output / "fastchat").iterdir()
    assert [row["question_id"] for row in lines(fastchat)] == [1, 2, 3]
    assert lines(fastchat)[0]["choices"][0]["turns"][1] == second["response"]


def test_answers_are_used_again_with_another_judge(trainings, by_reward_model, arguments, server):
    """No policy is loaded, no answer made, and the second time no request sent."""
    output = by_reward_model[0]
    first = (output / "benchmarks.json").read_bytes()
    before = {path: path.read_bytes() for path in (output / "answers").iterdir()}
    endpoint = ["judge=endpoint", f"endpoint.url={server.url}", "endpoint.model=m", "endpoint.key_env=null",
                "dimensions=[harmless]"]  # fmt: skip
    job = trainings.train("evaluate", *arguments, *endpoint, f"output={output}")
    assert "answered in" not in job.output()
    assert {path: path.read_bytes() for path in (output / "answers").iterdir()} == before
    report = json.loads((output / "benchmarks.json").read_text())
    assert {r["scores"]["harmless"]["overall"]["mean"] for r in report["benchmarks"].values()} == {1.0}
    sent = len(server.requests)
    assert report["judge"]["requests"] == sent > 10
    trainings.train("evaluate", *arguments, *endpoint, f"output={output}")
    again = json.loads((output / "benchmarks.json").read_text())
    assert len(server.requests) == sent and again["judge"]["requests"] == 0
    assert again["benchmarks"] == report["benchmarks"]
    (kept,) = (output / "judged_by").iterdir()  # by the reward model; twice the same judge is no other one
    assert (kept / "benchmarks.json").read_bytes() == first and (kept / "judgments" / "mt_bench.jsonl").is_file()


def test_a_service_judges_as_the_model_in_process(trainings, by_reward_model, arguments, start_service, tmp_path):
    job, url = start_service()
    in_process = by_reward_model[1]  # two ranks; the other output has met another judge
    shutil.copytree(in_process / "answers", tmp_path / "answers")
    trainings.train("evaluate", *arguments, "judge=reward_model", f"reward={url}", f"output={tmp_path}")
    files = sorted(path.name for path in (tmp_path / "judgments").iterdir())
    assert len(files) == 6
    for name in files:
        rows, expected = (lines(folder / "judgments" / name) for folder in (tmp_path, in_process))
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys() and row["response"] == other["response"]
            scores = {key: value for key, value in other.items() if isinstance(value, float)}
            assert scores and {key: row[key] for key in scores} == pytest.approx(scores, abs=1e-6, rel=0)
    judge = json.loads((tmp_path / "benchmarks.json").read_text())["judge"]
    assert judge["reward"] == url and judge["model"] == re.search(r"\(model (\w+),", job.output()).group(1)


def test_a_service_with_another_model_is_another_judge(trainings, by_reward_model, arguments, tmp_path):
    """At the same address; one that changes while it judges ends the run, and what there was stays."""

    def scored(handler, body, model):
        heads = {"helpfulness": [0.5, 0.5, 0, 0, 0], "honesty": [1, 0, 0, 0, 0], "harmless": [0, 1]}
        handler.send(json.dumps({"items": [{"probabilities": heads}] * len(body["items"]), "model": model}))

    shutil.copytree(by_reward_model[1] / "answers", tmp_path / "answers")
    service = JudgeServer(partial(scored, model="m-3"))
    service.script = [partial(scored, model=model) for model in 6 * ["m-1"] + 7 * ["m-2"]]
    case = [*arguments, "judge=reward_model", f"reward={service.url}", f"output={tmp_path}"]
    found = trainings.run("call_with_errors", entry="evaluate", cases=[case] * 3).results()[0]
    service.close()
    assert [run["code"] for run in found] == [0, 0, 2] and len(service.requests) == 14  # a batch a benchmark
    assert "serves another model (m-3) than at first (m-2)" in found[2]["stderr"]
    (kept,) = (tmp_path / "judged_by").iterdir()
    reports = [json.loads((folder / "benchmarks.json").read_text())["judge"] for folder in (kept, tmp_path)]
    assert [judge["model"] for judge in reports] == ["m-1", "m-2"]
    assert len(list((kept / "judgments").iterdir())) == 6


def test_the_reward_model_against_given_scores(trainings, reward_run, tmp_path):
    """Answers that are alike get the same score, and were given 3 and 8: no agreement."""
    write_judgments(tmp_path / "given.jsonl")
    trainings.train(
        "evaluate", "task=judge_agreement", f"data={tmp_path}/given.jsonl", "judge=reward_model",
        f"reward={reward_run}", f"output={tmp_path}", "bootstrap_samples=50",
    )  # fmt: skip
    report, rows = json.loads((tmp_path / "agreement.json").read_text()), lines(tmp_path / "judgments.jsonl")
    assert (report["n"], report["rows_without_score"], report["judge"]["reward"]) == (8, 1, str(reward_run))
    assert [row["given"] for row in rows] == [3.0] * 4 + [8.0] * 4
    one, _, two, _ = scores = [row["helpfulness"] for row in rows[:4]]
    assert scores == pytest.approx([one, one, two, two], abs=1e-6) and 1 <= one != two <= 5
    assert [row["helpfulness"] for row in rows[4:]] == pytest.approx(scores, abs=1e-6)
    assert report["kappa"]["value"] == pytest.approx(0, abs=1e-9) and (tmp_path / "agreement.png").is_file()


def test_a_limit_and_an_exported_policy_keep_the_answers(trainings, by_reward_model, arguments, sft_run, tmp_path):
    """Fewer questions, another batch, the policy from a Hugging Face folder: the same answers."""
    trainings.train("export_hf", f"run={sft_run}", f"output={tmp_path}/exported")
    exported = [f"policy={tmp_path}/exported", *(a for a in arguments if not a.startswith("policy="))]
    trainings.train(
        "evaluate", *exported, "limit=1", "generation.batch_size=1", "judge=scripted", f"output={tmp_path}",
        f"scripted={by_reward_model[0]}/judgments/harmful.jsonl",
    )  # fmt: skip
    for path in (tmp_path / "answers").iterdir():
        whole = {(r["key"], r["turn"]): r["response"] for r in lines(by_reward_model[0] / "answers" / path.name)}
        rows = lines(path)
        assert rows and all(whole[row["key"], row["turn"]] == row["response"] for row in rows)
    report = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    assert report["harmful"]["scores"]["harmless"]["verdicts"]["scored"] == 1
    assert report["halueval"]["scores"]["honesty"]["verdicts"]["missing"] == 1


def test_the_reward_model_and_a_judge_as_annotators(trainings, reward_run, rating_dir, server, tmp_path):
    trainings.train(
        "evaluate", "task=judge_agreement", f"data={rating_dir}/validation.jsonl", f"reward={reward_run}",
        "judge=endpoint", f"endpoint.url={server.url}", "endpoint.model=m", "endpoint.key_env=null", "limit=20",
        f"output={tmp_path}", "bootstrap_samples=50",
    )  # fmt: skip
    report = json.loads((tmp_path / "agreement.json").read_text())
    labels = [row["labels"] for row in lines(tmp_path / "judgments.jsonl")]
    for name in ("helpfulness", "honesty", "harmless"):
        entry = report["dimensions"][name]
        assert entry["labelled"] == entry["n"] == sum(name in row for row in labels)
        lowest = sum(row.get(name) == (2 if name == "harmless" else 1) for row in labels)  # what the server says
        assert entry["annotators"]["endpoint"]["accuracy"]["value"] == pytest.approx(lowest / entry["n"])
    assert report["annotators"]["endpoint"]["model"] == "m" and (tmp_path / "agreement.png").stat().st_size > 10_000


def test_mistakes_are_told_in_one_line(trainings, arguments, reward_run, rating_dir, tmp_path):
    judged = [*arguments, f"output={tmp_path}/a"]
    write_rows(tmp_path / "bad.jsonl", [{"category": "x", "turns": "no list"}])
    agreement = ["task=judge_agreement", f"data={rating_dir}/validation.jsonl", f"output={tmp_path}/b"]
    cases = [
        (judged, "judge is not set"),
        ([*judged, "judge=gpt4"], "judge='gpt4'"),
        ([*judged, "judge=endpoint"], "endpoint.model is not set"),
        ([*judged, "judge=endpoint", "endpoint.model=m", "endpoint.key_env=NO_SUCH_KEY"], "NO_SUCH_KEY"),
        ([*judged, "judge=reward_model"], "reward is not set"),
        ([*judged, "judge=scripted"], "scripted is not set"),
        ([*judged, "judge=world", "asked={helpfulness: 9}"], "level must be an integer in 1..5"),
        ([*judged, "judge=world", "dimensions=[beauty]"], "dimensions='beauty'"),
        ([*judged, "judge=world", f"benchmarks.mt_bench={tmp_path}/bad.jsonl"], "bad.jsonl:1: turns is not a list"),
        ([*judged, "judge=world", f"benchmarks.mt_bench={tmp_path}/none.jsonl"], "no such file"),
        ([*judged, "judge=world", "policy=/nowhere"], "/nowhere"),
        (["task=grade", "judge=endpoint"], "judge='endpoint': expected world or reward_model"),
        ([*agreement, "judge=endpoint"], "compares two annotators"),
        ([*agreement, "judge=reward_model", f"reward={reward_run}"], "compares two annotators"),
    ]
    job = trainings.run("call_with_errors", entry="evaluate", cases=[arguments for arguments, _ in cases])
    for (_, expected), found in zip(cases, job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
        assert found["stderr"].count("\n") == 1, found
