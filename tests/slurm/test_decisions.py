"""How launch.sh reads the end of a start: complete, saved and put back, a wrong setting, or a failure. Without NeMo."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from slurm_job import finish, wait_until

PATIENCE = 120.0  # seconds; a start takes one or two on an idle machine

# Stands for examples/train_rm.py: does what its first argument says, in RUN_DIR.
ENTRY = """
import json, os, signal, sys, time
what, run_dir = sys.argv[1], os.environ["RUN_DIR"]
def summary(finished):
    if os.environ["RANK"] == "0":
        with open(run_dir + "/summary.json", "w") as file:
            json.dump({"steps": 3, "finished": finished}, file, indent=2)
def saved(*_):
    time.sleep(0.3)
    summary(False)
    sys.exit(0)
names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
print(json.dumps({name: os.environ[name] for name in names}), flush=True)
if what == "finish":
    summary(True)
elif what == "nothing":
    pass
elif what == "wrong setting":
    if os.environ["RANK"] == "0":
        print("error: parallel.tensor=3 does not divide num_attention_heads=28", file=sys.stderr, flush=True)
        open(run_dir + "/ready0", "w").close()
        sys.exit(2)
    while not os.path.exists(run_dir + "/ready0"):
        time.sleep(0.01)
    sys.exit(2)
elif what.startswith("fail") and os.environ["RANK"] == "1":
    while not os.path.exists(run_dir + "/ready0"):
        time.sleep(0.01)
    if what == "fail with a traceback":
        raise RuntimeError("rank 1 has no memory left")  # 1: below the 143 of the rank that is ended with it
    sys.exit(200)  # above: srun answers with the highest
else:
    if what == "train":
        signal.signal(signal.SIGTERM, saved)
    open(run_dir + "/ready" + os.environ["RANK"], "w").close()
    time.sleep(60)
"""


@pytest.fixture
def job(make_job, tmp_path):
    """Makes a job whose checkout holds ENTRY in place of the training."""
    code = tmp_path / "code"
    (code / "examples" / "slurm").mkdir(parents=True)
    (code / "examples" / "train_rm.py").write_text(ENTRY)
    rank = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "rank.sh"
    (code / "examples" / "slurm" / "rank.sh").write_text(rank.read_text())
    (tmp_path / "batch.sub").write_text(
        'set -euo pipefail\nMOUNTS=none\nsource "$SLURM_SUBMIT_DIR/examples/slurm/launch.sh"\nrun_job train_rm "$@"\n'
    )

    def make(**settings):
        made = make_job(CODE=code, **settings)
        made.script = tmp_path / "batch.sub"
        return made

    return make


def stop(job, process, times=1):
    """SIGTERM to the batch script once both tasks run, as --signal=B:TERM@… sends it."""
    wait_for_ranks(job, process)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)


def preempt(job, process):
    """SIGTERM to the tasks alone once both run, as Slurm's preemption sends it."""
    wait_for_ranks(job, process)
    for pid in [int(pid) for file in job.folder.glob("tasks.*") for pid in file.read_text().split()]:
        os.kill(pid, signal.SIGTERM)


def wait_for_ranks(job, process):
    wait_until(lambda: all((job.run_dir / f"ready{rank}").exists() for rank in range(2)), process, PATIENCE)


def test_every_task_is_a_rank_with_a_log_of_its_own(job):
    made = job(nodes=2, per_node=2)
    assert finish(made.start(made.script, "finish"), PATIENCE) == 0
    seen = [json.loads(made.rank_log(rank)) for rank in range(4)]
    assert [(s["RANK"], s["LOCAL_RANK"], s["GROUP_RANK"]) for s in seen] == [
        ("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1"),
    ]  # fmt: skip
    assert {(s["WORLD_SIZE"], s["LOCAL_WORLD_SIZE"], s["MASTER_ADDR"]) for s in seen} == {("4", "2", "127.0.0.1")}
    assert "complete" in made.log() and made.requeued() == 0


def test_the_scripts_presets_are_files_of_the_papers_settings():
    root = Path(__file__).resolve().parents[2]
    for script in (root / "examples" / "slurm").glob("*.sub"):
        named = re.findall(r"PRESET[-=](\w+)", script.read_text())
        assert named, script
        assert {*named} <= {file.stem for file in (root / "conf" / "paper").glob("*.yaml")}, script


def test_told_to_stop_and_saved_is_put_back_then_completes(job):
    made = job()
    process = made.start(made.script, "train")
    stop(made, process, times=3)  # Slurm may repeat itself while ranks save
    assert finish(process, PATIENCE) == 0
    assert made.requeued() == 1 and "told to stop; saved" in made.log()
    assert finish(made.start(made.script, "finish"), PATIENCE) == 0
    assert made.requeued() == 1 and "start 1 of job" in made.log()
    assert json.loads(made.rank_log(1, start=1))["RANK"] == "1"


def test_told_to_stop_before_training_could_save_is_put_back(job):
    made = job()
    process = made.start(made.script, "load")  # SIGTERM ends it: nothing catches it yet
    stop(made, process)
    assert finish(process, PATIENCE) == 0
    assert made.requeued() == 1 and "before training could save" in made.log()


@pytest.mark.parametrize(("what", "said"), [("train", "told to stop; saved"), ("load", "before training could save")])
def test_preempted_tasks_are_put_back(job, what, said):
    """The batch script hears nothing of it: the exit code is 0 and the summary unfinished, or 143."""
    made = job()
    process = made.start(made.script, what)
    preempt(made, process)
    assert finish(process, PATIENCE) == 0
    assert made.requeued() == 1 and said in made.log() and "failed" not in made.log()


@pytest.mark.parametrize(
    ("what", "codes"), [("wrong setting", (2, 143)), ("fail", (200,)), ("fail with a traceback", (143,))]
)
def test_a_failure_is_not_put_back(job, what, codes):
    """Of a wrong setting every rank dies by itself, with 2, or is ended while it still starts, with 143. Where one
    fails and the other is ended with 143, only the log of the first tells the failure from a preemption."""
    made = job()
    code = finish(made.start(made.script, what), PATIENCE)
    assert code in codes
    assert made.requeued() == 0 and f"failed with exit code {code}" in made.log()
    assert ("num_attention_heads" in made.log()) == (what == "wrong setting")
    assert ("RuntimeError: rank 1 has no memory left" in made.log()) == ("traceback" in what)
    assert ("rank-0.log" in made.log()) == ("traceback" not in what)  # else of the ranks that tell of an error


def test_a_run_that_trains_nothing_is_over(job):
    made = job()
    assert finish(made.start(made.script, "nothing"), PATIENCE) == 0
    assert made.requeued() == 0 and "ended without training" in made.log()


def test_a_cancelled_job_does_not_come_back(job):
    made = job()
    process = made.start(made.script, "train")
    (made.folder / "state").write_text("CANCELLED\n")
    stop(made, process)
    assert finish(process, PATIENCE) == 0
    assert made.requeued() == 0 and "nothing to put back" in made.log()


def test_a_job_that_never_gets_anywhere_is_given_up(job):
    made = job(MAX_RESTARTS=1)
    for expected in (0, 1):
        (made.run_dir / "ready0").unlink(missing_ok=True)
        (made.run_dir / "ready1").unlink(missing_ok=True)
        process = made.start(made.script, "load")
        stop(made, process)
        assert finish(process, PATIENCE) == expected
    assert made.requeued() == 1 and "started 2 times (MAX_RESTARTS=1): not again" in made.log()


def test_a_job_that_cannot_be_put_back_fails(job):
    made = job()
    (made.folder / "refuse_requeue").touch()
    process = made.start(made.script, "train")
    stop(made, process)
    assert finish(process, PATIENCE) == 1
    assert "submitted again with the same RUN_DIR it resumes" in made.log()
