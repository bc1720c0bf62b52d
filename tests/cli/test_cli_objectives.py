"""``afzal objectives``: the list, a single objective, and both as JSON."""

from __future__ import annotations

import json

import pytest

from afzal import objectives
from afzal.cli import main


def out(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["objectives", *args]) == 0
    return capsys.readouterr().out


def test_the_list_has_a_line_for_each_with_formula_needs_defaults_and_paper(capsys: pytest.CaptureFixture[str]):
    head, *lines = out(capsys).splitlines()
    assert head.split("\t") == ["name", "needs", "defaults", "formula", "paper"]
    assert [line.split("\t")[0] for line in lines] == list(objectives.REGISTRY)
    by_name = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    assert by_name["tdpo2"][:2] == ["pairs, a reference that can be run, logits", "beta=0.1, alpha=0.5"]
    assert by_name["simpo"][0] == "pairs"
    assert by_name["kto"][0] == "labelled responses, reference, two prompts per update"


def test_one_is_shown_by_name_or_alias(capsys: pytest.CaptureFixture[str]):
    shown = out(capsys, "sigmoid")
    assert "name               dpo\n" in shown
    assert "at reference       0.693147\n" in shown
    assert "limits             beta: in (0, inf)\n" in shown


def test_json_holds_the_same_facts(capsys: pytest.CaptureFixture[str]):
    every = json.loads(out(capsys, "--json"))
    assert [facts["name"] for facts in every] == list(objectives.REGISTRY)
    one = json.loads(out(capsys, "davidson", "--json"))
    assert one == next(facts for facts in every if facts["name"] == "davidson")
    assert one["learnable"] == ["nu"]
    assert one["defaults"] == {"beta": 0.1, "nu": 1.0}


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["objectives", "dpoo"]) == 2
    assert "did you mean dpo" in capsys.readouterr().err
