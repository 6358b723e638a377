"""Several processes execute one study: every stage runs once, independent ones side by side, each after its inputs."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_moslim import launch, stages
from nemo_moslim.comparison import study
from nemo_moslim.comparison.study import Stage, Study

# A stage that was begun before fails. "one" and "two" end when both have begun: in turn they never could
SCRIPT = """
import pathlib, sys, time
own = pathlib.Path(sys.argv[-1].partition("=")[2])
own.mkdir(parents=True)
inputs = [pathlib.Path(setting.partition("=")[2]) for setting in sys.argv[1:-1]]
assert all((folder / "made").exists() for folder in inputs), inputs
until = time.time() + 60
while own.name in ("one", "two") and not all((own.parent / name).exists() for name in ("one", "two")):
    assert time.time() < until, "alone"
    time.sleep(0.02)
(own / "made").touch()
"""


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Makes a study with one folder: "one" and "two", and "both", which reads them."""
    monkeypatch.setattr(stages, "EXAMPLES", tmp_path)
    monkeypatch.setattr(launch, "can_fork", lambda: False)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
    (tmp_path / "meet.py").write_text(SCRIPT)

    def make():
        made = Study(tmp_path / "out", ranks=0)
        one, two, both = (made.folder / "stages" / name for name in ("one", "two", "both"))
        for folder, settings in ((one, ()), (two, ()), (both, (f"data={one}", f"data={two}"))):
            made.stages[folder] = Stage(folder, "data", "meet.py", (*settings, f"output={folder}"), 0, {})
        return made

    return make


def test_processes_with_one_folder_divide_the_stages(studies, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(studies().execute) for _ in range(2)]:
            ended.result()
    assert sorted(json.loads((tmp_path / "out/seconds.json").read_text())) == ["both", "one", "two"]


def test_what_reads_a_failed_stage_is_not_run(studies, tmp_path):
    (tmp_path / "out/stages/two").mkdir(parents=True)  # as begun before: it fails
    (tmp_path / "out/stages/one").mkdir()
    for _ in range(2):
        with pytest.raises(SystemExit) as failed:
            studies().execute()
        assert failed.value.code == 1
    assert not (tmp_path / "out/stages/both").exists()
