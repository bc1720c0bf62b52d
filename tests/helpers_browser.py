"""A person at the keyboard of a page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LISTEN = """
window.pointers = 0;
for (const kind of ["mousedown", "mouseup", "click", "pointerdown", "touchstart"])
  addEventListener(kind, (event) => { if (event.pointerType !== "" || kind !== "click") window.pointers += 1; }, true);
"""

# Texts whose contrast with the nearest opaque background is below WCAG's 4.5; disabled elements are exempt.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (node) => { for (let n = node; n; n = n.parentElement) {
    const colour = rgb(getComputedStyle(n).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour; } return [255, 255, 255]; };
  const opaque = (node) => node ? Number(getComputedStyle(node).opacity) * opaque(node.parentElement) : 1;
  const faults = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest(":disabled")) continue;
    const style = getComputedStyle(node), back = behind(node), share = opaque(node);
    const ink = rgb(node.ownerSVGElement ? style.fill : style.color);
    const front = ink.slice(0, 3).map((c, k) => share * c + (1 - share) * back[k]);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faults.push(`${node.tagName} ${node.textContent.trim().slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return faults;
}"""


class Person:
    """A person at the keyboard of a page."""

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
        """Press the keys; the answer is saved as number n, and the next question appears."""
        self.phase("ask")
        self.press(*keys)
        self.says(f"saved {n}: {says}")
        self.phase("ask", "done", "feedback")


@contextmanager
def person(chromium: Any, address: str, **context: Any) -> Iterator[Person]:
    """A person on a new page. No script fails, no pointer moves, no request leaves the machine."""
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
