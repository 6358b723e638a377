"""What the loop does around its steps, with steps, models and ranks that stand in."""

from types import SimpleNamespace

import pytest

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
    from nemo_moslim.rollout.remote_score import ServiceUnavailable

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
