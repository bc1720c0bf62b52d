"""A complete training run as a user would do it: its data, and the run at a small size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.gpu.install import ROOT
from benchmarks.real_run import data


def test_made_pairs_share_all_but_the_ending():
    material = data.material(None, stories=20, pairs=20)
    assert material.source == "made stories"
    assert material == data.material(None, stories=20, pairs=20)
    for row in material.pairs:
        assert row["chosen"] != row["rejected"]
        glad, sad = (row[side].split(". ") for side in ("chosen", "rejected"))
        assert glad[:-1] == sad[:-1]
        assert glad[-1].rstrip(".") in data._GLAD
        assert sad[-1].rstrip(".") in data._SAD


@pytest.mark.shared
def test_real_stories_are_taken_where_they_are(shared):
    material = data.material(shared / "data")
    assert material.source == "real stories"
    assert len(material.pairs) == 497
    assert len(material.stories) > 600
    assert all(row["prompt"].endswith(".") and row["completion"].startswith(" ") for row in material.stories)


@pytest.mark.slow
def test_a_small_run_learns_and_is_not_repeated(tmp_path):
    out = tmp_path / "run.json"
    line = [sys.executable, "-m", "benchmarks.real_run", "--out", str(out), "--tiny", "--device", "cpu"]
    line += ["--shared", str(tmp_path)]
    first = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    results = json.loads(out.read_text())
    for method in ("sft", "dpo"):
        assert results[method]["held-out loss after"] < results[method]["held-out loss before"]
        assert (tmp_path / "run.runs" / method / "report.html").stat().st_size == results[method]["report"]
    assert results["dpo"]["held-out loss before"] == pytest.approx(0.6931, abs=1e-3)
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert json.loads(out.read_text())["dpo"]["loop seconds"] == results["dpo"]["loop seconds"]
