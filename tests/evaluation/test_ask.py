"""What a person types at generate.py, and what is shown, with a policy that stands in."""

from types import SimpleNamespace

import pytest

from nemo_moslim.preferences import PreferenceSchema

SCHEMA = PreferenceSchema.from_dict(
    {
        "helpfulness": {"levels": 3, "score_range": [0, 1], "levels_from": 1},
        "harmless": {"levels": 2, "score_range": [0, 1], "levels_from": 1},
    }
)


class Echo:
    """Answers every row with `text` and remembers what it was asked."""

    def __init__(self, text="answer", cut=0):
        self.text, self.cut, self.asked = text, cut, []

    def answer(self, rows, schema, seed, long_prompts, origin):
        self.asked.append([(row["prompt"], dict(row["preferences"]), seed) for row in rows])
        return [self.text] * len(rows), [1] * len(rows), self.cut


@pytest.fixture(scope="module")
def ask():
    """The module under test, which imports NeMo: not for every process that collects tests."""
    from nemo_moslim.evaluation import ask

    return ask


@pytest.fixture
def session(ask):
    return ask.Session(Echo(), SCHEMA, SimpleNamespace(seed=7, long_prompts="raise"))


def test_levels_stay_until_they_are_changed(session):
    for line in ("<helpfulness 2> red apple", "blue pear", "/helpfulness 3", "/harmless 1", "/again", "", "/harmless"):
        session.handle(line)
    session.handle("/again")
    assert session.answerer.asked == [
        [("red apple", {"helpfulness": 2}, 7)],
        [("blue pear", {"helpfulness": 2}, 7)],
        [("blue pear", {"helpfulness": 3, "harmless": 1}, 8)],
        [("blue pear", {"helpfulness": 3}, 9)],
    ]


def test_the_last_prompt_at_every_level(session):
    session.handle("/harmless 2")
    session.handle("red apple")
    session.handle("/compare helpfulness")
    asked = [{"harmless": 2, "helpfulness": level} for level in (1, 2, 3)]
    assert session.answerer.asked[-1] == [("red apple", preferences, 7) for preferences in asked]
    assert session.levels == {"harmless": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/again", "type a prompt first"),
        ("/compare helpfulness", "type a prompt first"),
        ("/compare beauty", "unknown dimension 'beauty'"),
        ("/beauty", "unknown dimension 'beauty'"),
        ("/helpfulness 9", "level of helpfulness must be in 1..3"),
    ],
)
def test_a_mistake_changes_nothing(session, line, message):
    with pytest.raises(ValueError, match=message):
        session.handle(line)
    assert session.levels == {} and session.answerer.asked == []


def test_answers_are_shown_as_they_are(ask, capsys):
    config = SimpleNamespace(seed=7, long_prompts="raise")
    ask.show(Echo("[/x] [your city]"), SCHEMA, "p", [{}, {"harmless": 1}], config)
    assert capsys.readouterr().out.count("[/x] [your city]") == 2


def test_a_prompt_that_was_cut_is_told_beside_the_answer(ask, capsys):
    config = SimpleNamespace(seed=7, long_prompts="cut_left")
    for cut in (0, 1):
        ask.show(Echo("red", cut), SCHEMA, "p", [{}], config)
        shown = capsys.readouterr()
        assert shown.out == "red\n" and ("1 prompts lost their beginning" in shown.err) is bool(cut)
