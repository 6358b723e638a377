"""The report without a browser: what it finds, its figures, and that no text becomes markup."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from made_recipe import (
    HOSTILE,
    annotators,
    benchmarks,
    reward_result,
    write_control,
    write_json,
    write_lines,
    write_policy,
    write_reward,
    write_sft,
)

from nemo_moslim.report.bar_charts import cost_chart
from nemo_moslim.report.find import find
from nemo_moslim.report.page import html_page, report_sections, write_report
from nemo_moslim.report.svg import nice_ticks, padded, tick_texts
from nemo_moslim.report.training_charts import MOST_POINTS, Curve, curve_chart, thin


class Page(HTMLParser):
    """Elements, attributes and the text of a page, styles and scripts aside."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._raw = 0
        self.feed(text)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._raw += tag in ("style", "script")

    def handle_endtag(self, tag):
        self._raw -= tag in ("style", "script")
        if tag in ("td", "th"):
            self.texts.append(" ")

    def handle_data(self, data):
        if not self._raw:
            self.texts.append(data)


def written(paths, tmp_path) -> str:
    output = tmp_path / "report.html"
    write_report(SimpleNamespace(runs=[str(path) for path in paths], output=str(output)))
    return output.read_text()


@pytest.fixture(scope="module")
def page(recipe, tmp_path_factory):
    return Page(written([recipe], tmp_path_factory.mktemp("page")))


def test_everything_is_found_once(recipe):
    found = find([str(recipe)])
    assert [(run.name, run.kind) for run in found.runs] == [
        ("sft", "language model"), ("reward", "reward model"), ("policy", "policy")
    ]  # fmt: skip
    parts = (found.controls, found.rewards, found.benchmarks, found.agreements, found.comparisons, found.stages)
    assert [len(part) for part in parts] == [1] * 6
    two = find([str(recipe / "sft"), str(recipe)])
    assert [run.name for run in two.runs][:2] == ["sft", "made <i>recipe/sft"]
    assert [result.name for result in find([str(recipe / "report/reward.json")]).rewards] == ["report/reward"]


def test_figures_are_those_of_the_files(page, recipe):
    control = json.loads((recipe / "report/control.json").read_text())
    reward = json.loads((recipe / "report/reward.json").read_text())
    for name in ("helpfulness", "honesty", "harmless"):
        low, high = control[name]["intervals"]["spearman"]
        assert f"{control[name]['spearman']:.3f} [{low:.3f}, {high:.3f}]" in page.text
        assert f"{reward[name]['macro_f1']:.3f}" in page.text
    assert f"{reward['intensity_accuracy']:.4f}" in page.text and "DataType 4, intensity" in page.text
    assert "RLOO, 400 steps of 16 prompts × 4 answers" in page.text and "67 min" in page.text
    assert "rewarded by reward." in page.text
    overall = control["overall"]
    assert f"of {overall['n'] - overall['untagged']['n']} answers" in page.text and overall["untagged"]["n"]
    assert page.text.count("0.300 [0.250, 0.350]") == 1  # hypervolume of the comparison's first method


def test_benchmarks_by_group(page, recipe):
    found = json.loads((recipe / "report/benchmarks.json").read_text())["benchmarks"]["hackaprompt"]["attack_success"]
    low, high = found["overall"]["low"], found["overall"]["high"]
    assert "mt bench" in page.text and "category <b>math</b> 1.00 [1.00, 1.00], 38" in page.text
    assert "turn 2 2.03 [" in page.text and "attack came through" in page.text  # 19 of 1 and 20 of 3
    assert f"level 1 1.00 [1.00, 1.00], 40 0.25 [{low:.2f}, {high:.2f}], 40" in page.text
    assert "asked of every prompt: helpfulness 5" in page.text and "40 questions of each" in page.text


def test_what_a_benchmark_left_out_and_cost_is_said(page):
    assert "mt bench 80 2 2 40 0 helpfulness 2 refused" in page.text  # cut, dropped, at the limit, repeated
    assert "hackaprompt 40 0 0 0 0 none" in page.text and "seed 1" in page.text
    assert "judge: endpoint, judge-1; 120 requests, 3 replies from the cache; tokens 12,000 in, 900 out" in page.text
    assert "cost 0.5000 (with the cache's 0.7500)" in page.text
    assert "mt bench: verdicts on helpfulness without a score, not in the mean: 2 refused." in page.text


def test_policies_stand_side_by_side(tmp_path):
    write_json(tmp_path / "one/benchmarks.json", benchmarks("runs/one"))
    write_json(tmp_path / "two/benchmarks.json", benchmarks("runs/two", shift=1.0))
    found = Page(written([tmp_path], tmp_path)).text
    assert re.search(r"mt bench, helpfulness 2\.03 \[1\.\d\d, 2\.\d\d\], 78 3\.03 \[2\.\d\d, 3\.\d\d\], 78", found)
    assert "one: policy runs/one, asked of every prompt: helpfulness 5, judge: endpoint, judge-1." in found


def test_how_far_a_judge_agrees(page, tmp_path):
    assert "all 39 1.000 [1.000, 1.000] 1.000 [1.000, 1.000]" in page.text
    assert "1 refused; 2 rows without a given score." in page.text
    assert "endpoint, judge-1 against given scores: Spearman 1.000 [1.000, 1.000]" in page.text
    write_json(tmp_path / "in/agreement.json", annotators())
    found = Page(written([tmp_path / "in"], tmp_path)).text
    assert "helpfulness, reward_model 40 1.000 [1.000, 1.000]" in found
    assert "helpfulness, endpoint 40 0.200 [" in found and "helpfulness, majority level 40 0.200" in found


def test_the_summary_says_what_does_not_work(page):
    assert "Followed (Spearman from 0.9): harmless." in page.text
    assert re.search(
        r"Not followed \(below 0.5\): helpfulness, honesty\.|Not followed \(below 0.5\): honesty\.", page.text
    )
    assert "helpfulness 5 is met in 0\xa0% of the 32 answers that ask for it." in " ".join(page.texts)
    assert "Not clearly better than always naming the most frequent level: honesty." in page.text


def test_no_text_becomes_markup(page):
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "form", "i-frame", "u"} & set(page.tags)
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert [name for name, _ in page.attributes if name == "style"] == []  # the policy would refuse them
    for text in HOSTILE:
        assert text in "".join(page.texts)
    assert "49" not in [text.strip() for text in page.texts]
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links and all(value.startswith("#") or value == "data:," for value in links)
    assert set(page.tags) >= {"section", "svg", "table", "nav", "blockquote", "details"}


def test_every_part_has_its_section(page):
    sections = [value for name, value in page.attributes if name == "id" and value != "theme"]
    expected = [
        "summary",
        "control",
        "answers",
        "reward",
        "benchmarks",
        "judges",
        "training",
        "rivals",
        "cost",
        "configuration",
    ]
    assert sections == expected  # nothing is missing, so there is no list of it
    assert {f"#{section}" for section in expected} <= {v for n, v in page.attributes if n == "href"}


def test_what_is_missing_is_said_with_its_command(tmp_path):
    write_sft(tmp_path / "only/sft")
    text = Page(written([tmp_path / "only/sft"], tmp_path)).text
    assert "Not in this report" in text and "task=controllability policy=RUN" in text and "examples/compare.py" in text
    assert "task=benchmarks policy=RUN" in text and "task=judge_agreement data=FILE" in text
    assert "Table 1" not in text


def test_answers_at_every_level_are_those_of_one_prompt(recipe, tmp_path):
    section = next(s for s in report_sections(find([str(recipe)])) if s.id == "answers")
    groups = section.blocks[1:]
    assert [group.title for group in groups] == ["helpfulness", "honesty", "harmless"]
    assert [answer.asked for answer in groups[0].items] == [f"helpfulness {level}" for level in range(1, 6)]
    write_control(tmp_path / "report", with_every_level=False)
    section = next(s for s in report_sections(find([str(tmp_path)])) if s.id == "answers")
    assert [len(group.items) for group in section.blocks[1:]] == [5, 5, 2]
    assert all(answer.prompt for group in section.blocks[1:] for answer in group.items)


def test_runs_that_go_on_and_small_reports(tmp_path):
    """A run without a summary whose last line is cut, a dimension without rows, levels nobody asked for."""
    run = write_policy(tmp_path / "policy")
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 401, "rew')
    report = write_control(tmp_path / "report")
    control = json.loads((report / "control.json").read_text())
    control["honesty"] = {**control["honesty"], "n": 0, "spearman": None, "hit_rate": None,
                          "confusion": [[0] * 5] * 5, "intervals": {"spearman": [None, None], "hit_rate": [None, None]},
                          "curve": [{"level": 1, "n": 0, "mean": None, "low": None, "high": None}]}  # fmt: skip
    control["harmless"] |= {"spearman": None, "intervals": {"spearman": [None, None], "hit_rate": [0.1, 0.2]}}
    control["pairs"] = []
    write_json(report / "control.json", control)
    text = Page(written([tmp_path], tmp_path)).text
    assert "400 steps" in text and "not finished" in text


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c", "d", "e", "f", "g")])
def test_any_number_of_dimensions(names, tmp_path):
    from nemo_moslim.evaluation.controllability import control_report
    from nemo_moslim.preferences import Dimension, PreferenceSchema

    schema = PreferenceSchema(tuple(Dimension(name, 2 + place, (0, 1)) for place, name in enumerate(names)))
    rows = [{"prompt": "p", "response": "r", "preferences": {n: 1 + (i + j) % 2 for j, n in enumerate(names)},
             "levels": {n: 1 + i % 2 for n in names}} for i in range(40)]  # fmt: skip
    write_json(tmp_path / "control.json", control_report(rows, schema, samples=10))
    write_lines(tmp_path / "answers.jsonl", rows)
    found = Page(written([tmp_path], tmp_path))
    assert all(name in found.text for name in names) and found.tags.count("figure") >= 2 * len(names)


def test_mistakes(tmp_path):
    cases = []
    (tmp_path / "empty").mkdir()
    cases.append(([str(tmp_path / "empty")], "out.html", "nothing to report in"))
    cases.append(([str(tmp_path / "absent")], "out.html", "does not exist"))
    cases.append(([], "out.html", r"needs runs=\[RUN"))
    cases.append(([str(tmp_path)], "out.pdf", "name it FILE.html"))
    damaged = tmp_path / "damaged"
    write_reward(damaged / "reward")
    (damaged / "reward/metrics.jsonl").write_text('{"step": 1}\n{oh\n{"step": 2}\n')
    cases.append(([str(damaged)], "out.html", "metrics.jsonl:2"))
    broken = tmp_path / "broken"
    write_json(broken / "control.json", [])
    cases.append(([str(broken)], "out.html", "expected a JSON object"))
    for runs, output, message in cases:
        with pytest.raises(ValueError, match=message):
            write_report(SimpleNamespace(runs=runs, output=str(tmp_path / output)))
    assert not (tmp_path / "out.html").exists()


def test_the_command_imports_neither_nemo_nor_torch(tmp_path):
    write_json(tmp_path / "in/reward.json", reward_result(40))
    code = (
        "import runpy, sys; sys.argv = ['evaluate.py', 'task=report', sys.argv[1], sys.argv[2]]\n"
        "try: runpy.run_path('examples/evaluate.py', run_name='__main__')\n"
        "finally: print({'nemo', 'torch', 'megatron', 'matplotlib'} & set(sys.modules))"
    )
    output = tmp_path / "deep/er/report.html"
    done = subprocess.run(
        [sys.executable, "-c", code, f"runs=[{tmp_path}/in]", f"output={output}"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
    assert "Reward model" in output.read_text()
    wrong = subprocess.run(
        [sys.executable, "examples/evaluate.py", "task=report", "runs=[nowhere]", f"output={output}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert wrong.returncode == 2 and wrong.stderr == "error: runs: nowhere does not exist\n"


def test_page_is_the_same_each_time(recipe):
    pages = {html_page("t", report_sections(find([str(recipe)]))) for _ in range(2)}
    assert len(pages) == 1


def test_ticks_by_hand():
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(-0.3, 7.2, 4) == pytest.approx([0, 2, 4, 6])
    assert nice_ticks(950, 3050) == pytest.approx([1000, 1500, 2000, 2500, 3000])
    assert tick_texts([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_texts([0, 5000, 10000]) == ["0", "5k", "10k"] and tick_texts([]) == []


def test_a_constant_has_room_around_it():
    assert padded([0.1, 0.1 + 1e-17]) == pytest.approx((0.05, 0.15)) and padded([0.0]) == (-1.0, 1.0)
    assert padded([1.0, 3.0], 0.1) == pytest.approx((0.8, 3.2))


def test_curves_are_thinned_to_means_with_their_range():
    kept, band = thin([(step, step % 2) for step in range(4 * MOST_POINTS)])
    assert len(kept) == len(band) == MOST_POINTS and kept[0] == (1.5, 0.5) and band[0] == (1.5, 0.0, 1.0)
    kept, band = thin([(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)])
    assert kept == [(1.0, 2.0), (4.0, 1.0)] and band == []
    assert curve_chart("nothing", [Curve("a", "m0", [(1, math.nan)])]) is None
    assert "<circle" in str(curve_chart("one", [Curve("a", "m0", [(1, 2.0)])]))


def test_costs_are_the_sums_of_their_parts():
    amounts = {"policy": 10.0, "reward model": 5.0, "all": 15.0, "answers": 8}
    picture = str(cost_chart([("moslim", amounts), ("other", {"policy": 20.0})], ["policy", "reward model"], "s"))
    assert ">15<" in picture and ">20<" in picture and picture.count("<rect") == 3
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([0-9.]+)"', picture)]
    assert widths == pytest.approx([174, 87, 348])
