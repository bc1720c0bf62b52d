"""The health checks fail as rarely as they claim, on simulated runs: a few of each kind here, 1,000 in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import health_sim

RESULTS = Path(health_sim.__file__).parent / "results" / "health" / "simulated.json"
FALSE_ALARMS, FOUND = 0.02, 0.95


def test_the_stored_figures_meet_the_claims_for_every_world():
    results = json.loads(RESULTS.read_text("utf-8"))
    assert results["runs"] >= 1000
    assert set(results["healthy"]) == set(health_sim.HEALTHY)
    assert set(results["sick"]) == set(health_sim.SICK)
    assert {name: row for name, row in results["healthy"].items() if row["false_alarms"] > FALSE_ALARMS} == {}
    assert {name: row for name, row in results["sick"].items() if row["found"] < FOUND} == {}


@pytest.mark.parametrize("name", health_sim.HEALTHY)
def test_healthy_runs_raise_few_alarms(name: str):
    """At most one alarm in 30 runs."""
    codes = health_sim.codes_of(health_sim.HEALTHY[name], 30, 10_000)
    assert sum(map(bool, codes)) <= 1, codes


@pytest.mark.parametrize("name", health_sim.SICK)
def test_sick_runs_are_found(name: str):
    """In at least 28 of 30 runs."""
    wanted, world = health_sim.SICK[name]
    assert sum(bool(wanted & set(each)) for each in health_sim.codes_of(world, 30, 10_000)) >= 28


def test_a_run_is_a_function_of_its_seed():
    world = health_sim.HEALTHY["dpo"]
    assert health_sim.lines_of(world, 3) == health_sim.lines_of(world, 3)
    assert health_sim.lines_of(world, 3) != health_sim.lines_of(world, 4)
