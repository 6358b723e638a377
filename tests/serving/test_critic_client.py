"""A training's side of a service's critic, against a stand-in: what it has learnt outlives both sides' restarts."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from ports import free_port
from stub_critic import Tokenizer, values_of
from stub_service import TOKEN

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.rollout.remote_score import RewardService, ServiceUnavailable
from nemo_moslim.stop_request import StopRequest
from nemo_moslim.training.remote_critic import FILE, RemoteCritic

RATE = 0.25
ORDERS = [[0, 1], [1, 0]]  # two epochs of two updates


def batch(scale: float) -> PolicyBatch:
    """Ten answers of three tokens, one of which does not count, and a filler."""
    tokens = torch.arange(12)[:, None].add(torch.arange(8)).remainder(4)
    mask = torch.ones(12, 3, dtype=torch.bool)
    mask[4] = mask[11] = False
    returns = scale * torch.arange(36.0).view(12, 3) / 7
    lengths = torch.full((12,), 2)
    return PolicyBatch(tokens, lengths, mask, torch.arange(12), *[torch.zeros(12, 3)] * 4, returns)


def moved(weight: float, batches, orders) -> float:
    """What the updates make of the stand-in's weight."""
    for order in orders:
        for index in order:
            one = batches[index]
            weight += RATE * float(one.returns[one.response_mask].mean())
    return weight


@pytest.fixture
def place(start_stub, tmp_path):
    """A service that can be started again at its address, with its folder."""
    port, limits = free_port(), ["limits.request_items=4", "limits.request_bytes=900"]

    def start():
        return start_stub(f"port={port}", "critic=true", f"critic_dir={tmp_path}/critic", *limits)

    return SimpleNamespace(start=start, url=f"http://127.0.0.1:{port}", folder=tmp_path)


@pytest.fixture
def client(place, monkeypatch):
    """A training's critic; `patience` and `name` of its run."""
    monkeypatch.setenv("MOSLIM_SERVICE_TOKEN", TOKEN)

    def make(patience=60.0, name="run", tokenizer=Tokenizer, max_length=40):
        algorithm = SimpleNamespace(critic_lr=RATE, value_clip=0.2)
        config = SimpleNamespace(
            reward=[place.url], policy="p", run_dir=str(place.folder / name), algorithm=algorithm,
            trainer=SimpleNamespace(seed=1),
        )  # fmt: skip
        return RemoteCritic(RewardService(place.url, patience, StopRequest()), config, tokenizer, max_length)

    return make


def stands_at(critic: RemoteCritic, weight: float) -> None:
    """Its values are those of this weight."""
    one = batch(1.0)
    (found,) = critic.values([one])
    for row in range(12):
        counted = one.response_mask[row].any()
        expected = values_of(one.tokens[row, :5].tolist(), 2, weight) if counted else [0.0] * 3
        assert found[row].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def kill(service) -> None:
    service.process.send_signal(signal.SIGKILL)
    service.process.wait(60)


def test_a_service_that_is_restarted_anywhere_is_brought_to_where_it_was(place, client):
    service, critic, steps = place.start(), client(), [batch(1.0), batch(2.0)]
    critic.resume(None)
    stands_at(critic, 0.5)
    sums = critic.learn([[one] for one in steps], ORDERS, step=0)
    assert [len(epoch) for epoch in sums] == [2, 2] and sums[0][0]["returns"] == 10.0  # rows, over three requests
    weight = moved(0.5, steps, ORDERS)
    for restart in range(2):
        if restart == 0:  # before its first checkpoint
            kill(service)
            service = place.start()
        stands_at(critic, weight)
        critic.learn([[one] for one in steps], ORDERS, step=restart + 1)
        weight = moved(weight, steps, ORDERS)
        folder = place.folder / f"checkpoint{restart}"
        folder.mkdir()
        critic.save(folder, restart + 2)
        saved = json.loads((folder / FILE).read_text())
        assert saved == {"run": critic.run, "step": restart + 2, "number": 4 * (restart + 2)}
    critic.learn([[one] for one in steps], ORDERS, step=3)
    kill(service)  # after one
    place.start()
    stands_at(critic, moved(weight, steps, ORDERS))
    again = client()
    again.resume(place.folder / "checkpoint0")  # the training has lost its last checkpoint
    stands_at(again, moved(moved(0.5, steps, ORDERS), steps, ORDERS))


def test_what_is_learnt_while_no_checkpoint_can_be_written_goes_into_the_policys(place, client):
    service, critic, steps = place.start(), client(patience=0.3), [[batch(1.0), batch(3.0)], [batch(2.0)]]
    critic.resume(None)
    critic.learn(steps, ORDERS[:1], step=0)
    stands_at(critic, weight := 0.5 + sum(RATE * float(torch.cat(parts).mean()) for parts in counted_returns(steps)))
    kill(service)
    with pytest.raises(ServiceUnavailable):
        critic.learn(steps, ORDERS, step=1)
    folder = place.folder / "checkpoint"
    folder.mkdir()
    critic.save(folder, 1)  # at once: the service has just been given up
    assert len((folder / FILE).read_text().splitlines()) == 3  # of step 1 nothing

    place.start()
    again = client()
    again.resume(folder)
    stands_at(again, weight)
    again.learn([[batch(1.0)]], [[0]], step=1)
    stands_at(again, moved(weight, [batch(1.0)], [[0]]))
    again.save(folder, 2)
    assert len((folder / FILE).read_text().splitlines()) == 1


def counted_returns(updates):
    return [[one.returns[one.response_mask] for one in update] for update in updates]


def test_what_cannot_go_on_is_told(place, client):
    place.start()
    critic = client()
    critic.resume(None)
    client(name="other").resume(None)
    with pytest.raises(ValueError, match=r"now held by another training \(run-other-.*one at a time"):
        critic.values([batch(1.0)])
    with pytest.raises(ValueError, match="numbers tokens otherwise than policy=p"):
        client(tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 1}))
    with pytest.raises(ValueError, match="max_length=41: expected at most 40, .*critic_training.max_length=41"):
        client(max_length=41)
    with pytest.raises(ValueError, match="its critic was no service's; resume with algorithm.critic as"):
        critic.resume(place.folder)
    (place.folder / FILE).write_text(json.dumps({"run": critic.run, "step": 5, "number": 20}) + "\n")
    with pytest.raises(ValueError, match=r"404 no checkpoint of the critic of run-run-.* after step 5 and 20 updates"):
        critic.resume(place.folder)


def test_a_service_that_falls_over_an_update_each_time_is_not_waited_for_without_end(place, client, monkeypatch):
    from nemo_moslim.training import remote_critic

    monkeypatch.setattr(remote_critic, "RESTORES", 2)
    service, critic = place.start(), client(patience=1.0)
    critic.resume(None)
    poison = batch(1.0)
    poison.returns[0, 0] = 665.0
    with pytest.raises(ValueError, match="500 step 1, epoch 1, update 1: loss is nan"):
        critic.learn([[poison]], [[0]], step=0)
    critic.learn([[batch(1.0)]], [[0]], step=0)  # nothing of it is left
    stands_at(critic, moved(0.5, [batch(1.0)], [[0]]))
    poison.returns[0, 0] = 666.0
    with pytest.raises(ServiceUnavailable):
        critic.learn([[poison]], [[0]], step=1)
    assert service.process.wait(60) == 1 and "out of memory" in service.output()
