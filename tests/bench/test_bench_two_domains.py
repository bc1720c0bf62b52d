"""The committed two-domains page matches its figures, and the verdicts follow from the intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import two_domains

FOLDER = Path(__file__).parents[2] / "benchmarks/results/tasks"


def test_the_page_is_drawn_from_the_figures():
    results = json.loads((FOLDER / "two-domains.json").read_text("utf-8"))
    assert (FOLDER / "two-domains.md").read_text("utf-8") == "\n".join(two_domains.page(results)) + "\n"
    for task in results["tasks"].values():
        for run in task["runs"][1:]:
            _, low, high = run["less alone"]
            assert run["verdict"] == ("lost" if high < 0 else "gained" if low > 0 else "within its interval")


def test_a_task_is_lost_if_its_interval_is_below_0():
    generator = np.random.default_rng(0)
    alone = generator.integers(0, 2, (2, 200)).astype(float)
    assert two_domains.compared("mixed", 0.7 * alone, alone)["verdict"] == "lost"
    assert two_domains.compared("mixed", alone, 0.7 * alone)["verdict"] == "gained"
    assert two_domains.compared("mixed", alone[:, ::-1], alone)["verdict"] == "within its interval"
