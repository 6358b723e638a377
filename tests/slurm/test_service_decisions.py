"""How service.sh places, restarts and ends the reward model's service beside a training. Without NeMo."""

import json
import signal
from pathlib import Path

import pytest
from slurm_job import finish, wait_until

PATIENCE = 240.0  # seconds; a start takes one or two on an idle machine

# Stand for the two entry points: each says where it runs; the service fails as often as FAILURES says.
COMMON = """
import json, os, pathlib, signal, sys, time
run_dir = pathlib.Path(os.environ["RUN_DIR"])
names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MOSLIM_SERVICE_TOKEN")
print(json.dumps({"arguments": sys.argv[1:], **{name: os.environ[name] for name in names}}), flush=True)
"""
SERVICE = (
    COMMON
    + """
signal.signal(signal.SIGTERM, lambda *_: (print("stopped", flush=True), sys.exit(0)))
(run_dir / f"holding{os.environ['RANK']}").touch()
if os.environ["RANK"] == "0":
    attempt = len(list(run_dir.glob("serving*")))
    (run_dir / f"serving{attempt}").touch()
    if attempt < int(os.environ["FAILURES"]):
        sys.exit(7)
time.sleep(600)
"""
)
TRAINING = (
    COMMON
    + """
def saved(*_):
    summary(False)
    sys.exit(0)
def summary(finished):
    if os.environ["RANK"] == "0":
        (run_dir / "summary.json").write_text(json.dumps({"finished": finished}))
signal.signal(signal.SIGTERM, saved)
(run_dir / f"training{os.environ['RANK']}").touch()
while not (run_dir / f"serving{os.environ['FAILURES']}").exists() or "wait" in sys.argv:
    time.sleep(0.05)
summary(True)
"""
)


@pytest.fixture
def job(make_job, tmp_path):
    """A job of one service node and two for training, each with two ranks."""
    code = tmp_path / "code"
    (code / "examples" / "slurm").mkdir(parents=True)
    (code / "examples" / "serve_reward.py").write_text(SERVICE)
    (code / "examples" / "train_policy.py").write_text(TRAINING)
    rank = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "rank.sh"
    (code / "examples" / "slurm" / "rank.sh").write_text(rank.read_text())

    def make(failures=0, **more):
        variables = dict(SERVICE_NODES=1, SERVICE_PORT=8123, SERVICE_PAUSE=0, FAILURES=failures, CLUSTER="c")
        nodes = dict(SLURM_JOB_NODELIST="127.0.0.1,localhost,localhost")  # names of the first and the others
        return make_job(nodes=3, per_node=2, CODE=code, **variables, **nodes, DATA="d", POLICY="p", REWARD="r", **more)

    return make


SCRIPT = "examples/slurm/policy_with_service.sub"


def test_each_has_its_own_nodes_and_the_service_ends_with_the_training(job):
    made = job()
    assert finish(made.start(SCRIPT, "trainer.max_steps=9"), PATIENCE) == 0, made.log()
    logs = made.run_dir / "logs" / f"job-{made.environment['SLURM_JOB_ID']}-start-0"
    ranks = [json.loads((logs / f"rank-{rank}.log").read_text()) for rank in range(4)]
    service = [(logs / f"service-0-rank-{rank}.log").read_text().splitlines() for rank in range(2)]
    assert [lines[1] for lines in service] == ["stopped"] * 2 and not (logs / "rank-4.log").exists()
    service = [json.loads(lines[0]) for lines in service]
    assert {(r["WORLD_SIZE"], r["LOCAL_WORLD_SIZE"], r["MASTER_ADDR"]) for r in ranks} == {("4", "2", "localhost")}
    assert {(s["WORLD_SIZE"], s["LOCAL_WORLD_SIZE"], s["MASTER_ADDR"]) for s in service} == {("2", "2", "127.0.0.1")}
    assert ranks[0]["MASTER_PORT"] != service[0]["MASTER_PORT"]
    tokens = {place["MOSLIM_SERVICE_TOKEN"] for place in (*ranks, *service)}
    assert len(tokens) == 1 and len(tokens.pop()) >= 32
    assert {"reward=http://127.0.0.1:8123", "cluster=c", "policy=p", "trainer.max_steps=9"} <= set(
        ranks[3]["arguments"]
    )
    assert {"run=r", "port=8123", "host=0.0.0.0", "cluster=h100_72b"} <= set(service[1]["arguments"])
    assert not [a for place in (*ranks, *service) for a in place["arguments"] if "critic" in a]
    assert "complete" in made.log() and not list(made.folder.glob("tasks.*"))


def test_a_service_that_fails_is_started_again_with_the_critic_of_ppo(job):
    made = job(failures=2, CRITIC_DIR="k")
    assert finish(made.start(SCRIPT, "algorithm.samples=2"), PATIENCE) == 0, made.log()
    logs = made.run_dir / "logs" / f"job-{made.environment['SLURM_JOB_ID']}-start-0"
    service, training = (
        json.loads((logs / f"{name}-0.log").read_text().splitlines()[0])["arguments"]
        for name in ("service-2-rank", "rank")
    )
    assert {"critic=true", "critic_dir=k"} <= set(service)
    assert (
        training.index("algorithm=ppo")
        < training.index("algorithm.critic=service")
        < training.index("algorithm.samples=2")
    )
    assert "start 1 in 0 s" in made.log() and "start 2 in 0 s" in made.log() and "start 3" not in made.log()
    assert "complete" in made.log()


def test_told_to_stop_both_end_and_the_job_is_put_back(job):
    made = job()
    process = made.start(SCRIPT, "wait")
    places = [made.run_dir / name for name in ("serving0", "holding1", *(f"training{rank}" for rank in range(4)))]
    wait_until(lambda: all(place.exists() for place in places), process, PATIENCE)
    process.send_signal(signal.SIGTERM)
    assert finish(process, PATIENCE) == 0, made.log()
    assert made.requeued() == 1 and "told to stop; saved" in made.log() and "service failed" not in made.log()
