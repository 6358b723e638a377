"""Entry points started as torchrun would: by its own command, and as forks of a server."""

import json
import signal
import subprocess
import sys
import time

import pytest
from grids import grid

from nemo_moslim import launch as launching
from nemo_moslim.launch import launch

SCRIPT = """
import json, os, signal, sys, time
sys.path.remove(__file__.rpartition("/")[0])  # a script's folder is on the path
rank = int(os.environ.get("RANK", -1))
words = {name: os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")}
seen = {"settings": sys.argv[1:], "name": __name__, "port": "MASTER_PORT" in os.environ, **words}
open(f"{sys.argv[1]}/rank{rank}.json", "w").write(json.dumps(seen))
if "fail" in sys.argv and rank == 1:
    sys.exit(3)
if "raise" in sys.argv and rank == 1:
    raise RuntimeError("a bug")
if "kill" in sys.argv and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if "wait" in sys.argv:
    save = lambda *_: (time.sleep(1), open(f"{sys.argv[1]}/saved{rank}", "w"), sys.exit(0))
    signal.signal(signal.SIGTERM, save)
    open(f"{sys.argv[1]}/ready{rank}", "w")
    signal.pause()
"""

LAUNCHERS = ("torchrun", "forks")
PRELOAD = ["torch.multiprocessing"]  # what starts the ranks; NeMo, else preloaded, is imported in other tests' servers


@pytest.fixture(params=LAUNCHERS)
def script(request, tmp_path, monkeypatch):
    """A script that writes what it was started with."""
    if request.param == "forks" and not launching.can_fork():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(launching, "can_fork", lambda: request.param == "forks")
    monkeypatch.setattr(launching, "PRELOAD", PRELOAD)
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def seen(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("rank*.json")}


def test_two_ranks_get_what_torchrun_gives_them(script, tmp_path):
    assert launch(script, [str(tmp_path), "a=1"], 2) == 0
    found = seen(tmp_path)
    assert set(found) == {"rank0", "rank1"}
    for rank in (0, 1):
        assert found[f"rank{rank}"] == {
            "settings": [str(tmp_path), "a=1"], "name": "__main__", "port": True, "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as before


def test_without_ranks_it_is_plain_python(script, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(script, [str(tmp_path)], 0) == 0
    (found,) = seen(tmp_path).values()
    assert found["WORLD_SIZE"] is None and found["OMP_NUM_THREADS"] is None and not found["port"]


def caller(folder, script, *settings):
    """A process that launches two ranks and exits with their code."""
    path = folder / "caller.py"
    path.write_text(
        "import sys\nfrom pathlib import Path\nfrom nemo_moslim import launch\nif __name__ == '__main__':\n"
        f"    launch.PRELOAD = {PRELOAD}\n    launch.can_fork = lambda: {launching.can_fork()}\n"
        f"    sys.exit(launch.launch(Path({str(script)!r}), [{str(folder)!r}, *{settings!r}], 2))\n"
    )
    return subprocess.Popen([sys.executable, str(path)], stderr=subprocess.PIPE, text=True)


FAULTS = [(launcher, *fault) for launcher in LAUNCHERS for fault in (("fail", 3), ("kill", -9))]


@pytest.mark.parametrize(
    ("script", "fault", "code"),
    grid(FAULTS, ("forks", "fail", 3), ("forks", "kill", -9)),
    indirect=["script"],
)
def test_the_code_of_the_rank_that_failed(script, tmp_path, fault, code):
    assert launch(script, [str(tmp_path), fault], 2) == (code if launching.can_fork() else 1)  # torchrun: always 1


@pytest.mark.parametrize("script", grid(LAUNCHERS, "forks"), indirect=True)
def test_a_bug_keeps_its_traceback(script, tmp_path):
    process = caller(tmp_path, script, "raise")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "RuntimeError: a bug" in errors and "script.py" in errors


def test_a_request_to_stop_reaches_forked_ranks_which_have_time_to_save(script, tmp_path):
    """As a scheduler does it: SIGTERM to the recipe alone."""
    if not launching.can_fork():
        pytest.skip("torchrun is a process of its own, which schedulers signal too")
    process = caller(tmp_path, script, "wait")
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert all((tmp_path / f"saved{rank}").exists() for rank in (0, 1))
    assert process.returncode == 256 - signal.SIGTERM
