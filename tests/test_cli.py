import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_moslim.cli import RANK_ZERO_SECONDS, compose_config, escape_interpolation, hydra_main, report_user_error

ROOT = Path(__file__).resolve().parents[1]


def compose(*arguments):
    return compose_config("prepare_data", arguments, verbatim_keys=("exclude",), path_keys=("input", "output"))


def test_overrides_reach_the_config():
    config = compose("task=sft", "preferences=datatype2", "seed=7", "preferences.harmless.score_range=[0,1]")
    assert (config.task, config.seed, config.preferences.honesty.levels) == ("sft", 7, 2)
    assert config.preferences.harmless.score_range == [0, 1]


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ("seeed=1", "unknown setting 'seeed'; did you mean 'seed'"),
        ("preferences=datatyp1", "unknown choice preferences=datatyp1; did you mean 'datatype1'.*datatype4"),
        ("preferences.harmles.levels=3", "did you mean 'preferences.harmless.levels'"),
        ("world.row=3", "did you mean 'world.rows'"),
        ("seed.x=3", "'seed' is a single value"),
        ("+foo=1", "cannot take '\\+foo=1'"),
        ("~seed", "cannot take '~seed'"),
        ("foo", "cannot read 'foo'"),
        ("--foo", "unknown option '--foo'"),
        ("source=[a", "cannot read the setting 'source=\\[a'.*in a list of settings each of them"),
    ],
)
def test_user_errors_name_what_is_wrong(argument, match):
    with pytest.raises(ValueError, match=match):
        compose(argument)


def test_dimensions_may_be_added_and_removed():
    config = compose("~preferences.honesty", "+preferences.tone={levels: 3, score_range: [1, 3]}")
    assert list(config.preferences) == ["helpfulness", "harmless", "tone"]


@settings(deadline=None, max_examples=25)
@given(st.one_of(st.text(), st.text(alphabet="\\${}[],'\"= a")))
def test_verbatim_values_are_no_syntax(text):
    assert compose(f"exclude={text}").exclude == text


@settings(deadline=None)
@given(st.text(alphabet="\\${}a:."))
def test_escaped_interpolation_reads_back(text):
    assert OmegaConf.create({"key": escape_interpolation(text)}).key == text


def test_path_keys_take_odd_names_and_lists():
    assert compose("input=/data/day=1/a b,c.jsonl").input == "/data/day=1/a b,c.jsonl"
    assert compose("input=[a.jsonl,b.csv]").input == ["a.jsonl", "b.csv"]
    assert compose("input=null").input is None
    assert compose("input=a", "input=[b,c]").input == ["b", "c"]


def call(function, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        hydra_main("prepare_data")(function)(arguments)
    return stop.value.code, capsys.readouterr().err


def raising(error):
    def function(config):
        raise error

    return function


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    assert call(raising(ValueError("bad\nrow")), capsys) == (2, "error: bad row\n")
    assert call(raising(FileNotFoundError("no such file: x")), capsys) == (2, "error: no such file: x\n")
    code, printed = call(lambda config: None, capsys, "seeed=1")
    assert code == 2 and printed.startswith("error: unknown setting 'seeed'") and printed.count("\n") == 1
    code, printed = call(lambda config: config.missing, capsys)
    assert code == 2 and "missing" in printed and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError):
        hydra_main("prepare_data")(raising(KeyError("bug")))([])
    with pytest.raises(ValueError):
        hydra_main("prepare_data")(raising(ValueError("shown in full")))(["--traceback"])


def test_returned_code_is_the_exit_code(capsys):
    assert call(lambda config: 1, capsys) == (1, "")
    assert hydra_main("prepare_data")(lambda config: 0)([]) is None


@pytest.mark.parametrize(("rank", "printed"), [("0", "error: bad\n"), ("1", "")])
def test_under_torchrun_rank_0_prints_and_every_rank_leaves_its_message(rank, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    report_user_error(ValueError("bad"))
    assert capsys.readouterr().err == printed
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "bad"


@pytest.mark.parametrize(("rank", "printed"), [("0", "error: bad\n"), ("3", "error: rank 3: bad\n")])
def test_without_torchrun_a_rank_speaks_after_rank_0(rank, printed, monkeypatch, capsys):
    waits = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr(time, "sleep", waits.append)
    report_user_error(ValueError("bad"))
    assert capsys.readouterr().err == printed and waits == ([] if rank == "0" else [RANK_ZERO_SECONDS])


def test_cfg_prints_the_settings(capsys):
    assert hydra_main("prepare_data")(lambda config: 1)(["--cfg", "seed=9"]) is None
    assert "seed: 9" in capsys.readouterr().out


def test_help_shows_the_settings_that_several_commands_share(capsys):
    hydra_main("train_rm")(lambda config: 1)(["--help"])
    shown = capsys.readouterr().out
    assert "loss: per_head" in shown and "conf/supervised.yaml" in shown and "long_rows: raise" in shown
    hydra_main("train_policy")(lambda config: 1)(["--help"])
    assert "and of conf/" not in capsys.readouterr().out


HELP = """
import runpy, sys
for slow in ("torch", "nemo", "megatron", "transformers"):
    sys.modules[slow] = None  # its import is an error
for script in sys.argv[1:]:
    print("###", script)
    sys.argv = [script, "--help"]
    runpy.run_path(script, run_name="__main__")
"""


def test_help_of_every_command_needs_no_slow_import_and_writes_nothing(tmp_path):
    scripts = sorted(map(str, (ROOT / "examples").glob("*.py")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HELP, *scripts], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = dict(part.split("\n", 1) for part in done.stdout.split("### ")[1:])
    assert list(shown) == scripts
    for script, text in shown.items():
        assert f"examples/{Path(script).name}" in text, script
    text = shown[str(ROOT / "examples" / "prepare_data.py")]
    assert "preferences=datatype1|datatype2|datatype3|datatype4" in text and "on_bad_row: raise" in text
    assert list(tmp_path.iterdir()) == []
