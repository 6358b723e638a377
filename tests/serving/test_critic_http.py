"""The critic's part of the HTTP interface against a stand-in: no update is lost or done twice, whatever is sent."""

import pytest
from stub_critic import values_of

RUN = "run-a-1"
ROW = {"tokens": [1, 2, 3, 0, 1], "prompt_length": 2}
LEARNT = {**ROW, "old_values": [0.0, 0.0, 0.5], "returns": [1.0, 1.0, 1.5]}


def post(service, path, **body):
    return service.ask("POST", path, json={"run": RUN, "number": 0, **body})


def load(service, step=0, number=0, seed=1, run=RUN):
    answer = post(service, "/load_critic", run=run, step=step, number=number, seed=seed)
    assert answer.status_code == 200, answer.text
    return answer.json()


def update(service, number, rows=(LEARNT,), **more):
    place = {"step": 1, "epoch": 1, "update": number + 1, "learning_rate": 0.25, "value_clip": 0.2}
    return post(service, "/update_critic", number=number, rows=list(rows), **{**place, **more})


def value(service, number):
    """The first value of ROW."""
    answer = post(service, "/values", number=number, rows=[ROW])
    assert answer.status_code == 200, answer.text
    return answer.json()["values"][0][0]


def test_values_of_the_answers_tokens_to_the_bit(critic_service):
    load(critic_service)
    other = {"tokens": [0, 1], "prompt_length": 1}
    found = post(critic_service, "/values", rows=[ROW, other]).json()["values"]
    assert found == [values_of(ROW["tokens"], 2, 0.5), values_of([0, 1], 1, 0.5)] and len(found[0]) == 3
    load(critic_service, seed=7)
    assert value(critic_service, 0) == pytest.approx(0.702)


def test_an_update_that_is_sent_again_is_done_once(critic_service):
    load(critic_service)
    first = update(critic_service, 0)
    assert first.status_code == 200 and first.json() == {
        "sums": {"value_loss": pytest.approx(3.0), "value_grad_norm": 0.2, "returns": 1.0},
        "number": 1,
    }
    assert update(critic_service, 0).json() == first.json()
    assert value(critic_service, 1) == pytest.approx(0.752)
    assert update(critic_service, 1).json()["number"] == 2 and value(critic_service, 2) == pytest.approx(1.002)
    for number in (0, 3):
        answer = update(critic_service, number)
        assert answer.status_code == 409 and f"2 updates behind it, not {number}" in answer.json()["detail"]
    assert critic_service.ask("GET", "/critic").json() == {"run": RUN, "number": 2}


def test_an_update_in_parts_is_done_when_all_have_come(critic_service):
    load(critic_service)
    rows = [{**LEARNT, "returns": [float(i)] * 3} for i in range(3)]
    for part in (1, 2, 1):  # one of them twice
        answer = update(critic_service, 0, rows[part - 1 : part], part=part, parts=3)
        assert answer.json() == {"sums": None, "number": 0}
    assert value(critic_service, 0) == pytest.approx(0.502)
    done = update(critic_service, 0, rows[2:], part=3, parts=3).json()
    assert done["number"] == 1 and done["sums"]["returns"] == 3.0
    assert update(critic_service, 0, rows[:1], part=1, parts=3).json() == done
    assert update(critic_service, 1, [], parts=1).json()["sums"]["value_loss"] == 0.0  # an update without a counted row


def test_checkpoints_are_of_a_step_and_the_one_before_it_stays(critic_service):
    load(critic_service)
    for number, step in ((0, 10), (1, 20), (2, 30)):
        update(critic_service, number)
        saved = post(critic_service, "/save_critic", number=number + 1, step=step)
        assert saved.status_code == 200 and saved.json() == {"run": RUN, "number": number + 1}
    at_30 = value(critic_service, 3)
    update(critic_service, 3)
    assert load(critic_service, step=20, number=2) == {"run": RUN, "number": 2}
    assert value(critic_service, 2) == pytest.approx(at_30 - 0.25)
    assert update(critic_service, 1).status_code == 409  # what it answered before is forgotten
    update(critic_service, 2)
    post(critic_service, "/save_critic", number=3, step=25)  # of 20 and 30 the one stays that it comes from
    assert load(critic_service, step=20, number=2)["number"] == 2
    for step, number in ((10, 1), (30, 3), (20, 1)):
        answer = post(critic_service, "/load_critic", step=step, number=number, seed=1)
        assert answer.status_code == 404 and f"after step {step} and {number} updates" in answer.json()["detail"]
    assert value(critic_service, 2) == pytest.approx(at_30 - 0.25)  # a refusal changes nothing


def test_a_save_that_is_sent_again_leaves_the_checkpoint_before_it(critic_service):
    load(critic_service, run="run-c-3")
    for number, step in ((0, 10), (1, 20)):
        update(critic_service, number, run="run-c-3")
        for _ in range(2):
            saved = post(critic_service, "/save_critic", run="run-c-3", number=number + 1, step=step)
            assert saved.status_code == 200 and saved.json() == {"run": "run-c-3", "number": number + 1}
    assert load(critic_service, run="run-c-3", step=10, number=1)["number"] == 1
    load(critic_service, run="run-c-3", seed=7)  # a training of the same name that begins again
    update(critic_service, 0, run="run-c-3")
    post(critic_service, "/save_critic", run="run-c-3", number=1, step=10)
    found = []
    for _ in range(2):
        found.append(post(critic_service, "/values", run="run-c-3", number=1, rows=[ROW]).json()["values"][0][0])
        load(critic_service, run="run-c-3", step=10, number=1)
    assert found[0] == found[1] == pytest.approx(0.952)  # its own weights, not those of the first one


def test_a_training_does_not_move_anothers_critic(critic_service):
    load(critic_service)
    load(critic_service, run="run-b-2")
    for answer in (update(critic_service, 0), post(critic_service, "/save_critic", step=1)):
        assert answer.status_code == 409 and "held by another training (run-b-2)" in answer.json()["detail"]
    assert critic_service.ask("GET", "/critic").json() == {"run": "run-b-2", "number": 0}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/values", {"rows": []}, "rows: List should have at least 1 item"),
        ("/values", {"rows": [ROW] * 9}, "rows: List should have at most 8 items"),
        ("/values", {"rows": [{**ROW, "tokens": [1, 4]}]}, "rows.0.tokens.1: Input should be less than 4"),
        ("/values", {"rows": [{**ROW, "tokens": [1] * 41}]}, "rows.0.tokens: List should have at most 40 items"),
        ("/values", {"rows": [{**ROW, "prompt_length": 5}]}, "prompt_length leaves no token to the answer"),
        ("/values", {"rows": [LEARNT]}, "rows.0.old_values: Extra inputs are not permitted"),
        ("/values", {"rows": [ROW], "run": "../x"}, "run: String should match pattern"),
        ("/update_critic", {"rows": [{**LEARNT, "returns": [1.0]}]}, "need one number per answer token"),
        (
            "/update_critic",
            {"rows": [{**LEARNT, "returns": [1e39] * 3}]},
            "rows.0.returns.0: Input should be less than or equal to 3000",
        ),
        ("/update_critic", {"rows": [LEARNT], "part": 2, "parts": 1}, "part: 2 of 1"),
        ("/save_critic", {"step": 0}, "step: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_are_told(critic_service, path, body, reason):
    load(critic_service)
    place = {"step": 1, "epoch": 1, "update": 1, "learning_rate": 0.1, "value_clip": None}
    answer = post(critic_service, path, **({**place, **body} if path == "/update_critic" else body))
    assert answer.status_code == 422 and reason in answer.json()["detail"], answer.text


def test_an_update_has_no_more_rows_than_the_queue(critic_service):
    load(critic_service)
    update(critic_service, 0, [LEARNT] * 8, part=1, parts=2)
    answer = update(critic_service, 0, [LEARNT] * 8, part=2, parts=2)
    assert answer.status_code == 422 and "at most 12 (limits.queue_rows)" in answer.json()["detail"]


def test_a_loss_that_is_no_number_leaves_the_critic_to_be_loaded_again(critic_service):
    load(critic_service)
    answer = update(critic_service, 0, [{**LEARNT, "returns": [665.0] * 3}], step=3)
    assert answer.status_code == 500 and "step 3, epoch 1, update 1: loss is nan" in answer.json()["detail"]
    assert critic_service.ask("GET", "/critic").json() == {"run": None, "number": 0}
    answer = update(critic_service, 0)
    assert answer.status_code == 409 and "POST /load_critic first" in answer.json()["detail"]


def test_it_is_described_and_counted(critic_service, service):
    held = critic_service.ask("GET", "/model").json()["critic"]
    assert (held["vocab_size"], held["max_length"], held["request_seconds"]) == (4, 40, 30)
    paths = {"/values", "/update_critic", "/save_critic", "/load_critic", "/critic"}
    assert paths < set(critic_service.ask("GET", "/openapi.json").json()["paths"])
    load(critic_service)
    post(critic_service, "/values", rows=[ROW] * 3)
    update(critic_service, 0)
    text = critic_service.ask("GET", "/metrics").text
    for line in ('moslim_critic_answers_total{work="values"}', 'moslim_critic_work_total{work="update"}'):
        assert line in text
    assert 'moslim_requests_total{path="/update_critic",status="200"}' in text
    assert service.ask("GET", "/model").json()["critic"] is None  # one without a critic
    assert post(service, "/values", rows=[ROW]).status_code == 404
    assert critic_service.ask("POST", "/load_critic", token=None, json={}).status_code == 401
