"""The page for people with low vision or without a keyboard, and with a failing server, image or sound."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from helpers_browser import CONTRAST, Person, person
from helpers_media import png, wav
from helpers_web import lines_of, pairs, served, write_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_page_and_every_dialog_can_be_read(chromium, tmp_path, scheme):
    write_rows(tmp_path / "rows.jsonl", pairs(1))
    (tmp_path / "guide.txt").write_text("Choose the good one.")
    arguments = ["rows.jsonl", "--out", "out", "--guideline", "guide.txt"]
    with (
        served(*arguments, cwd=tmp_path) as ((address,), _),
        person(chromium, address, color_scheme=scheme) as one,
    ):
        one.phase("sign_in")
        assert one.page.evaluate(CONTRAST) == []
        one.page.keyboard.type("Ann")
        one.press("Enter")
        one.phase("ask")
        kinds = []
        for key in ("Escape", "?", "n", "s"):
            assert one.page.evaluate(CONTRAST) == []
            kinds.append(one.page.get_attribute("#dialog", "data-kind"))
            one.press("Escape", key)
        assert one.page.evaluate(CONTRAST) == []
        assert [*kinds, one.page.get_attribute("#dialog", "data-kind")] == [
            "guideline",
            "guideline",
            "keys",
            "note",
            "skip",
        ]


# The share of the window's height, at its middle, that shows texts to compare.
SHOWS = """() => {
  document.querySelector("article").scrollIntoView();
  const heights = Array.from({ length: 40 }, (_, k) => (k + 0.5) / 40 * innerHeight);
  return heights.filter((y) => document.elementFromPoint(innerWidth / 2 - 20, y)?.closest("main")).length / 40;
}"""


@pytest.mark.parametrize(("width", "height"), [(640, 400), (844, 390), (320, 256)])
def test_a_short_window_has_room_for_the_texts(chromium, tmp_path, width, height):
    """A zoom of 200% or 400%, and a phone held sideways."""
    rows = [{"prompt": "p", "chosen": "good words " * 300, "rejected": "bad words " * 300}]
    write_rows(tmp_path / "rows.jsonl", rows)
    for name, mode in (("pair", []), ("rate", ["--mode", "rate"])):
        arguments = ["rows.jsonl", "--annotators", "ann", "--out", name, *mode]
        with (
            served(*arguments, cwd=tmp_path) as ((address,), _),
            person(chromium, address, viewport={"width": width, "height": height}) as one,
        ):
            one.phase("ask")
            before = one.page.evaluate("scrollY")
            one.press("j")
            assert one.page.evaluate("scrollY") > before
            assert one.page.evaluate(SHOWS) > 0.9
            assert one.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            one.press("1", "1", "Enter")
            one.says("saved 1")


def test_a_skip_or_a_note_by_mistake_is_left_by_touch(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(1))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        opened = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        one = Person(opened.new_page(), address)
        one.phase("ask")
        for name in ("skip", "note"):
            one.page.tap(f"[data-testid={name}]")
            assert one.page.is_visible("#dialog")
            one.page.tap("[data-testid=dialog-leave]")
            assert not one.page.is_visible("#dialog")
        one.page.tap("[data-testid=vote-first]")
        one.says("saved 1: first")
        opened.close()
        assert one.faults == []
    assert [line["kind"] for line in lines_of(tmp_path / "out")] == ["pair"]


def media_rows(kind: str, names: str) -> list[dict[str, Any]]:
    """One row that compares two files."""
    answers = [{"turns": [{"role": "assistant", "content": [{"type": kind, kind: name}]}]} for name in names.split()]
    return [{"afzal": 1, "id": "0", "prompt": "Which?", "responses": answers}]


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_what_cannot_be_shown_is_not_voted_on(chromium, tmp_path, kind):
    for n, name in enumerate("ab"):
        (tmp_path / name).write_bytes(png(n) if kind == "image" else wav(400 + n))
    write_rows(tmp_path / "rows.jsonl", media_rows(kind, "a b"))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        next((tmp_path / "out" / "media").iterdir()).unlink()
        opened = chromium.new_context()
        one = Person(opened.new_page(), address)
        one.phase("ask")
        one.says("cannot be shown here", "lock")
        one.press("1")
        one.says("cannot be shown here", "lock")
        one.press("s")
        one.press("2")
        one.says("saved 1: skipped")
        opened.close()
    assert [line.get("reason") for line in lines_of(tmp_path / "out")] == ["broken"]


def test_arrows_in_a_sound_move_within_it(chromium, tmp_path):
    for n, name in enumerate("ab"):
        (tmp_path / name).write_bytes(wav(400 + n, 0.5))
    write_rows(tmp_path / "rows.jsonl", media_rows("audio", "a b"))
    with (
        served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _),
        person(chromium, address) as one,
    ):
        one.phase("ask")
        for place, key in enumerate("qw"):
            one.press(key)
            one.page.wait_for_function("(k) => document.querySelectorAll('audio')[k].ended", arg=place)
        one.page.wait_for_function("() => !document.body.classList.contains('locked')")
        one.page.focus("#responses audio")
        one.press("ArrowRight", "ArrowLeft")
        assert one.phase("ask", "saving", "done") == "ask"
        one.votes(1, "1", says="first")
    assert [line["outcome"] for line in lines_of(tmp_path / "out")] == ["first"]


def test_a_server_that_hangs_is_told_of_and_the_answer_counts_once(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(2))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), process):
        opened = chromium.new_context()
        page = opened.new_page()
        page.clock.install()
        one = Person(page, address)
        one.phase("ask")
        process.send_signal(signal.SIGSTOP)
        one.press("1")
        page.clock.fast_forward(20_000)
        one.says("sent again", "banner")
        page.clock.fast_forward(2000)
        process.send_signal(signal.SIGCONT)
        one.says("saved 1: first")
        assert one.page.is_hidden("#banner")
        opened.close()
    assert [line["outcome"] for line in lines_of(tmp_path / "out")] == ["first"]


def test_practice_puts_the_focus_on_going_on_and_is_read_aloud(chromium, tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(1))
    write_rows(tmp_path / "gold.jsonl", [{"prompt": "known", "chosen": "good", "rejected": "bad"}])
    arguments = ["rows.jsonl", "--annotators", "ann", "--gold", "gold.jsonl", "--practice", "1", "--out", "out"]
    focus = "document.activeElement.dataset.testid"
    with served(*arguments, cwd=tmp_path) as ((address,), _), person(chromium, address) as one:
        one.phase("ask")
        one.page.focus("[data-testid=vote-first]")
        one.press("Enter")
        one.phase("feedback")
        assert one.page.evaluate(focus) == "go-on"
        assert one.page.get_attribute("#ask", "aria-live") == "polite"
        one.press("Tab")
        assert one.page.evaluate(focus) == "skip"  # a navigation key is no "any key"
        one.press("Shift+Tab", "Enter")
        one.phase("ask")
