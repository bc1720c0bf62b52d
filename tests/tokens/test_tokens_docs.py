"""The examples of the page on tokens run unchanged."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tokens.md"
SOURCES = Path(__file__).resolve().parents[2] / "src" / "afzal" / "tokens"


def test_the_examples_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert tried > 15
    assert failed == 0


def test_every_reason_is_in_the_table() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in SOURCES.glob("*.py"))
    places = r"(?:TurnError\(|item\.where, |_cut\(item, |else |return |identical = )"
    used = set(re.findall(places + r'"([a-z]+_[a-z_]+|boundary|normalised)"', source))
    table = PAGE.read_text(encoding="utf-8").split("## Reasons")[1]
    assert len(used) > 12
    assert {reason for reason in used if f"`{reason}`" not in table} == set()
