"""Scores of reward models on answers, and the answers of operating points, through evaluate.py."""

import json

import pytest

from nemo_moslim.baselines.prepare import SCALES
from nemo_moslim.evaluation.score_answers import drawn
from nemo_moslim.run_folder import resolve_checkpoint

LEVELS = {"helpfulness": 5, "honesty": 5, "harmless": 2}
SCHEMA = {name: {"levels": k, "score_range": [1, k], "levels_from": 1} for name, k in LEVELS.items()}


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def scored(trainings, reward_run, rating_dir, tmp_path_factory):
    """The ratings with scores, by two data-parallel ranks."""
    folder = tmp_path_factory.mktemp("scored")
    trainings.train(
        "evaluate", "task=score", f"runs=[{reward_run}]", f"input={rating_dir}", f"output={folder}", ranks=2
    )
    return folder


def test_scores_are_expected_levels(scored, trainings, reward_run, rating_dir):
    checkpoint = str(resolve_checkpoint(reward_run))
    arguments = dict(run_dir=str(reward_run), checkpoint_of=checkpoint, data=str(rating_dir))
    (probabilities,) = trainings.run("head_probabilities", **arguments).results()
    rows, given = lines(scored / "train.jsonl"), lines(rating_dir / "train.jsonl")
    assert [{k: v for k, v in row.items() if k != "scores"} for row in rows] == given
    for row, p in zip(rows, probabilities, strict=True):
        start = 0
        for name, k in LEVELS.items():
            expected = sum(j * p[start + j] for j in range(k)) / (k - 1)
            assert row["scores"][name] == pytest.approx(expected, abs=1e-5)
            start += k
    cost = json.loads((scored / "scores.summary.json").read_text())
    assert cost["ranks"] == 2 and cost["device_seconds"] == pytest.approx(2 * cost["seconds"], abs=0.01)
    assert len(lines(scored / "validation.jsonl")) == 37


def test_a_limit_draws_prompts_with_all_of_their_answers():
    prompts = ["a", " a ", "b", [{"role": "user", "content": "c"}], "b", "d", "a"]
    rows = [{"prompt": prompt, "response": str(index)} for index, prompt in enumerate(prompts)]
    assert drawn(rows, None, 1) == drawn(rows, 7, 1) == rows
    groups, seen = [{"0", "1", "6"}, {"2", "4"}, {"3"}, {"5"}], set()
    for seed in range(20):
        found = [row["response"] for row in drawn(rows, 3, seed)]
        assert found == sorted(found) and 3 <= len(found) <= 5
        assert all(group <= set(found) or not group & set(found) for group in groups)
        seen.add(tuple(found))
    assert len(seen) > 3 and drawn(rows, 3, 7) == drawn(rows, 3, 7)


@pytest.fixture(scope="module")
def answered(trainings, sft_run, reward_run, prompt_dir, tmp_path_factory):
    """Five points of one policy, on one rank and on two."""
    folder = tmp_path_factory.mktemp("points")
    offline = folder / "offline"
    offline.mkdir()
    scale = {"mean": 0.5, "std": 0.25, "low": -2.0, "high": 2.0}
    (offline / "manifest.json").write_text(json.dumps({SCALES: {"helpfulness": scale}}))
    plain = dict(method="m", seed=1, policy=str(sft_run), mixture={}, schema=None, offline=None, on_grid=True)
    weights = {"helpfulness": 0.5, "harmless": 0.5}
    same = {str(sft_run): 0.5, str(sft_run / "checkpoints" / "step=000020"): 0.5}
    points = [
        {**plain, "prefix": "none", "weights": weights},
        {**plain, "prefix": "none", "weights": weights, "policy": None, "mixture": same},
        {**plain, "prefix": "levels", "weights": weights, "schema": SCHEMA},
        {**plain, "prefix": "scores", "weights": weights, "offline": str(offline)},
        {**plain, "prefix": "levels", "weights": None, "schema": SCHEMA},
    ]
    (folder / "points.json").write_text(json.dumps(points))
    arguments = ["task=points", f"points={folder}/points.json", f"data={prompt_dir}/train.jsonl", "grid_prompts=6",
                 f"reward={reward_run}", "judge=reward_model", "generation.max_new_tokens=5", "seed=3"]  # fmt: skip
    for ranks in (1, 2):
        trainings.train("evaluate", *arguments, f"output={folder}/{ranks}", ranks=ranks)
    return folder


def test_points_ask_as_they_should(answered, trainings, sft_run, prompt_dir):
    """Each point's answers are those of generate.py to the prompts as written out here."""
    found, prompts = lines(answered / "1" / "answers.jsonl"), lines(prompt_dir / "train.jsonl")
    assert found == lines(answered / "2" / "answers.jsonl")
    rows = {point: [row for row in found if row["point"] == point] for point in range(5)}
    assert [len(rows[point]) for point in range(5)] == [6, 6, 6, 6, 40]
    assert [row["prompt"] for row in rows[4]] == [row["prompt"] for row in prompts]
    assert [row["preferences"] for row in rows[4]] == [row["preferences"] for row in prompts]
    assert all(row["preferences"] == {} for point in range(4) for row in rows[point])
    # equal shares of the same weights are those weights
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    wanted = {
        0: ("", {}),
        2: ("", {"helpfulness": 5, "harmless": 2}),
        3: ("<helpfulness 2.0> ", {}),
    }
    asked, made = answered / "asked.jsonl", answered / "made.jsonl"
    for point, (prefix, preferences) in wanted.items():
        questions = [{"prompt": prefix + row["prompt"], "preferences": preferences} for row in prompts[:6]]
        asked.write_text("".join(json.dumps(row) + "\n" for row in questions))
        arguments = [f"policy={sft_run}", f"input={asked}", f"output={made}", "generation.max_new_tokens=5", "seed=3"]
        trainings.train("generate", *arguments)
        assert [row["response"] for row in lines(made)] == [row["response"] for row in rows[point]]
    assert json.loads((answered / "made.summary.json").read_text())["answers"] == 6


def test_levels_are_the_judges(answered):
    for row in lines(answered / "1" / "answers.jsonl"):
        assert set(row["levels"]) == set(LEVELS) and all(1 <= row["levels"][n] <= k for n, k in LEVELS.items())


def test_mistakes_are_told_in_one_line(answered, trainings, reward_run, sft_run, rating_dir, prompt_dir, tmp_path):
    points = [f"points={answered}/points.json", f"data={prompt_dir}/train.jsonl", f"output={tmp_path}/o"]
    cases = [
        (["task=points", *points[1:]], "points is not set"),
        (["task=points", *points], "reward is not set"),
        (["task=score", f"input={rating_dir}", f"output={tmp_path}/s"], "task=score needs runs="),
        (["task=score", f"runs=[{reward_run},{reward_run}]", f"input={rating_dir}", f"output={tmp_path}/s"],
         "in more than one of the reward models"),
        (["task=score", f"runs=[{sft_run}]", f"input={rating_dir}", f"output={tmp_path}/s"], "not a reward model"),
    ]  # fmt: skip
    job = trainings.run("call_with_errors", entry="evaluate", cases=[arguments for arguments, _ in cases])
    for (_, expected), found in zip(cases, job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
