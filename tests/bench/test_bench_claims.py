"""Every measured figure on the pages of principles, debate and inverse RL is one of a committed run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "principles": ("principles/principles", "principles/principles-lab", "principles/principles-matched"),
    "debate": ("debate/debate-lab",),
    "inverse-rl": ("inverse-rl/inverse-rl",),
}
TOLERANCES = "## Where everything is known"
"""A section whose figures are test tolerances."""


def body(value: Any) -> Iterator[tuple[float, ...]]:
    """Every number of a run, every value with its interval, and the mean, minimum and maximum over seeds."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield (float(value),)
    elif isinstance(value, dict):
        if {"value", "low", "high"} <= value.keys():
            yield value["value"], value["low"], value["high"]
        yield from (figures for part in value.values() for figures in body(part))
    elif isinstance(value, list):
        if value and all(isinstance(part, dict) for part in value):
            for key in value[0]:
                numbers = [part[key] for part in value if isinstance(part.get(key), float)]
                if numbers:
                    mean = sum(numbers) / len(numbers)
                    yield mean, min(numbers), max(numbers)
                    yield (mean,)
        yield from (figures for part in value for figures in body(part))


def stated(text: str) -> list[tuple[str, ...]]:
    """Values with intervals, and other numbers with two decimals or more; except in links, code and paper numbers."""
    before, head, rest = text.partition(TOLERANCES)
    text = before + (rest.partition("\n## ")[2] if head else "")
    text = text.partition("\n## What was measured")[2] or text
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv [\d.]+", "", text, flags=re.DOTALL)
    number = r"-?\d+\.\d+"
    whole = re.findall(rf"({number}) \[({number}),\s({number})\]", text)
    rest = re.sub(rf"{number}\s\[{number},\s{number}\]", "", text)
    return [*whole, *((n,) for n in re.findall(r"(?<![\w.-])\d+\.\d{2,}(?![\w.])", rest))]


def is_known(claim: tuple[str, ...], numbers: set[tuple[float, ...]]) -> bool:
    """Whether a run has these numbers to the stated decimals; a decrease may be stated without its sign."""
    half = [0.5000001 * 10 ** -len(n.partition(".")[2]) for n in claim]
    at = [float(n) for n in claim]
    turned = [at, [-at[0], *(-n for n in at[:0:-1])]]
    return any(
        len(figures) == len(at) and all(abs(a - b) <= h for a, b, h in zip(figures, wanted, half, strict=True))
        for figures in numbers
        for wanted in turned
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_one_of_a_committed_run(page):
    folder = ROOT / "benchmarks" / "results"
    numbers = {figures for name in PAGES[page] for figures in body(json.loads((folder / f"{name}.json").read_text()))}
    claims = stated((ROOT / "docs" / f"{page}.md").read_text("utf-8"))
    assert len(claims) >= 5
    assert [claim for claim in claims if not is_known(claim, numbers)] == []


def test_a_figure_that_no_run_has_is_detected():
    numbers = set(body({"a": {"value": 0.1234, "low": 0.1, "high": 0.2}, "b": [{"x": 1.0}, {"x": 2.0}]}))
    assert is_known(("0.123", "0.100", "0.200"), numbers)
    assert is_known(("-0.123", "-0.200", "-0.100"), numbers)
    assert not is_known(("0.124", "0.100", "0.200"), numbers)
    assert not is_known(("0.123", "0.100", "0.210"), numbers)
    assert is_known(("1.50", "1.00", "2.00"), numbers)
    assert stated("0.5 [0.1, 0.9] and 0.25, `3.75`\n## What") == [("0.5", "0.1", "0.9"), ("0.25",)]
