"""Numbers and text formatted for display."""

import math

import pytest

from afzal import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.log(2), "0.6931"),
        (-112.73, "−112.7"),
        (3.14159, "3.142"),
        (0.0, "0"),
        (12345.678, "12,345.7"),
        (1234567.0, "1,234,567"),
        (260032, "260,032"),
        (3e-5, "3e−5"),
        (1.25e-6, "1.25e−6"),
        (None, "—"),
        (math.nan, "—"),
        (math.inf, "—"),
        (True, "—"),
        ("5", "—"),
    ],
)
def test_number(value, shown):
    assert text.number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(-0.0026, "−0.003"), (0.0345, "0.03"), (0.094, "0.09"), (9.96, "10.0")])
def test_two_digits_never_round_a_number_to_nothing(value, shown):
    assert text.number(value, 2) == shown


def test_less_than_a_second_is_shown_without_a_number():
    assert text.time_left(0.04) == "less than a second left"
    assert text.time_left(1.25) == "about 1.2 s left"
    assert text.time_left(190) == "about 3 min 10 s left"


def test_signs_and_intervals():
    assert text.signed(0.5) == "+0.5000"
    assert text.signed(-0.5) == "−0.5000"
    assert text.signed(0.0) == "0"
    assert text.interval(0.801, 0.902) == "[0.801, 0.902]"
    assert text.interval(None, 0.9) == ""


def test_settings_are_written_as_typed():
    assert [text.setting(v) for v in (0.1, 3e-5, 1e-4, 16, 0.0, 1.5e-6)] == ["0.1", "3e-5", "1e-4", "16", "0", "1.5e-6"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.25, "1.2 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds, shown):
    assert text.duration(seconds) == shown


def test_deceptive_characters_are_made_visible():
    assert text.visible("a\u202eb") == "a⟨U+202E⟩b"
    assert text.visible("a\x00\x1bb") == "a␀␛b"
    assert text.visible("\ud800") == "\N{REPLACEMENT CHARACTER}"
    assert text.visible("tab\tline\nend") == "tab\tline\nend"
    assert text.visible("oʻzbekcha 日本語 👩‍🚀") == "oʻzbekcha 日本語 👩‍🚀"
