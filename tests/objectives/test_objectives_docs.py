"""docs/objectives.md has a line for every objective, and its contents match the registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_objectives import EVERY

from afzal import objectives

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def cells(name: str) -> list[str]:
    """The cells of an objective's line in the index."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{name}`")]
    return [cell.strip().replace("\\|", "|") for cell in row.replace("\\|", "\\¦").split("|")[1:-1]]


@pytest.mark.parametrize("name", EVERY)
def test_the_index_says_what_the_registry_says(name):
    objective = objectives.get(name)
    names, formula, defaults, file, paper, elsewhere = (cell.replace("\\¦", "|") for cell in cells(name))
    aliases = [alias for alias, real in objectives.ALIASES.items() if real == name]
    assert names == ", ".join(f"`{word}`" for word in [name, *aliases])
    assert formula == f"`{objective.formula}`"
    assert defaults == (", ".join(f"{k} {v}" for k, v in objective.parameters.items()) or "-")
    assert file == objective.fn.__module__.rpartition(".")[2] + ".py"
    assert paper == objective.paper
    assert elsewhere


def test_the_index_lists_nothing_else():
    table = PAGE.read_text(encoding="utf-8").partition("## The index")[2].partition("Not a separate loss")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert listed == EVERY


@pytest.mark.parametrize("name", [n for n, o in objectives.REGISTRY.items() if o.scores == "rollout"])
def test_losses_on_rollouts_are_listed_as_they_are(name):
    objective = objectives.get(name)
    names, formula, defaults, file, paper = (cell.replace("\\¦", "|") for cell in cells(name))
    assert names == f"`{name}`"
    assert formula == f"`{objective.formula}`"
    assert defaults == ", ".join(f"{k} {v}" for k, v in objective.parameters.items())
    assert file == objective.fn.__module__.rpartition(".")[2] + ".py"
    assert paper == objective.paper
