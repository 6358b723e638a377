import math
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_moslim.preferences import Dimension, PreferenceSchema

CONF = Path(__file__).resolve().parents[1] / "conf" / "preferences"
SCHEMA = PreferenceSchema(
    (
        Dimension("helpfulness", 5, (1, 5)),
        Dimension("honesty", 5, (1, 5)),
        Dimension("harmless", 2, (1, 2), levels_from=0),
    )
)
PREFERENCES = st.permutations(list(SCHEMA.names)).flatmap(
    lambda names: st.integers(0, 3).flatmap(
        lambda count: st.fixed_dictionaries(
            {name: st.integers(1, SCHEMA.dimension(name).levels) for name in names[:count]}
        )
    )
)
TAG_LIKE = st.text(alphabet="<>helpfulness 12345\n", max_size=30)
TEXTS = st.one_of(st.text(), TAG_LIKE, st.sampled_from(["<helpfulness 5> hi", "<harmless 0><honesty 1> ", "<b 1>", ""]))


@pytest.mark.parametrize(
    ("levels", "expected"), [(1, [1, 1, 1, 1, 1]), (2, [1, 1, 2, 2, 2]), (3, [1, 1, 2, 3, 3]), (5, [1, 2, 3, 4, 5])]
)
def test_levels_of_ratings_one_to_five_by_hand(levels, expected):
    dimension = Dimension("helpfulness", levels, (1, 5))
    assert [dimension.level_of(score) for score in (1, 2, 3, 4, 5)] == expected
    assert dimension.level_of(5.0) == levels


def test_levels_of_scores_zero_to_one():
    dimension = Dimension("harmless", 2, (0, 1))
    assert [dimension.level_of(score) for score in (0, 0.49, 0.5, 1)] == [1, 1, 2, 2]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(-50, 50), st.integers(1, 100), st.data())
def test_level_of_equals_exact_arithmetic(levels, low, span, data):
    """Thresholds written in decimals (0.29 of 100 levels) fall on the upper level, as with exact fractions."""
    steps = data.draw(st.integers(0, levels))
    exact = Fraction(low) + Fraction(span) * steps / levels
    assert Dimension("d", levels, (low, low + span)).level_of(float(exact)) == 1 + min(levels - 1, steps)


@pytest.mark.parametrize("score", [0.99, 5.01, math.nan, math.inf, -math.inf, True, "4", None, [1]])
def test_level_of_refuses(score):
    with pytest.raises(ValueError, match="helpfulness"):
        Dimension("helpfulness", 5, (1, 5)).level_of(score)


@pytest.mark.parametrize(
    "arguments",
    [
        ("Help", 5, (1, 5)),
        ("", 5, (1, 5)),
        ("a b", 5, (1, 5)),
        ("a", 0, (1, 5)),
        ("a", True, (1, 5)),
        ("a", 2.0, (1, 5)),
        ("a", 5, (5, 1)),
        ("a", 5, (1, 1)),
        ("a", 5, (1, math.inf)),
        ("a", 5, (math.nan, 1)),
        ("a", 5, (1, 2, 3)),
        ("a", 5, "15"),
        ("a", 5, None),
        ("a", 5, (1, 5), 0.5),
    ],
)
def test_bad_dimensions_are_refused(arguments):
    with pytest.raises(ValueError, match="preferences"):
        Dimension(*arguments)


def test_schema_columns():
    assert SCHEMA.names == ("helpfulness", "honesty", "harmless")
    assert SCHEMA.num_classes == 12
    assert SCHEMA.slices == {"helpfulness": slice(0, 5), "honesty": slice(5, 10), "harmless": slice(10, 12)}
    assert SCHEMA.class_names[0] == "<helpfulness 1>"
    assert SCHEMA.class_names[9:] == ("<honesty 5>", "<harmless 0>", "<harmless 1>")


def test_schema_refuses_none_and_repeated_dimensions():
    with pytest.raises(ValueError, match="at least one"):
        PreferenceSchema(())
    with pytest.raises(ValueError, match="repeated: a"):
        PreferenceSchema((Dimension("a", 2, (0, 1)), Dimension("a", 3, (0, 1))))


def test_render_keeps_order_and_writes_from_levels_from():
    assert SCHEMA.render({"helpfulness": 5, "harmless": 2}) == "<helpfulness 5><harmless 1> "
    assert SCHEMA.render({"harmless": 1, "helpfulness": 3}) == "<harmless 0><helpfulness 3> "
    assert SCHEMA.render({}) == ""


@pytest.mark.parametrize(
    ("preferences", "match"),
    [
        ({"humour": 1}, "unknown dimension 'humour'; known: helpfulness, honesty, harmless"),
        ({"harmless": 3}, r"1\.\.2"),
        ({"helpfulness": 0}, r"1\.\.5"),
        ({"helpfulness": True}, "True"),
        ({"helpfulness": "5"}, "'5'"),
        ({"helpfulness": 2.0}, "2.0"),
        (["helpfulness"], "list"),
        (None, "NoneType"),
        ({None: 1}, "None"),
    ],
)
def test_bad_preferences_are_refused(preferences, match):
    for method in (SCHEMA.validate, SCHEMA.render):
        with pytest.raises(ValueError, match=match):
            method(preferences)


@settings(deadline=None)
@given(TEXTS, PREFERENCES)
def test_strip_removes_exactly_what_tag_added(text, preferences):
    tagged = SCHEMA.tag(text, preferences)
    assert SCHEMA.strip(tagged, preferences) == text
    assert tagged.endswith(text) and len(tagged) - len(text) == len(SCHEMA.render(preferences))


@settings(deadline=None)
@given(TEXTS, PREFERENCES.filter(bool))
def test_parse_is_the_inverse_of_tag(text, preferences):
    parsed, rest = SCHEMA.parse(SCHEMA.tag(text, preferences))
    assert (parsed, list(parsed), rest) == (preferences, list(preferences), text)


@settings(deadline=None)
@given(TEXTS, PREFERENCES.filter(bool), st.data())
def test_a_prefix_with_one_bad_tag_is_refused(text, preferences, data):
    """A name that no dimension has, a level beside its range, or a dimension twice, in any place of the prefix."""
    tags = [SCHEMA.dimension(name).written(level) for name, level in preferences.items()]
    place = data.draw(st.integers(0, len(tags) - 1))
    name = list(preferences)[place]
    dimension = SCHEMA.dimension(name)
    fault = data.draw(st.sampled_from(["name", "level", "repeated"]))
    if fault == "name":
        name = data.draw(st.from_regex("[a-z][a-z0-9_-]*", fullmatch=True).filter(lambda n: n not in SCHEMA.names))
        tags[place], match = f"<{name} 1>", "unknown dimension"
    elif fault == "level":
        above = st.integers(dimension.levels_from + dimension.levels)
        level = data.draw(above | st.integers(max_value=dimension.levels_from - 1))
        tags[place], match = f"<{name} {level}>", "level of .* must be in"
    else:
        again = dimension.written(data.draw(st.integers(1, dimension.levels)))
        tags.insert(data.draw(st.integers(place + 1, len(tags))), again)
        match = "repeats dimension"
    with pytest.raises(ValueError, match=match) as refusal:
        SCHEMA.parse("".join(tags) + " " + text)
    assert name in str(refusal.value)


def test_a_users_own_tag_survives():
    text = "<helpfulness 5> what does this tag do?"
    assert SCHEMA.strip(SCHEMA.tag(text, {"helpfulness": 5}), {"helpfulness": 5}) == text
    assert SCHEMA.strip(SCHEMA.tag(text, {}), {}) == text


@pytest.mark.parametrize("tagged", ["hi", "<helpfulness 5>hi", "<helpfulness 4> hi", " <helpfulness 5> hi"])
def test_strip_refuses_another_prefix(tagged):
    with pytest.raises(ValueError, match="does not begin with"):
        SCHEMA.strip(tagged, {"helpfulness": 5})


@pytest.mark.parametrize(
    "text", ["hi", "", "< helpfulness 5> hi", " <helpfulness 5> hi", "<helpfulness five> hi", "<>"]
)
def test_parse_leaves_text_without_leading_tags(text):
    assert SCHEMA.parse(text) == ({}, text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<humour 1> hi", "unknown dimension 'humour'"),
        ("<helpfulness 6> hi", r"1\.\.5"),
        ("<harmless 2> hi", r"0\.\.1"),
        ("<helpfulness -1> hi", r"1\.\.5"),
        ("<helpfulness 5><helpfulness 5> hi", "repeats"),
        ("<helpfulness 5>hi", "one space"),
        ("<helpfulness 5>", "one space"),
        ("<helpfulness " + "9" * 5000 + "> hi", r"1\.\.5"),
    ],
)
def test_parse_refuses_bad_tags(text, match):
    with pytest.raises(ValueError, match=match):
        SCHEMA.parse(text)


def test_dict_round_trip():
    assert PreferenceSchema.from_dict(SCHEMA.to_dict()) == SCHEMA
    assert SCHEMA.to_dict()["harmless"] == {"levels": 2, "score_range": [1, 2], "levels_from": 0}


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({"a": {"levels": 2, "score_range": [0, 1], "weight": 1}}, "unknown key weight"),
        ({"a": {"levels": 2}}, "score_range"),
        ({"a": 2}, "preferences.a"),
        ({}, "at least one"),
        ([], "must map"),
        ({"a": {"levels": "2", "score_range": [0, 1]}}, "'2'"),
        ({1: {"levels": 2, "score_range": [0, 1]}}, "name"),
    ],
)
def test_from_dict_is_strict(mapping, match):
    with pytest.raises(ValueError, match=match):
        PreferenceSchema.from_dict(mapping)


@pytest.mark.parametrize(("number", "levels"), [(1, (1, 1, 2)), (2, (2, 2, 2)), (3, (3, 3, 2)), (4, (5, 5, 2))])
def test_data_types_of_the_paper(number, levels):
    schema = PreferenceSchema.from_dict(yaml.safe_load((CONF / f"datatype{number}.yaml").read_text()))
    assert schema.names == ("helpfulness", "honesty", "harmless")
    assert tuple(dimension.levels for dimension in schema.dimensions) == levels
    assert [dimension.score_range for dimension in schema.dimensions] == [(1, 5), (1, 5), (1, 2)]


def test_a_part_keeps_the_order_of_the_whole():
    schema = PreferenceSchema(tuple(Dimension(name, 2, (0, 1)) for name in ("a", "b", "c")))
    assert schema.part(["c", "a"]).names == ("a", "c") and schema.part(schema.names) == schema
    with pytest.raises(ValueError, match="unknown dimension 'd'"):
        schema.part(["d"])
