import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_mathematics_name_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "maths.md").read_text("utf-8")))
    there = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    assert len(named) > 15
    assert named <= there, named - there


def test_the_gain_that_the_readme_states_is_that_of_its_picture():
    """Read off the drawing: the height of the last policy over the start, as a share of the optimum's at its KL."""
    picture = (ROOT / "docs" / "frontier.svg").read_text("utf-8")
    line = re.findall(r'class="l line s4" d="M([^"]*)"', picture)[0]
    curve = np.array([[float(v) for v in point.split()] for point in line.split("L")])
    spots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="12"><title>([^:]*):', picture)
    at = {name: (float(x), float(y)) for x, y, name in spots}
    assert {"SFT", "DPO, beta 1", "DPO, beta 0.3", "DPO, beta 0.1"} <= at.keys()
    for x, y in at.values():
        assert y >= np.interp(x, *curve.T) - 0.2  # no policy is above the optimum, to the tenth of a unit
    x, y = at["DPO, beta 0.1"]
    start = at["SFT"][1]
    share = (start - y) / (start - np.interp(x, *curve.T))
    (stated,) = re.findall(r"captures (\d+)% of the possible gain", (ROOT / "README.md").read_text("utf-8"))
    assert share == pytest.approx(int(stated) / 100, abs=0.01)
