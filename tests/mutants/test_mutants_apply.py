"""The list of mutants fits the source as it is, so that ``tests/mutants/run.py`` tries all of them."""

import ast

import pytest
from mutants import run

MUTANTS = run.read()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name[:80])
def test_a_mutant_applies_once_and_still_parses(mutant):
    before = (run.PACKAGE / mutant.file).read_text(encoding="utf-8")
    after = run.mutated(mutant)
    assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))
    assert all((run.ROOT / test).exists() for test in mutant.tests)


def test_there_are_enough_and_none_stands_twice():
    assert len(MUTANTS) >= 150
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_the_overlay_differs_from_the_source_in_one_file(tmp_path):
    mutant = MUTANTS[0]
    package = run.overlay(mutant, tmp_path) / "afzal"
    changed = [
        path.relative_to(run.PACKAGE).as_posix()
        for path in sorted(run.PACKAGE.rglob("*.py"))
        if (package / path.relative_to(run.PACKAGE)).read_text() != path.read_text()
    ]
    assert changed == [mutant.file]
