import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_mathematics_name_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "maths.md").read_text("utf-8")))
    there = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    assert len(named) > 15
    assert named <= there, named - there
