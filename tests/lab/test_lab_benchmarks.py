"""The experiments on the enumerable language run, reuse finished runs, and judge by their results."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from afzal import runs
from afzal.errors import AfzalError
from afzal.lab import exact, language
from afzal.lab.matched_kl import Point, Trajectory
from afzal.records import Item, Response

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab_world(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import lab_world

    return lab_world


@pytest.fixture
def ordering(lab_world: ModuleType) -> ModuleType:
    from benchmarks import ordering

    return ordering


def test_a_finished_run_is_used_again_only_with_the_same_settings(lab_world, tmp_path):
    folder = tmp_path / "run"
    assert not lab_world.finished(folder, {"lr": 1.0})
    with runs.create(folder, {"lr": 1.0}) as made:
        made.update(status="finished", config={"lr": 1.0, "seed": 3})
    assert lab_world.finished(folder, {"lr": 1.0, "seed": 3})
    with pytest.raises(AfzalError, match="other lr, seed"):
        lab_world.finished(folder, {"lr": 2.0, "seed": 4})
    runs.open_run(folder).update(status="failed")
    assert not lab_world.finished(folder, {"lr": 2.0, "seed": 4})
    assert not folder.exists()


def test_data_that_runs_stand_on_is_not_replaced(lab_world, tmp_path):
    (tmp_path / "runs").mkdir()
    items = [Item("a", "012|", (Response("01."),))]
    path = lab_world.write(items, tmp_path, "data")
    before = path.read_bytes()
    assert lab_world.write(items, tmp_path, "data") == path
    with pytest.raises(AfzalError, match="holds other data"):
        lab_world.write([*items, *items], tmp_path, "data")
    assert path.read_bytes() == before


def test_rankings_put_better_responses_first_more_often(lab_world, tmp_path):
    """Mean gold reward by stated rank, over 300 rankings of 3: falling."""
    (tmp_path / "runs").mkdir()
    log_ref = np.log(language.sft_policy(lab_world.TRAIN))
    world = lab_world.World(tmp_path, tmp_path, log_ref, log_ref)
    from afzal import data

    items = data.read(str(lab_world.rankings(world, 0, 300, 3))).items
    assert len(items) == 300
    rewards = dict(zip(map(language.prompt_text, lab_world.TRAIN), lab_world.TRAIN_REWARDS, strict=True))
    by_rank: dict[float, list[float]] = {}
    for item in items:
        for vote in item.votes:
            y = language.response_index(item.responses[vote.response].turns)
            by_rank.setdefault(vote.value, []).append(rewards[item.prompt][y])
    means = [float(np.mean(by_rank[rank])) for rank in sorted(by_rank)]
    assert len(means) == 3
    assert means[0] > means[1] + 0.3 > means[2] + 0.6


def test_the_claims_of_the_ordering_follow_the_figures(ordering):
    edge = exact.Frontier(np.array([0.0, 4.0]), np.array([1.0, 3.0]))

    def course(method: str, gain: float, seed: int, far: float = 2.0) -> Trajectory:
        return Trajectory(method, "", seed, (Point(0, 0.0, 1.0), Point(9, far, 1.0 + far * gain)))

    slopes = {
        "DPO": 0.4,
        "PPO, true reward": 0.45,
        "PPO, learned reward": 0.3,
        "KTO": 0.35,
        "iterative DPO": 0.41,
    }
    runs = [course(m, gain, s) for m, gain in slopes.items() for s in (0, 1)]
    runs += [course("preferred-FT", 0.5, s, far=0.2) for s in (0, 1)]
    made = {c.text: c for c in ordering.claims(runs, (0, 1), edge)}
    outcome = {text: c.outcome for text, c in made.items()}
    assert outcome["no policy is above the optimum"] == "reproduces"
    assert outcome["PPO with the true reward is above DPO"] == "reproduces"
    assert outcome["DPO is above PPO with the true reward (Rafailov et al. 2023)"] == "does not reproduce"
    assert outcome["DPO is above PPO with a learned reward"] == "reproduces"
    assert outcome["PPO with a learned reward is above KTO"] == "does not reproduce"
    assert outcome["RLOO with the true reward is above DPO"] == "not measured"
    assert outcome["iterative DPO is above DPO on as many votes"] == "reproduces"
    assert outcome["preferred-FT stays below a KL of 0.5, and .5 below DPO"] == "reproduces"
    assert outcome["unlikelihood stays below a KL of 0.5, and .5 below DPO"] == "not measured"
    assert "difference at a KL of 2: +0.10, +0.10" in made["PPO with the true reward is above DPO"].figures
    too_good = [*runs, course("DPO", 0.6, 1)]
    assert ordering.claims(too_good, (0, 1), edge)[0].held == 1


@pytest.mark.slow
def test_the_ordering_runs_and_makes_nothing_twice(ordering, tmp_path):
    plan = ordering.Plan(4, 2, 60, 4, 4, 8, 2, (0,), 1)
    assert str(ROOT) in sys.path
    which = ordering.chosen(plan)
    assert [ordering.TRIALS[k].method for k in which] == list(ordering.METHODS)
    first = [ordering.trajectory(tmp_path, plan, k, 0) for k in which]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert len(before) > 5
    assert [ordering.trajectory(tmp_path, plan, k, 0) for k in which] == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("metrics.jsonl")} == before
    edge = exact.frontier(ordering.world_of(tmp_path, plan).log_ref, ordering.REWARDS)
    made = ordering.claims(first, plan.seeds, edge)
    assert made[0].outcome == "reproduces"
    text = ordering.markdown(first, made, edge, ordering.lab_world.about("x", 0.0), [0.75])
    assert all(f"| {m} |" in text for m in ordering.METHODS)
