"""What the loop does around its steps, with steps, models and ranks that stand in."""

import contextlib
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.data.prompt_dataset import PromptDataset
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.remote_score import RemoteScorer, RewardService, ServiceUnavailable

STEP = {"answers": 4, "tokens": 8}


class Log:
    """Rows as they are written, among the other `events`."""

    def __init__(self, events):
        self.events = events

    def write(self, row):
        self.events.append(("row", row["step"], "validation" in row))

    def phase(self, name):
        pass

    def close(self):
        pass


@pytest.fixture
def make(monkeypatch):
    """make(**settings): a training whose steps do nothing, and the list of what it writes and saves, in order."""
    from nemo_moslim.clock import Clock
    from nemo_moslim.training import rl_loop

    def made(**settings):
        events = []
        loop = object.__new__(rl_loop.PolicyTraining)
        trainer = dict(max_steps=3, validate_every=2, checkpoint_every=100, keep_checkpoints=2) | settings
        loop.config = SimpleNamespace(run_dir="run", trainer=SimpleNamespace(**trainer))
        loop.step, loop.models, loop.contexts, loop.critic, loop.validation = 0, {}, {}, None, None
        loop.start = {"policy": "p"}
        loop.algorithm, loop.clock, loop.log = SimpleNamespace(config=SimpleNamespace()), Clock(), Log(events)
        loop.stop = SimpleNamespace(told=False, listen=lambda: None)

        def train_step():
            loop.clock.seconds["generation"] = 0.5
            return dict(STEP)

        def write(run_dir, step, *rest):
            events.append(("written", step))
            return step

        loop.train_step, loop._validate = train_step, lambda: {"reward": 1.0}
        monkeypatch.setattr(rl_loop, "any_rank", bool)
        monkeypatch.setattr(rl_loop, "list_checkpoints", lambda run_dir: [])
        monkeypatch.setattr(rl_loop, "write_checkpoint", write)
        monkeypatch.setattr(rl_loop, "publish_checkpoint", lambda step: events.append(("found", step)))
        monkeypatch.setattr(rl_loop, "keep_best", lambda run_dir, step, value: events.append(("best", step)))
        monkeypatch.setattr(rl_loop, "remove_old_checkpoints", lambda *_: events.append(("old removed",)))
        return loop, events

    return made


def test_a_checkpoint_is_found_once_its_row_and_mark_are_written(make):
    loop, events = make()
    assert loop.run()
    second = [("written", 2), ("row", 2, True), ("best", 2), ("found", 2), ("old removed",)]
    # the last step is validated too: it may be the best
    third = [("written", 3), ("row", 3, True), ("best", 3), ("found", 3), ("old removed",)]
    assert events == [("row", 1, False), *second, *third]


@pytest.mark.parametrize("told", [False, True])
def test_a_service_that_is_away_during_a_validation_costs_no_step(make, told):
    loop, events = make()

    def away():
        loop.stop.told = told
        raise ServiceUnavailable("no answer for too long")

    loop._validate = away
    if told:  # SIGTERM while it waits
        assert loop.run() is False
    else:
        with pytest.raises(ServiceUnavailable):
            loop.run()
    assert loop.step == 2
    assert events == [("row", 1, False), ("written", 2), ("row", 2, False), ("found", 2), ("old removed",)]


@pytest.mark.parametrize("refusal", ["Refused", "ServiceError", "ServiceUnavailable"])
def test_a_step_that_its_service_refuses_leaves_the_last_one_saved(make, refusal):
    from nemo_moslim.rollout import remote_score

    loop, events = make(validate_every=100)
    step = loop.train_step

    def refused():
        if loop.step == 1:
            raise remote_score.Refused("no", 401) if refusal == "Refused" else getattr(remote_score, refusal)("no")
        return step()

    loop.train_step = refused
    with pytest.raises(ValueError, match="no"):
        loop.run()
    assert events == [("row", 1, False), ("written", 1), ("found", 1), ("old removed",)]


@pytest.mark.parametrize(("target", "used"), [(None, 0.05), (2.0, 0.7)])
def test_a_resumed_kl_coef_is_the_controllers_or_the_configured_one(make, monkeypatch, tmp_path, target, used):
    from nemo_moslim.training import rl_loop

    loop, _ = make()
    loop.algorithm = SimpleNamespace(kl_coef=0.05, config=SimpleNamespace(kl_target=target))
    monkeypatch.setattr(rl_loop, "list_checkpoints", lambda run_dir: [tmp_path])
    monkeypatch.setattr(rl_loop, "load_checkpoint", lambda *_: {"step": 4, "kl_coef": 0.7})
    assert loop._resume() == 4 and loop.algorithm.kl_coef == used
    assert loop._state() == {"kl_coef": used if target else None, "start": {"policy": "p"}}


def test_a_resumed_critic_learns_at_the_configured_rate(monkeypatch):
    from nemo_moslim.training import critic

    rates, used = [], []
    model = SimpleNamespace(settings=SimpleNamespace(lr=3e-4), set_rate=rates.append)
    monkeypatch.setattr(critic, "critic_update", lambda *_: used.append(rates[-1]))
    critic.LocalCritic(model, head=None).learn([[], []], [[1, 0]], step=7)
    assert used == [3e-4, 3e-4]


PASSES = ["log-probabilities", "reference"]
SERVED = ["reward=http://service:80"]
VALUES_HERE = ["algorithm=ppo", "reward=r"]  # a list of rewards may go on with a service
VALUES_OF_SERVICE = ["algorithm=ppo", "algorithm.critic=service", *SERVED]


class SlowService(RewardService):
    """It answers, or is found to be away, once `last` is among the events."""

    def __init__(self, events, last, away):
        self.url, self.model = "http://service:80", {"id": "m", "request_items": 10, "request_bytes": 10_000}
        self.schema = PreferenceSchema.from_dict({"helpfulness": {"levels": 2, "score_range": [0, 1]}})
        self.events, self.last, self.away, self.reached = events, last, away, threading.Event()
        self._group, self.gave_up = None, False

    def did(self, event):
        self.events.append(event)
        if event == self.last:
            self.reached.set()

    def ask(self, method, path, body=None, seconds=None):
        assert self.reached.wait(30), f"nothing but {self.events} while the service scores"
        if self.away:
            raise ServiceUnavailable("no answer for too long")
        self.did("scores")
        items = [
            {"probabilities": {"helpfulness": [0.5, 0.5]}, "reward": r, "parts": {"helpfulness": r}, "cut": False}
            for r in (float(item["response"]) for item in json.loads(body)["items"])
        ]
        return {"model": "m", "items": items}


@pytest.fixture
def step_with_service(monkeypatch):
    """step_with_service(settings, last, away): a training whose policy, critic and generator stand in, its service, and
    what is done in a step, in order."""
    from nemo_moslim.clock import Clock
    from nemo_moslim.rollout import collect
    from nemo_moslim.training import algorithm, ppo, rl_loop, rl_metrics
    from nemo_moslim.training.train_policy import ALGORITHM_CLASSES

    for module in (algorithm, ppo, rl_metrics):
        monkeypatch.setattr(module, "sum_over_data_ranks", lambda values: values)
    monkeypatch.setattr(rl_metrics, "maximum_over_data_ranks", lambda values: values)
    monkeypatch.setattr(rl_loop, "data_parallel_place", lambda: (0, 1))

    def sampled(generator, tokens, seed, samples, numbers=None):
        service.did("answers")
        answers = [np.array([row, 9], dtype=np.int32) for row in range(len(tokens) * samples)]
        logprobs = [np.zeros(2, dtype=np.float32) for _ in answers]
        return SimpleNamespace(tokens=answers, logprobs=logprobs, finished=np.ones(len(answers), dtype=bool))

    monkeypatch.setattr(collect, "answers_over_ranks", sampled)
    service = None

    def made(settings, last, away=False):
        nonlocal service
        events = []
        service = SlowService(events, last, away)
        required = ["run_dir=x", "policy=p", "data=d", "algorithm.samples=2"]
        config = parse(
            compose_config("train_policy", [*required, "batch.prompts=2", "batch.micro_size=4", *settings]),
            PolicyTrainingConfig,
        )
        loop = object.__new__(rl_loop.PolicyTraining)
        loop.config, loop.step, loop.pad_id = config, 0, 0
        loop.algorithm = ALGORITHM_CLASSES[config.algorithm.name](config.algorithm)
        loop.clock, loop.log = Clock(), Log(events)
        tokens = [np.array([5, 6], dtype=np.int32)] * 2
        loop.train = PromptDataset(["a", "b"], [{"helpfulness": 1}, {"helpfulness": 2}], tokens, tokens, 0, 0)
        tokenizer = SimpleNamespace(decode=lambda tokens, **_: str(tokens[0]))
        scorer = RemoteScorer(service, "total")
        loop.schema = scorer.schema
        loop.collector = collect.Collector(None, scorer, tokenizer, 2, 1, 0.0, loop.clock)
        weights = ["log-probabilities"]

        @contextlib.contextmanager
        def reference():
            weights.append("reference")
            yield
            weights.pop()

        def columns(name, batches):
            service.did(name)
            return [torch.zeros(batch.response_mask.shape) for batch in batches]

        loop.reference = reference()
        loop.policy = SimpleNamespace(
            answer_columns=lambda batches, *_: columns(weights[-1], batches), set_learning_rate=lambda *_: 0.1
        )
        loop.critic = None
        if loop.algorithm.uses_critic:
            in_service = config.algorithm.critic == "service"
            loop.critic = SimpleNamespace(in_service=in_service, values=lambda batches: columns("values", batches))

        def update(updates, *_):
            service.did("update")
            assert all(batch.probabilities.shape == (4, 2) for batch in updates[0])
            return {}

        loop._update = update
        return loop, events

    return made


@pytest.mark.parametrize(
    ("settings", "last", "order"),
    [
        (["algorithm=rloo", *SERVED], "reference", ["answers", *PASSES, "scores", "update"]),
        (VALUES_HERE, "values", ["answers", *PASSES, "values", "scores", "update"]),
        (VALUES_OF_SERVICE, "reference", ["answers", *PASSES, "scores", "values", "update"]),
        (["algorithm=online_dpo", *SERVED], "answers", ["answers", "scores", *PASSES, "update"]),  # pairs need them
    ],
)
def test_a_service_scores_while_the_ranks_go_on(step_with_service, settings, last, order):
    """Its answer comes after the `last` pass that can go ahead of it: a step that waits before would not end."""
    loop, events = step_with_service(settings, last)
    row = loop.train_step()
    assert events == order
    assert row["reward"] == 1.5 and row["answers"] == 4  # each answer is its own number
    assert {"generation", "scoring", "logprobs", "reference"} <= loop.clock.take().keys()


def test_a_service_found_away_during_the_passes_ends_the_step_before_its_update(step_with_service):
    loop, events = step_with_service(["algorithm=rloo", *SERVED], "reference", away=True)
    with pytest.raises(ServiceUnavailable, match="no answer for too long"):
        loop.train_step()
    assert events == ["answers", *PASSES] and loop.collector.scorer.service.gave_up
