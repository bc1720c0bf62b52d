"""The health checks of policies that learn from rewards fail as rarely as they claim, on simulated runs: a few of each
kind here, 1,000 in the results file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import health_rollouts as simulated

RESULTS = Path(simulated.__file__).parent / "results" / "health" / "rollouts.json"
FALSE_ALARMS, FOUND = 0.02, 0.95


def test_the_stored_figures_meet_the_claims_for_every_world():
    results = json.loads(RESULTS.read_text("utf-8"))
    assert results["runs"] >= 1000
    assert set(results["healthy"]) == set(simulated.HEALTHY)
    assert set(results["sick"]) == set(simulated.SICK)
    assert {name: row for name, row in results["healthy"].items() if row["false_alarms"] > FALSE_ALARMS} == {}
    assert {name: row for name, row in results["sick"].items() if row["found"] < FOUND} == {}


@pytest.mark.parametrize("name", simulated.HEALTHY)
def test_healthy_runs_raise_few_alarms(name: str):
    """At most one alarm in 20 runs."""
    said = simulated.raised(simulated.HEALTHY[name], 20, 10_000)
    assert sum(map(bool, said)) <= 1, [[d.code for d in each] for each in said]


@pytest.mark.parametrize("name", simulated.SICK)
def test_sick_runs_are_found_and_named(name: str):
    """In at least 18 of 20 runs."""
    wanted, pattern, world = simulated.SICK[name]
    assert sum(simulated.names(each, wanted, pattern) for each in simulated.raised(world, 20, 10_000)) >= 18


def test_a_run_is_a_function_of_its_seed():
    world = simulated.HEALTHY["grpo"]
    assert simulated.lines_of(world, 3) == simulated.lines_of(world, 3)
    assert simulated.lines_of(world, 3) != simulated.lines_of(world, 4)
