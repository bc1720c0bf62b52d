"""Responses below each other, as on a phone: the bar that names them and leads to each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_browser import CONTRAST, Person
from helpers_web import lines_of, served, write_rows

pytestmark = pytest.mark.slow

LONG = "A long answer that goes on and on. " * 80
PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}

CURRENT = (
    """() => [...document.querySelectorAll("#jumps [aria-current=true]")].map((one) => one.firstChild.textContent)"""
)
# The distance from the bar to the start of a response.
BELOW_BAR = """(place) => document.querySelectorAll("article")[place].getBoundingClientRect().top
  - document.getElementById("jumps").getBoundingClientRect().bottom"""
BAR_SHOWS = """() => { const { left, right, top, bottom } = document.getElementById("jumps").getBoundingClientRect();
  return document.elementFromPoint((left + right) / 4, (top + bottom) / 2)?.closest("#jumps") !== null; }"""


def row(*answers: str) -> dict[str, Any]:
    responses = [{"turns": [{"role": "assistant", "content": text}]} for text in answers]
    return {"afzal": 1, "id": str(len(answers)), "prompt": "Which?", "responses": responses}


def start(folder: Path, *answers: str) -> list[str]:
    write_rows(folder / "rows.jsonl", [row(*answers)])
    return ["rows.jsonl", "--annotators", "ann", "--out", "out"]


def wait_for_current(one: Person, name: str) -> None:
    one.page.wait_for_function(f"(name) => ({CURRENT})().join() === name", arg=name, timeout=5_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_long_first_answer_does_not_hide_that_there_is_a_second(chromium, tmp_path, scheme):
    with served(*start(tmp_path, LONG, LONG + "!"), cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context(color_scheme=scheme, **PHONE)
        one = Person(opened.new_page(), address)
        one.phase("ask")
        assert one.page.inner_text("[data-testid=jumps]").split() == ["First", "Second", "↓"]
        assert one.page.evaluate(CURRENT) == ["First"]
        assert one.page.evaluate(CONTRAST) == []
        one.page.tap("[data-testid=go-1]")
        wait_for_current(one, "Second")
        assert one.page.inner_text("[data-testid=jumps]").split() == ["First", "↑", "Second"]
        assert 0 <= one.page.evaluate(BELOW_BAR, 1) <= 16
        assert one.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Second response"
        assert one.page.evaluate(BAR_SHOWS)
        assert one.page.evaluate(CONTRAST) == []
        # scrolling without the bar moves the mark too
        one.page.evaluate("document.getElementById('main').scrollTop = 300")
        wait_for_current(one, "First")
        assert one.page.evaluate(BAR_SHOWS)
        assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        one.page.tap("[data-testid=vote-second]")
        one.says("saved 1: second")
        opened.close()
        assert one.faults == []
    assert [line["outcome"] for line in lines_of(tmp_path / "out")] == ["second"]


def test_the_bar_is_reached_and_used_by_keyboard_without_voting(chromium, tmp_path):
    with served(*start(tmp_path, LONG, "Short."), cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context(viewport={"width": 375, "height": 667})
        one = Person(opened.new_page(), address)
        one.phase("ask")
        for _ in range(8):
            one.press("Tab")
            if one.page.evaluate("document.activeElement.dataset.testid") == "go-1":
                break
        one.press("Enter")
        # a short second answer cannot reach the bar, but it is the one being read
        wait_for_current(one, "Second")
        assert one.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Second response"
        assert one.page.get_by_role("navigation", name="Responses").get_by_role("button").count() == 2
        assert one.phase("ask", "saving") == "ask"
        opened.close()
        assert one.faults == []
    assert lines_of(tmp_path / "out") == []


def test_there_is_no_bar_where_both_answers_are_in_view(chromium, tmp_path):
    with served(*start(tmp_path, "Yes.", "No."), cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context(viewport={"width": 375, "height": 900})
        one = Person(opened.new_page(), address)
        one.phase("ask")
        assert not one.page.is_visible("[data-testid=jumps]")
        one.page.set_viewport_size({"width": 375, "height": 300})
        one.page.wait_for_selector("[data-testid=jumps]", timeout=5_000)
        one.page.set_viewport_size({"width": 1280, "height": 300})  # side by side
        one.page.wait_for_selector("[data-testid=jumps]", state="hidden", timeout=5_000)
        opened.close()
        assert one.faults == []


def test_every_response_of_a_ranking_is_reached_on_a_short_screen(chromium, tmp_path):
    with served(*start(tmp_path, *(f"{k} {LONG}" for k in range(5))), "--mode", "rank", cwd=tmp_path) as (
        (address,),
        _,
    ):
        opened = chromium.new_context(viewport={"width": 320, "height": 400})
        one = Person(opened.new_page(), address)
        one.phase("ask")
        for place in (4, 2, 3):
            one.page.click(f"[data-testid=go-{place}]")
            wait_for_current(one, f"Response {place + 1}")
            assert 0 <= one.page.evaluate(BELOW_BAR, place) <= 16
            assert one.page.evaluate(BAR_SHOWS)
        assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        opened.close()
        assert one.faults == []
