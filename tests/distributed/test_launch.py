"""The launcher of the distributed tests: output, failures, and no process left behind."""

import time
from pathlib import Path

import pytest
from launch import run_ranks

SLEEPER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("child", child.pid, flush=True)
if sys.argv[1] == "stay":
    child.wait()
"""


@pytest.mark.parametrize("behaviour", ["stay", "leave"])
def test_nothing_outlives_the_run(tmp_path, behaviour):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    started = time.monotonic()
    if behaviour == "stay":
        with pytest.raises(AssertionError, match="still running after 8 s") as failure:
            run_ranks(script, 1, [behaviour], timeout=8)
        output = str(failure.value)
    else:
        output = run_ranks(script, 1, [behaviour], timeout=60)
    assert time.monotonic() - started < 50
    (child,) = [int(line.split()[1]) for line in output.splitlines() if line.startswith("child")]
    status = Path(f"/proc/{child}/status")
    time.sleep(0.2)
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_failing_rank_shows_its_output(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text("raise SystemExit('the reason')")
    with pytest.raises(AssertionError, match="the reason"):
        run_ranks(script, 1)
    assert "the reason" in run_ranks(script, 1, check=False)
