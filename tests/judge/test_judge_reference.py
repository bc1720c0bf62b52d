"""The main figures of real votes and verdicts from the commands, against independently computed reference values.

All of them are compared in ``test_judge_reference_walk.py``, which takes longer. Tolerances: 1e-4 for points, which the
reference rounds to four digits; 0.01 for the interval ends of means and 0.05 for those of Bradley-Terry strengths,
which are sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afzal.cli import main

POINT, MEAN, STRENGTH = 1e-4, 0.01, 0.05


@pytest.fixture(scope="module")
def annot(request) -> Path:
    return _shared(request) / "data/annot"


@pytest.fixture(scope="module")
def reference(request) -> dict[str, Any]:
    return json.loads((_shared(request) / "reference/people-and-judges.json").read_text())


def _shared(request) -> Path:
    shared = Path(__file__).parents[2] / "../shared"
    if not shared.is_dir():
        pytest.skip("the shared folder is not there")
    return shared.resolve()


def said(capsys, *arguments: object) -> Any:
    assert main([str(a) for a in arguments] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def points(body: dict, expected: dict, **names: str) -> None:
    """Check figures under our names against the reference under its names."""
    got = {theirs: body[ours] for ours, theirs in names.items()}
    assert got == pytest.approx({theirs: expected[theirs] for theirs in names.values()}, abs=POINT)


def ends(interval: dict, expected: list[float], tolerance: float) -> None:
    assert [interval["low"], interval["high"]] == pytest.approx(expected, abs=tolerance)


def test_a_judge_compared_with_people_on_pandalm(annot, reference, capsys, tmp_path):
    source, expected = annot / "pandalm_human3.json", reference["pandalm"]["judges"]["gpt35"]
    flags = ("--judge", f"verdicts:{annot}/pandalm_judges.jsonl:gpt35", "--out", tmp_path, "--resamples", 400)
    (summary,) = said(capsys, "judge", source, *flags)
    assert summary["no_verdict"] == expected["no_verdict"]
    people, single = summary["people"], expected["agreement_with_single_people"]
    assert people["agreement"]["value"] == pytest.approx(single["with_ties"], abs=POINT)
    ends(people["agreement"], single["with_ties_interval"], MEAN)
    assert people["without_ties"]["pairs"] == single["without_ties_pairs"]
    assert people["minus_ceiling"]["value"] == pytest.approx(expected["minus_human_ceiling"], abs=POINT)
    for epsilon, test in expected["alt_test"].items():
        assert people["alt_test"][epsilon]["advantages"] == pytest.approx(test["advantage_per_annotator"], abs=POINT)
        assert people["alt_test"][epsilon]["passes"] == test["passes"]


def test_models_on_pandalm(annot, reference, capsys):
    board, expected = said(capsys, "leaderboard", annot / "pandalm_human3.json"), reference["pandalm"]["leaderboard"]
    assert [line["name"] for line in board["lines"]] == list(expected)
    for line in board["lines"]:
        points(line, expected[line["name"]], value="bt_half", win_rate="win_rate")
        ends(line, expected[line["name"]]["bt_half_interval_prompts"], STRENGTH)


def test_judges_on_llmbar(annot, reference, capsys):
    board = said(capsys, "leaderboard", annot / "llmbar_gold_vs_judges.jsonl", "--of", "judges")
    lines = {line["name"]: line for line in board["judges"]}
    for name, theirs in reference["llmbar"]["judges"].items():
        points(lines[name], theirs, value="acc", consistent="consistent", slot_bias="slot_bias", kappa="kappa_orders")
    assert (board["separable"], board["pairs"]) == (218, 276)
