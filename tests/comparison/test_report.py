"""From judged answers to numbers, tables, pictures and the page: made-up answers whose means are known."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from nemo_moslim.comparison.bench import Point
from nemo_moslim.comparison.page import html_page
from nemo_moslim.comparison.pictures import plot_costs, plot_fronts
from nemo_moslim.comparison.results import Entry, all_numbers, even_point, read_answers
from nemo_moslim.comparison.study import Study
from nemo_moslim.comparison.tables import Table, all_tables, cell_text
from nemo_moslim.preferences import Dimension, PreferenceSchema

SCHEMA = PreferenceSchema((Dimension("helpfulness", 5, (1, 5)), Dimension("harmless", 2, (1, 2))))
GRID = [{"helpfulness": 1.0}, {"harmless": 1.0}, {"helpfulness": 0.5, "harmless": 0.5}]
PROMPTS = 40


def answer(point, levels, prompt, preferences=()):
    row = {"point": point, "prompt": prompt, "preferences": dict(preferences), "response": "r", "length": 3}
    return {**row, "levels": dict(zip(SCHEMA.names, levels, strict=True))}


def entry(study, folder, method, seed, levels, own=False, mixture=False):
    """A method that obtains `levels[point]`, in turn one level higher and lower for helpfulness."""
    policy = study.stage(f"{method}-seed{seed}", "policy", "train_policy.py", f"trainer.seed={seed}",
                         f"policy={method}", "trainer.max_steps=9")  # fmt: skip
    policy.mkdir(parents=True)
    summary = {"device_seconds": 10.0 * len(method), "answers": 7, "steps": 8}
    (policy / "summary.json").write_text(json.dumps(summary))
    how = dict(policy=None, mixture={str(policy): 1.0}) if mixture else dict(policy=policy)
    points = [Point(method, seed, weights=weights, **how) for weights in GRID]
    if mixture:
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        points += [
            Point(method, seed, weights={"helpfulness": 1 - s, "harmless": s}, on_grid=False, **how) for s in shares
        ]
    rows = []
    for number, (helpfulness, harmless) in enumerate(levels):
        for prompt in range(PROMPTS):
            shift = (prompt % 2 * 2 - 1) if 1 < helpfulness < 5 else 0
            rows.append(answer(number, (helpfulness + shift, harmless), f"p{prompt}"))
    if own:
        points.append(Point(method, seed, prefix="levels", on_grid=False, **how))
        rows += [
            answer(len(points) - 1, (1 + (i + (own == "worse")) % 5, 1 + i % 2), f"p{i}", {"helpfulness": 1 + i % 5})
            for i in range(50)
        ]
    file = folder / f"{method}{seed}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Entry(points, file)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = Study(folder, 1)
    moslim, rival = [(5, 1), (2, 2), (4, 2)], [(3, 1), (3, 1), (3, 2)]
    soup = [*rival, (5, 1), (4, 1), (2, 1), (2, 2), (1, 2)]
    entries = {
        "moslim": [entry(study, folder, "moslim", seed, moslim, own=True) for seed in (1, 2)],
        "morlhf": [entry(study, folder, "morlhf", seed, rival) for seed in (1, 2)],
        "cpsft": [entry(study, folder, "cpsft", seed, rival, own="worse") for seed in (1, 2)],
        "rewarded_soups": [entry(study, folder, "rewarded_soups", seed, soup, mixture=True) for seed in (1, 2)],
    }
    return all_numbers(study, entries, SCHEMA, GRID, samples=200)


def test_answers_are_read_by_point_and_seed(tmp_path):
    study = Study(tmp_path, 1)
    entries = [entry(study, tmp_path, "moslim", seed, [(5, 1), (2, 2), (4, 2)], own=True) for seed in (1, 2)]
    answers = read_answers(entries, SCHEMA)
    assert answers.levels.shape == (2, 3, PROMPTS, 2) and [len(rows) for rows in answers.own] == [50, 50]
    assert answers.prompts == [f'"p{n}"' for n in range(PROMPTS)]
    np.testing.assert_allclose(answers.levels.mean((0, 2)), [[1.0, 0.0], [0.25, 1.0], [0.75, 1.0]])


def test_answers_with_other_ends_of_lines_are_read_whole(tmp_path):
    made = entry(Study(tmp_path, 1), tmp_path, "moslim", 1, [(5, 1), (2, 2), (4, 2)])
    rows = [json.loads(line) | {"response": "a\u2028b\u2029c\u0085d"} for line in made.answers.open()]
    made.answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_answers([made], SCHEMA).levels.shape == (1, 3, PROMPTS, 2)


def test_numbers_by_hand(numbers):
    json.dumps(numbers, allow_nan=False)
    ours, rival = numbers["methods"]["moslim"], numbers["methods"]["morlhf"]
    assert numbers["even_point"] == even_point(GRID) == 2
    levels = ours["points"][2]["levels"]
    assert levels["helpfulness"]["mean"] == pytest.approx(4.0)
    assert levels["harmless"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})
    assert levels["helpfulness"]["low"] < 4.0 < levels["helpfulness"]["high"]
    assert ours["hypervolume"]["mean"] == pytest.approx(0.75) and rival["hypervolume"]["mean"] == pytest.approx(0.5)
    assert [point["on_front"] for point in ours["points"]] == [True, False, True]
    difference = rival["less_moslim"]
    assert difference["hypervolume"]["mean"] == pytest.approx(-0.25)
    assert difference["levels"]["helpfulness"]["mean"] == pytest.approx(-1.0)
    # the prompts' ups and downs are the same in both methods, so the paired difference is certain
    assert difference["levels"]["helpfulness"]["low"] == pytest.approx(-1.0)
    assert ours["follows_weights"]["helpfulness"]["mean"] == pytest.approx(1.0)
    assert rival["follows_weights"]["helpfulness"]["mean"] is None  # it does not move at all
    assert ours["control"]["helpfulness"]["spearman"] == pytest.approx(1.0) and rival["control"] is None
    assert ours["control"]["helpfulness"]["intervals"]["hit_rate"] == pytest.approx([1.0, 1.0])
    assert ours["hypervolume_per_seed"] == pytest.approx([0.75, 0.75]) and "control" not in difference
    less = numbers["methods"]["cpsft"]["less_moslim"]["control"]["helpfulness"]
    assert less["hit_rate"] == pytest.approx({"mean": -1.0, "low": -1.0, "high": -1.0})
    # asked 1 2 3 4 5, given 2 3 4 5 1: squared differences of ranks 1 1 1 1 16, 1 - 6 * 20 / (5 * 24) = 0
    assert less["spearman"]["mean"] == pytest.approx(-1.0)
    assert ours["effort"] == {"online steps planned": 9, "online steps done": 8, "answers": 7, "pairs": 0}
    assert ours["cost"] == {"policy": 60.0, "all": 60.0, "answers": 7.0, "reward models": 0.0, "policies": 1.0}


def test_lines_of_soups(numbers):
    (line,) = numbers["methods"]["rewarded_soups"]["lines"]
    assert line["between"] == ["helpfulness", "harmless"]
    assert line["rising"] == {"helpfulness": 0.75, "harmless": 0.25}
    assert line["flat"] == {"helpfulness": 0.25, "harmless": 0.75}
    for key, found in line["worst_seed"].items():  # the seeds are alike
        assert found == pytest.approx(line[key])
    assert line["levels"][1]["helpfulness"]["mean"] == pytest.approx(4.0) and len(line["levels"]) == 5
    # helpfulness 1, .75, .25, .25, 0 against the chord 1, .75, .5, .25, 0; harmless 0, 0, 0, 1, 1 against 0 to 1
    assert line["largest_fall_below_the_chord"] == pytest.approx({"helpfulness": -0.25, "harmless": -0.5})
    assert numbers["methods"]["moslim"]["lines"] == []


def tables_of(numbers):
    methods = list(numbers["methods"])
    return {t.name: t for t in all_tables(numbers, methods, [4], ["tiny"], ["rloo"])}


def test_tables(numbers):
    tables = tables_of(numbers)
    expected = {
        "table2_reward_per_dimension",
        "hypervolume",
        "follows_weights",
        "table8_cost",
        "control",
        "control_less_moslim",
        "effort",
        "hypervolume_per_seed",
        "linear_mode",
        "soup_lines",
    }
    assert set(tables) == expected | {"points"}
    rows = {row[0]: row for row in tables["table8_cost"].rows}
    header = tables["table8_cost"].header
    assert (
        rows["morlhf"][header.index("all / MOSLIM's")] == 1.0 and rows["rewarded_soups"][header.index("all")] == 140.0
    )
    assert rows["morlhf"][header.index("per weight vector")] == 20.0
    assert rows["morlhf"][header.index("the paper's ratio")] == pytest.approx(196 / 164)
    assert [row[0] for row in tables["control"].rows] == ["moslim", "cpsft"]
    assert [row[0] for row in tables["control_less_moslim"].rows] == ["cpsft"]
    assert len(tables["points"].rows) == 12 and len(tables["soup_lines"].rows) == 5
    assert tables["effort"].rows[0] == ["moslim", 9.0, 8.0, 0.0, 0.0, 7.0, 0.0]
    text = tables["table2_reward_per_dimension"].markdown()
    assert "| moslim | 4.000 [" in text and "| morlhf | 3.000 [" in text
    for table in tables.values():
        parsed = list(csv.reader(io.StringIO(table.csv())))
        assert len(parsed) == len(table.rows) + 1 and len({len(line) for line in parsed}) == 1
    first = next(csv.DictReader(io.StringIO(tables["hypervolume"].csv())))
    assert float(first["hypervolume"]) == pytest.approx(0.75) and first["hypervolume less MOSLIM's"] == ""


def test_tables_of_variants(numbers):
    methods = dict(numbers["methods"]) | {"moslim-ppo-tiny-datatype4": numbers["methods"]["morlhf"]}
    made = all_tables({**numbers, "methods": methods}, ["moslim"], [4, 2], ["tiny", "wide"], ["rloo", "ppo"])
    tables = {table.name: table for table in made}
    rows = tables["table4_algorithms"].rows
    assert [row[0] for row in rows] == ["MOSLIM, rloo", "MOSLIM, ppo"]
    assert [cell_text(cell)[:5] for cell in rows[1][1:]] == ["3.000", "2.000", "-", "-"]
    assert [cell_text(cell)[:1] for cell in tables["table3_reward_model_sizes"].rows[1][1:]] == ["-"] * 4


def test_cells():
    shown = {3: "3", 0.25: "0.250", 12345.6: "12,346", 2.0: "2", None: "-", "": "-", "x": "x"}
    assert {cell: cell_text(cell) for cell in shown} == shown
    assert cell_text({"mean": None, "low": None, "high": None}) == "-"
    assert cell_text({"mean": 0.5, "low": None, "high": None}) == "0.500"


class Page(HTMLParser):
    """Open tags are closed, and what is fetched is inside the page."""

    def __init__(self):
        super().__init__()
        self.stack, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_pictures_and_the_page(numbers, tmp_path):
    pictures = [
        ("Fronts", plot_fronts(numbers, tmp_path / "fronts.png")),
        ("Cost", plot_costs(numbers, tmp_path / "c.png")),
    ]
    for _, file in pictures:
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000
    odd = Table("odd", "<b> & co", "note", ["<a>", "b"], [["x<y", 1.5]])
    text = html_page("title", "made <by>", [*tables_of(numbers).values(), odd], pictures, "methods: [a]\n<tag>")
    page = Page()
    page.feed(text)
    assert not page.stack and page.tags.count("table") == 12 and page.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "&lt;b&gt; &amp; co" in text and "x&lt;y" in text and "<tag>" not in text
    assert not re.search(r"https?://", text)
