"""A policy whose reward model is a service of its own: the same rewards, and no step lost when it goes away."""

import json
import signal

import pytest
from grids import grid
from ports import free_port
from training_client import metrics, steps_done, told_to_end, wait_for

from nemo_moslim.run_folder import list_checkpoints

ROWS = [
    ("red apple", "apple pear they are nice", {"helpfulness": 5}),
    ([{"role": "user", "content": "name some fruits"}], "", {"harmless": 1, "helpfulness": 2}),
    ("tell me about them", "bad " * 60, {"honesty": 3}),
    ("x", "green", {}),
]


def test_rewards_are_those_in_process_in_any_layout(trainings, start_service, reward_run):
    prompts, responses, preferences = map(list, zip(*ROWS, strict=True))
    expected = trainings.run("rewards_in_process", run=str(reward_run), rows=ROWS).results()[0]
    assert expected["cut"] == 1 and any(expected["rewards"]) and expected["rewards"][3] == 0.0
    for ranks, layout in ((1, []), (4, ["parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"])):
        job, url = start_service(*layout, ranks=ranks)
        found = trainings.run("rewards_of_service", url=url, rows=ROWS).results()[0]
        for key in ("rewards", "parts"):  # in the same layout nothing but JSON lies between them
            close = pytest.approx(expected[key], rel=1e-5 if layout else 0, abs=1e-6)
            assert found[key] == close, (layout, key)
        assert found["obtained"] == expected["obtained"] and found["cut"] == 1
        assert told_to_end(trainings, job) == [0] * ranks, job.output()
        assert "everything that waited has been scored" in job.output()


@pytest.fixture(scope="module")
def arguments(policy_arguments):
    """Four steps without a validation in between; everything but run_dir and reward."""
    return [a for a in policy_arguments if not a.startswith("reward=")] + ["algorithm.samples=2"]


@pytest.fixture(scope="module")
def straight(trainings, arguments, reward_run, tmp_path_factory):
    """Run directory of the same training with the reward model in process."""
    run_dir = tmp_path_factory.mktemp("straight")
    trainings.train("train_policy", *arguments, f"reward={reward_run}", f"run_dir={run_dir}")
    return run_dir


def assert_same(run_dir, straight):
    """Every step once, with the rewards of the run in process."""
    rows, expected = metrics(run_dir), metrics(straight)
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == [0, 1, 2, 3, 4]
    for row, other in zip(rows, expected, strict=True):
        for key in ("reward", "loss", "kl", "hit_rate/helpfulness"):
            if key in other:
                assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), (row["step"], key)
    texts = [(folder / "samples.jsonl").read_text().splitlines() for folder in (run_dir, straight)]
    answers = [[json.loads(line)["response"] for line in lines if "response" in line] for lines in texts]
    assert answers[0] == answers[1] and answers[0]


def test_a_service_that_is_killed_and_restarted_loses_and_repeats_nothing(
    trainings, start_service, arguments, straight, tmp_path
):
    port = free_port()
    first, url = start_service(port=port)
    command = [*arguments, f"reward={url}", f"run_dir={tmp_path}"]
    policy = trainings.start("train", ranks=2, entry="train_policy", arguments=command)
    wait_for(lambda: steps_done(tmp_path) >= 2, policy)  # row 0 and a step
    first.signal(signal.SIGKILL)
    trainings.wait(first)
    done = steps_done(tmp_path)
    start_service(port=port)
    assert trainings.wait(policy) == [0, 0], policy.output()
    assert done < 5
    assert_same(tmp_path, straight)


def test_without_its_service_a_training_saves_and_ends(trainings, start_service, arguments, straight, tmp_path):
    port = free_port()
    command = [*arguments, f"run_dir={tmp_path}", "trainer.checkpoint_every=100", f"reward=http://127.0.0.1:{port}"]

    def one_more_step(*more):
        """Run until a step more is done, and take the service away; the training and its last step."""
        service, _ = start_service(port=port)
        rows = max(steps_done(tmp_path), 1) + 1  # the first is of step 0
        policy = trainings.start("train", entry="train_policy", arguments=[*command, *more])
        wait_for(lambda: steps_done(tmp_path) >= rows, policy)
        assert told_to_end(trainings, service) == [0]
        return policy

    policy = one_more_step("reward_patience=1")  # its time is over: saved, an error
    assert trainings.wait(policy) == [1] and "start the service again" in policy.output(), policy.output()
    done = metrics(tmp_path)[-1]["step"]
    assert list_checkpoints(tmp_path)[-1].name == f"step={done:06d}" and 1 <= done < 3

    policy = one_more_step()
    policy.signal(signal.SIGTERM)  # told to stop while it waits: saved, exit code 0
    assert trainings.wait(policy) == [0], policy.output()
    done = metrics(tmp_path)[-1]["step"]
    assert done < 4 and f"stopping at step {done}: told to (SIGTERM)" in policy.output()
    assert json.loads((tmp_path / "summary.json").read_text())["finished"] is False

    start_service(port=port)
    trainings.train("train_policy", *command)
    assert_same(tmp_path, straight)


def test_mistakes_are_told_in_one_line(trainings, start_service, arguments, prompt_dir, reward_run, tmp_path):
    _, url = start_service()
    other = tmp_path / "prompts"
    other.mkdir()
    row = {"prompt": "p", "preferences": {"beauty": 1}, "group": 0}
    (other / "train.jsonl").write_text(json.dumps(row) + "\n")
    rest = [*arguments, f"run_dir={tmp_path}/run"]
    cases = [
        ([*rest, f"reward={url}", f"data={other}"], "beauty"),
        ([*rest, f"reward={url}", "algorithm=ppo"], "the critic starts from that reward model's backbone"),
        ([*rest, f"reward={reward_run}", "algorithm=ppo", "algorithm.critic=service"], "that service holds the critic"),
        (
            [*rest, f"reward={url}", "algorithm=ppo", "algorithm.critic=service"],
            "serve with critic=true critic_dir=DIR",
        ),
        ([*rest, "reward=http://127.0.0.1:1", "reward_patience=0.2"], "reward=http://127.0.0.1:1: GET /model not answ"),
        ([*rest, f"reward=[{url},{reward_run}]"], "one multi-head reward model"),
    ]
    job = trainings.run("call_with_errors", entry="train_policy", cases=[case for case, _ in cases])
    for (_, expected), found in zip(cases, job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"] and "Traceback" not in found["stderr"], found
        assert len(found["stderr"].strip().splitlines()) == 1, found
    port = url.rsplit(":", 1)[1]
    serve = [
        (["run=/nowhere", "port=0"], "neither a run directory"),
        ([f"run={reward_run}", f"port={port}"], "cannot listen there"),
        ([f"run={reward_run}", "limits.request_items=9999"], "at most limits.queue_rows"),
        ([f"run={reward_run}", "critic=true"], "critic_dir=None: expected a folder with critic=true"),
    ]
    job = trainings.run("call_with_errors", entry="serve_reward", cases=[case for case, _ in serve])
    for (_, expected), found in zip(serve, job.results()[0], strict=True):
        assert found["code"] == 2 and expected in found["stderr"], found


@pytest.mark.parametrize("objective", grid(["preferences", "weighted_sum"], "preferences"))
def test_a_step_has_the_rewards_in_process(trainings, start_service, arguments, reward_run, tmp_path, objective):
    """In the same layout nothing but JSON lies between them."""
    _, url = start_service()
    rewards = []
    for number, reward in enumerate((url, reward_run)):
        run_dir = tmp_path / str(number)
        more = [f"objective={objective}", "trainer.max_steps=1", f"reward={reward}", f"run_dir={run_dir}"]
        trainings.train("train_policy", *arguments, *more)
        shown = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
        rewards.append([row["reward"] for row in (*metrics(run_dir), *shown) if "reward" in row])
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6, rel=0)
    assert len(rewards[0]) > 8 and len(set(rewards[0])) > 4
