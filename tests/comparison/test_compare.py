"""The whole of compare.py but for the stages' work: planned, run in order (here: made up), reported; and run again."""

import json
from pathlib import Path

import pytest

from nemo_moslim import stages
from nemo_moslim.cli import compose_config
from nemo_moslim.comparison.compare import compare
from nemo_moslim.comparison_config import COMPARED_METHODS, CompareConfig
from nemo_moslim.config import parse

LEVELS = {"helpfulness": 5, "honesty": 5, "harmless": 2}


class Commands:
    """Stands in for launch: does what each entry point would leave, and remembers the calls."""

    def __init__(self, fail: str = ""):
        self.calls, self.fail = [], fail

    def __call__(self, script, words, ranks):
        settings = dict(word.split("=", 1) for word in words)
        target = Path(settings.get("run_dir") or settings["output"])
        self.calls.append(target)
        if self.fail and self.fail in str(target):
            return 3
        if script.name.startswith("train_"):
            target.mkdir(parents=True, exist_ok=True)
            versions = {"torch": "2", "commit": "before" if script.name == "train_sft.py" else "after"}
            summary = {"device_seconds": 2.0, "answers": 4, "steps": 3, "versions": versions}
            (target / "summary.json").write_text(json.dumps(summary))
        elif settings.get("task", "").endswith("_pairs"):
            target.mkdir(parents=True)
            (target / "manifest.json").write_text(json.dumps({"rows": {"train": 20}}))
        elif settings.get("task") == "points":
            self.answer(settings, target)
        return 0

    def answer(self, settings, target):
        rows = []
        for number, point in enumerate(json.loads(Path(settings["points"]).read_text())):
            weights = point["weights"]
            for prompt in range(6):
                asked = {"helpfulness": 1 + prompt % 5} if weights is None else {}
                levels = {n: k if (weights or asked).get(n) else 1 + prompt % k for n, k in LEVELS.items()} | asked
                rows.append(
                    {"point": number, "prompt": f"p{prompt}", "preferences": asked, "levels": levels, "length": 2}
                )
        target.mkdir(parents=True, exist_ok=True)
        (target / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder, monkeypatch, commands, *overrides):
    monkeypatch.setattr(stages, "launch", commands)
    arguments = [f"output={folder}", "budget=smoke", "seeds=2", "bootstrap_samples=20", *overrides]
    return compare(parse(compose_config("compare", arguments, path_keys=("data", "output")), CompareConfig))


def test_the_report_of_all_methods_and_that_nothing_runs_twice(tmp_path, monkeypatch, capsys):
    commands = Commands()
    report = run(tmp_path, monkeypatch, commands)
    assert len(commands.calls) == len(set(commands.calls)) > 40
    numbers = json.loads((tmp_path / "comparison.json").read_text())
    assert set(numbers["methods"]) == {*COMPARED_METHODS, "start"}
    for name, found in numbers["methods"].items():
        assert len(found["points"]) == 2 and found["points"][0]["levels"]["helpfulness"]["mean"] == 5.0
        assert (found["control"] is not None) == (name in ("moslim", "cpsft", "cdpo", "ric"))
    costs = {name: found["cost"] for name, found in numbers["methods"].items()}
    # quiz, language model, reward model and policy of 2 device-seconds each; three reward models and two policies
    assert costs["moslim"]["all"] == 8.0 and costs["morlhf"]["policy"] == 4.0 and costs["moslim"]["answers"] == 16
    efforts = {name: found["effort"] for name, found in numbers["methods"].items()}
    assert efforts["morlhf"] == {"online steps planned": 2, "online steps done": 6, "answers": 8, "pairs": 0}
    assert efforts["cdpo"] == {"offline steps planned": 7, "offline steps done": 6, "answers": 8, "pairs": 20}
    assert costs["start"]["all"] == 4.0 and efforts["start"] == {"pairs": 0}
    assert numbers["provenance"]["versions"] == {"torch": "2", "commit": "before and after"}
    assert "torch 2, commit before and after" in report.read_text()
    assert report.read_text().count("<table>") == 11 and (tmp_path / "fronts.png").is_file()
    assert len(list((tmp_path / "tables").glob("*.csv"))) == 11 and "Table 8" in (tmp_path / "report.md").read_text()
    assert "Hypervolume" in capsys.readouterr().out

    again = Commands()
    run(tmp_path, monkeypatch, again)
    assert again.calls == []
    changed = Commands()
    run(tmp_path, monkeypatch, changed, "budget.modpo=['beta=0.2']")
    assert changed.calls and all("modpo" in str(target) for target in changed.calls)


def test_a_failed_stage_stops_and_the_next_call_goes_on(tmp_path, monkeypatch, capsys):
    broken = Commands(fail="reward-harmless")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, monkeypatch, broken, "methods=[morlhf]")
    assert stopped.value.code == 3 and "reward-harmless" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    mended = Commands()
    run(tmp_path, monkeypatch, mended, "methods=[morlhf]")
    assert mended.calls[0] == broken.calls[-1] and not set(mended.calls[1:]) & set(broken.calls)
