"""Pages of runs, comparisons and judges on a phone: nothing extends beyond the edge, and text is legible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers_report as rr
import pytest
from helpers_browser import CONTRAST, person

from afzal import report
from afzal.report.sections import FrontierChart, LineChart, Section, Table

LONG = "DPO with a label that takes the whole width of a phone"

# Table cells beyond the edge: a user would have to discover that the table scrolls.
HIDDEN = """() => [...document.querySelectorAll("td")]
  .filter((cell) => cell.checkVisibility() && cell.textContent.trim())
  .filter((cell) => [cell, ...cell.children].some((one) => one.getBoundingClientRect().right > innerWidth + 1))
  .map((cell) => cell.textContent)"""

# Drawings cut by the edge, or with letters smaller than 9 pixels; they are drawn with 11.
SMALL = """() => [...document.querySelectorAll("svg.chart")].filter((one) => one.checkVisibility()).filter((one) => {
  const { width, right } = one.getBoundingClientRect();
  return right > innerWidth + 1 || width / one.viewBox.baseVal.width * 11 < 9;
}).map((one) => one.getAttribute("aria-label"))"""

REACHED = "document.documentElement.scrollWidth <= innerWidth"


def of_a_comparison(folder: Path) -> Path:
    body = rr.comparison()
    body["methods"][0]["label"] = LONG
    return report.write_comparison(folder, body)


def of_a_run(folder: Path) -> Path:
    line = report.Series("reward", ((0, 1.0), (5, 1.5), (10, 2.0)), 2)
    spots = (report.PolicyPoint("DPO", 2.0, 2.4, 0.1, 0.05, 3), report.PolicyPoint("reference", 0.0, 0.8))
    columns = ("round", "prompts", "answers", "pairs", "reward", "KL to the first policy")
    extra = [
        Section("Reward by round", "", LineChart((line,), "round", "reward")),
        Section("Rounds", "", FrontierChart(spots), Table(columns, ((1, 80, 400, 200, -0.1255, 4.93e-5),) * 2)),
    ]
    return report.build(rr.write_run(folder / "run"), extra)


def judged(answer: str) -> dict[str, Any]:
    line = {"name": "first answer wins", "value": 0.6, "low": 0.5, "high": 0.7}
    pair = {"why": "both orders differ", "prompt": "ما هي عاصمة أوزبكستان؟", "first": answer, "second": ""}
    pair |= {"verdicts": "first, second", "people": ""}
    body = {"title": "Judge", "subtitle": "s", "findings": ["One."], "facts": [], "lines": [line], "differences": []}
    return {**body, "unit": "share", "rule": 0.5, "worst": [pair], "texts": [{"title": "Asked", "text": answer}]}


def of_a_judge(folder: Path) -> Path:
    return report.write_board(folder, judged("x = 1\n    y = 2"), "judge_card")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("made", [of_a_comparison, of_a_run, of_a_judge])
def test_everything_is_within_the_edge_of_a_phone(chromium, tmp_path, made, scheme):
    address = made(tmp_path).as_uri()
    with person(chromium, address, color_scheme=scheme, viewport={"width": 390, "height": 844}) as one:
        assert one.page.evaluate(HIDDEN) == []
        assert one.page.evaluate(SMALL) == []
        assert one.page.evaluate(REACHED)
        assert one.page.evaluate(CONTRAST) == []
        one.page.set_viewport_size({"width": 320, "height": 256})  # a zoom of 400%
        assert one.page.evaluate(REACHED)


@pytest.mark.slow
def test_wide_windows_show_the_wide_drawing_alone(chromium, tmp_path):
    seen = "[...document.querySelectorAll('figure')].filter((one) => one.checkVisibility()).map((one) => one.className)"
    with person(chromium, of_a_comparison(tmp_path).as_uri(), viewport={"width": 1280, "height": 800}) as one:
        assert set(one.page.evaluate(seen)) == {"full", "any", "wide"}


@pytest.mark.slow
def test_answers_of_a_judge_keep_their_lines_and_their_direction(chromium, tmp_path):
    style = "(css) => [...document.querySelectorAll(css)].map((one) => getComputedStyle(one))"
    with person(chromium, of_a_judge(tmp_path).as_uri()) as one:
        assert one.page.inner_text("dd.answer") == "x = 1\n    y = 2"
        empty = "getComputedStyle(document.querySelectorAll('dd.answer')[1], '::before').content"
        assert one.page.evaluate(empty) == '"(empty)"'
        assert one.page.evaluate(f"({style})('#worst .ask').map((s) => s.direction)") == ["rtl"]
        assert one.page.evaluate(f"({style})('pre').map((s) => s.unicodeBidi)") == ["plaintext"]
