import json

import pytest

from nemo_moslim import launch, stages
from nemo_moslim.stages import Recipe


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """examples/note.py: appends its settings to a file; fails where one of them is `fail`."""
    monkeypatch.setattr(stages, "EXAMPLES", tmp_path)
    monkeypatch.setattr(launch, "can_fork", lambda: False)
    (tmp_path / "note.py").write_text(
        "import sys\nopen(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + '\\n')\nsys.exit(3 * ('fail' in sys.argv))\n"
    )
    return tmp_path / "calls"


def calls(entry):
    return entry.read_text().splitlines()


def test_a_finished_stage_is_not_run_again(entry, tmp_path):
    for _ in range(2):
        recipe = Recipe(tmp_path / "out", stages=2)
        recipe.run("one", "note.py", str(entry), "rows=5")
        recipe.run("two", "note.py", str(entry), "rows=6")
    assert calls(entry) == ["rows=5", "rows=6"]
    assert list(json.loads((tmp_path / "out/seconds.json").read_text())) == ["one", "two"]


def test_a_failed_stage_passes_its_code_on_and_is_run_again(entry, tmp_path):
    for settings in (["fail"], []):
        recipe = Recipe(tmp_path / "out", stages=1)
        if settings:
            with pytest.raises(SystemExit) as failed:
                recipe.run("one", "note.py", str(entry), *settings)
            assert failed.value.code == 3 and recipe.seconds == {}
        else:
            recipe.run("one", "note.py", str(entry), *settings)
    assert calls(entry) == ["fail", ""]


def test_a_finished_stage_with_other_settings_ends_the_recipe(entry, tmp_path, capsys):
    Recipe(tmp_path / "out", stages=1).run("one", "note.py", str(entry), "rows=5", "seed=1")
    with pytest.raises(SystemExit) as changed:
        Recipe(tmp_path / "out", stages=1).run("one", "note.py", str(entry), "rows=6", "seed=1")
    assert changed.value.code == 2 and calls(entry) == ["rows=5 seed=1"]
    message = capsys.readouterr().err
    assert "stage 'one' finished with rows=5, now it has rows=6; use another output folder" in message
