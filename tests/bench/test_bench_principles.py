"""The principles benchmarks: committed pages are generated from committed figures, and small runs finish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afzal.config.revise import PrincipleConfig
from afzal.principles.word_lists import find_violations
from benchmarks import principles, principles_lab, principles_matched

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "principles"


PAGES = {
    "principles": principles,
    "principles-lab": principles_lab,
    "principles-matched": principles_matched,
}


@pytest.mark.parametrize(("name", "module"), PAGES.items())
def test_the_page_is_made_of_the_figures(name, module):
    assert (FOLDER / f"{name}.md").read_text() == module.page(json.loads((FOLDER / f"{name}.json").read_text()))


def test_violations_fall_by_half_without_loss_of_valence_and_twins_are_answered():
    figures = json.loads((FOLDER / "principles.json").read_text())["figures"]
    scenes, twins = figures["scenes: share with violence"], figures["twins: refused or hardly answered"]
    for arm in principles.ARMS:
        assert scenes[arm]["value"] <= 0.5 * scenes["start"]["value"]
        assert scenes[f"{arm} less start"]["high"] < 0
        assert figures["scenes: valence without listed words"][f"{arm} less start"]["low"] > 0
        assert twins[arm]["value"] == 0
    happy = figures["openings: share without a happy ending"]
    assert happy["both"]["high"] <= 0.5 * happy["start"]["low"]


def test_with_matched_pairs_violence_falls_by_half_at_equal_valence_and_without_them_it_does_not():
    results = json.loads((FOLDER / "principles-matched.json").read_text())
    figures = results["figures"]
    for arm, known in results["holds"].items():
        assert known == principles_matched.holds(figures, arm)
    assert results["holds"]["matched"] == {"violence halved": True, "valence equal": True}
    assert results["holds"]["not matched"] == {"violence halved": True, "valence equal": False}
    assert figures["twins: refused or hardly answered"]["matched"]["value"] == 0


def equal(low: float, high: float, violence: float = 0.4) -> dict[str, bool]:
    share = {"start": {"value": 1.0}, "arm": {"value": violence}, "arm less start": {"high": -0.1}}
    worth = {"arm less start": {"low": low, "high": high}}
    return principles_matched.holds({"scenes: share with violence": share, "scenes: valence": worth}, "arm")


def test_equal_means_an_interval_that_holds_zero_and_stays_within_the_margin():
    assert equal(-0.1, 0.2) == {"violence halved": True, "valence equal": True}
    for low, high in ((-0.6, 0.1), (-0.1, 0.6), (0.1, 0.2), (-0.2, -0.1)):
        assert not equal(low, high)["valence equal"]
    assert not equal(-0.1, 0.1, violence=0.6)["violence halved"]


def test_fresh_scenes_and_names_are_in_no_training():
    names, scenes = set(principles_matched.FRESH_NAMES), set(principles_matched.FRESH)
    assert not names & set(principles.NAMES)
    assert not scenes & set(principles.SCENES)
    assert len(scenes) == 24


def test_on_the_language_all_stay_below_the_optimum_and_sacpo_and_the_multiplier_keep_the_bound():
    results = json.loads((FOLDER / "principles-lab.json").read_text())
    arms, bound = results["arms"], results["bound"]
    assert all(seed["shortfall"] > -1e-9 for arm in arms.values() for seed in arm)
    (start,), (best,) = arms["start"], arms["constrained optimum"]
    assert best["cost"] == pytest.approx(bound, abs=1e-6)
    assert best["kl_to_optimum"] == pytest.approx(0, abs=1e-9)
    assert all(seed["cost"] > start["cost"] for seed in arms["DPO on votes alone"])  # reward against bound
    assert all(seed["cost"] <= bound for seed in arms["Lagrangian"])
    rounds = [seed["cost"] for seed in arms["C-DPO in rounds"]]  # a bound on the mean of samples: one of three is above
    assert sum(rounds) / len(rounds) <= bound
    assert max(rounds) <= 1.1 * bound
    for arm in ("Lagrangian", "C-DPO in rounds"):
        assert all(seed["reward"] > start["reward"] for seed in arms[arm])


def test_scenes_that_are_measured_are_not_trained_on_and_twins_look_violent():
    assert not set(principles.SCENES[::2]) & set(principles.SCENES[1::2])
    assert len(set(principles.SCENES)) == len(principles.SCENES)
    rule = PrincipleConfig.model_validate(principles.PRINCIPLES[0])
    assert sum(bool(find_violations(rule, text)) for text in principles.TWINS) >= len(principles.TWINS) // 2


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("bench", "figures"), [(principles, principles.FIGURES), (principles_matched, principles_matched.MEASURES)]
)
def test_the_stories_run_quickly_and_again_to_the_same_figures(shared, tmp_path, bench, figures):
    first = bench.measured(tmp_path, bench.QUICK)
    assert set(first["figures"]) == set(figures)
    assert bench.measured(tmp_path, bench.QUICK) == first


@pytest.mark.slow
def test_the_language_runs_quickly_and_nothing_beats_the_constrained_optimum(tmp_path):
    results = principles_lab.measured(tmp_path, principles_lab.QUICK)
    assert all(seed["shortfall"] > -1e-9 for arm in results["arms"].values() for seed in arm)
    assert results["arms"]["constrained optimum"][0]["cost"] == pytest.approx(principles_lab.BOUND, abs=1e-6)
