"""A result is named by what it is: no variable of the package is called ``found`` or ``stuff``."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_source import parsed

SOURCE = Path(__file__).resolve().parents[2] / "src" / "afzal"

SAY_NOTHING = {"found", "stuff", "thing", "things"}


def findings(source: str) -> Iterator[str]:
    """Variables and parameters whose name says nothing, as ``line: name``."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SAY_NOTHING:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.arg) and node.arg in SAY_NOTHING:
            yield f"{node.lineno}: {node.arg}"


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "def f(found): pass",
        "for i, thing in rows: pass",
        "if (found := g()): pass",
        "[stuff for stuff in rows]",
        "def f(*, things=1): pass",
    ],
)
def test_names_that_say_nothing_are_detected(source):
    assert len(list(findings(source))) == 1


def test_other_names_pass():
    assert list(findings("verdicts = found(rows)\nthis.found = founder = f(found=1)")) == []


def test_results_are_named_by_what_they_are():
    files = sorted(SOURCE.rglob("*.py"))
    assert [f"{path.relative_to(SOURCE)}:{name}" for path in files for name in findings(path.read_text("utf-8"))] == []
