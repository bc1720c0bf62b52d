"""Somebody at the keyboard of a page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LISTEN = """
window.pointers = 0;
for (const kind of ["mousedown", "mouseup", "click", "pointerdown", "touchstart"])
  addEventListener(kind, (event) => { if (event.pointerType !== "" || kind !== "click") window.pointers += 1; }, true);
"""


class Person:
    """Somebody at the keyboard of a page."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.faults, self.asked = page, [], []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda request: self.asked.append(request.url))
        page.add_init_script(LISTEN)
        page.goto(address)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def says(self, text: str, where: str = "saved") -> None:
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[where, text], timeout=15_000
        )

    def phase(self, *names: str) -> str:
        self.page.wait_for_function("(names) => names.includes(document.body.dataset.phase)", arg=names, timeout=15_000)
        return self.page.evaluate("document.body.dataset.phase")

    def votes(self, n: int, *keys: str, says: str) -> None:
        """Press the keys; the answer is saved as number n, and the next question shows."""
        self.phase("ask")
        self.press(*keys)
        self.says(f"saved {n}: {says}")
        self.phase("ask", "done", "feedback")


@contextmanager
def person(chromium: Any, address: str, **context: Any) -> Iterator[Person]:
    """A person on a page of their own. Nothing fails there, no pointer moves, no request leaves the machine."""
    opened = chromium.new_context(**context)
    try:
        one = Person(opened.new_page(), address)
        yield one
        pointers = one.page.evaluate("window.pointers")
    finally:
        opened.close()
    assert one.faults == [], one.faults
    assert pointers == 0
    origin = "/".join(address.split("/")[:3])
    assert [url for url in one.asked if not url.startswith((origin, "data:,"))] == []
