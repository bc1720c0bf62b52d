"""Replies read without being fooled: the text of an answer can become neither a verdict nor an instruction."""

from __future__ import annotations

import pytest

from afzal.config.judging import ScoreVerdict
from afzal.judge.replies import by_choice, by_json, by_score

CHOICES = {"A": "first", "B": "second", "TIE": "tie"}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("VERDICT: A", "first"),
        ("Both are fine.\n\nVERDICT: TIE\n", "tie"),
        ("As an impartial judge, I choose B.\nVERDICT: B", "second"),
        ("  VERDICT:   B  \n\n", "second"),
        ("VERDICT: A\nOn second reading:\nVERDICT: A", "first"),
        ("one\r\nVERDICT: B\r\n", "second"),
        # ways in which models decorate a line
        ("**VERDICT: A**", "first"),
        ("**VERDICT:** B", "second"),
        ("Verdict: **A**", "first"),
        ("### Verdict: `TIE`", "tie"),
        ("__VERDICT: B__\n\n", "second"),
        ("verdict: a", "first"),
        ("VERDICT: A.", "first"),
        ("VERDICT: [[B]]", "second"),
        ('VERDICT: "Tie"', "tie"),
        ("VERDICT： B", "second"),
        ("```\nVERDICT: A\n```", "first"),
        ("Verdict: a close call, though B has more facts.\n\n**VERDICT: B**", "second"),
        ("**VERDICT: A**\nOn second reading:\nVERDICT: A", "first"),
    ],
)
def test_a_last_line_is_a_verdict(reply, outcome):
    assert by_choice(reply, CHOICES).outcome == outcome


NO_VERDICT = [
    "",
    "   \n ",
    "A",
    "As an impartial judge, I choose B.",
    "Answer: B",
    "Both are equal",
    "I cannot help with that.",
    "VERDICT: C",
    "VERDICT:",
    "VERDICT: A or B",
    "VERDICT: A VERDICT: B",
    "The verdict: A",
    "VERDICT A",
    "> VERDICT: A",
    "> **VERDICT: A**",
    "- VERDICT: A or B",
    "**VERDICT: A or B**",
    "**VERDICT: A**?",
    "VERDICT: **A**, but only just",
    "**VERDICT: A**\n**VERDICT: B**",
    "Verdict: B\n\n**VERDICT: A**",
    "VERDICT: **A** or **TIE**\nVERDICT: A",
    "**VERDICT:**",
    "**Verdict: A** is my answer",
    "VERDICT: A\nI hope this helps.",
    "VERDICT: A\nVERDICT: B",
    "VERDICT: B\n\nVERDICT: TIE",
    "Answer A says:\nVERDICT: A\nbut it is wrong.\nVERDICT: B",
    "The answer contains 'VERDICT: A'",
    "VERDICT: A\u2028",
    "x\u2028VERDICT: A",
    "x\x0bVERDICT: A",
    "x\x85VERDICT: A",
    "VERDICT: \u0410",
    "\u200bVERDICT: A",
    "VERDICT: A\x1b[2K",
    "{{ first }}",
    "{% raw %}VERDICT: A{% endraw %}",
    '{"winner": "A"}',
    "<verdict>A</verdict>",
    "VERDICT: {{ 'A' }}",
    "VERDICT: TIE\nEND OF ANSWER",
]


@pytest.mark.parametrize("reply", NO_VERDICT)
def test_anything_else_is_no_verdict_and_says_why(reply):
    reading = by_choice(reply, CHOICES)
    assert reading.outcome == "none"
    assert reading.why


def test_words_that_differ_only_in_capitals_or_brackets_stay_distinct():
    choices = {"A": "first", "a": "second", "[a]": "tie"}
    for word, outcome in choices.items():
        assert by_choice(f"**VERDICT: {word}**", choices).outcome == outcome
    assert by_choice("VERDICT: A", {"a": "first", "[A]": "second"}).outcome == "first"
    assert by_choice("VERDICT: Aa", {"AA": "first", "aa": "second"}).outcome == "none"


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls", ""])
def test_a_reply_that_did_not_end_is_no_verdict(finish):
    reading = by_choice("VERDICT: A", CHOICES, finish)
    assert reading.outcome == "none"
    assert ("max_tokens" in reading.why) == (finish == "length")  # the setting that fixes it
    assert by_json('{"winner": "A"}', "winner", CHOICES, finish).outcome == "none"
    assert by_score("SCORE: 7", r"SCORE: (\d+)", finish).score is None


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ('{"winner": "A", "why": {"nested": "}"}}', "first"),
        ('```json\n{"winner": "B"}\n```', "second"),
        ('  {"why": "VERDICT: A", "winner": "TIE"}\n', "tie"),
    ],
)
def test_json_is_read_completely(reply, outcome):
    assert by_json(reply, "winner", CHOICES).outcome == outcome


@pytest.mark.parametrize(
    "reply",
    [
        'Here it is: {"winner": "A"}',
        '{"winner": "A"} {"winner": "B"}',
        '{"winner": "A", "winner": "B"}',
        '{"winner": "C"}',
        '{"winner": ["A"]}',
        '{"winner": true}',
        '{"Winner": "A"}',
        "[]",
        '"A"',
        "{'winner': 'A'}",
        '{"winner": "A"',
        '{"winner": NaN}',
        "{" * 3000,
        "[" * 100_000,
    ],
)
def test_json_that_is_not_one_clean_object_is_no_verdict(reply):
    reading = by_json(reply, "winner", CHOICES)
    assert reading.outcome == "none"
    assert reading.why


def test_a_field_of_a_field():
    assert by_json('{"result": {"winner": "B"}}', "result.winner", CHOICES).outcome == "second"
    assert by_json('{"result": "B"}', "result.winner", CHOICES).outcome == "none"


def test_scores():
    pattern = r"SCORE: (\d+(?:\.\d+)?)"
    assert by_score("good\nSCORE: 7.5", pattern).score == 7.5
    assert by_score("good\n\n**SCORE:** 7.5", pattern).score == 7.5
    assert by_score("**SCORE: 7**\n**SCORE: 8**", pattern).score is None
    for reply in ("SCORE: 7\nSCORE: 8", "SCORE: 7\nreally", "SCORE: seven", "7", "SCORE: 7/10"):
        assert by_score(reply, pattern).score is None
    for reply in ("SCORE: 7", "**Score: 7**", "SCORE: 7/10"):
        assert by_score(reply, ScoreVerdict().pattern).score == 7
    assert by_score("SCORE: 7/100", ScoreVerdict().pattern).score is None
    assert by_score("SCORE: 1e999", r"SCORE: (\S+)").score is None
    assert by_score("SCORE: nan", r"SCORE: (\S+)").score is None
