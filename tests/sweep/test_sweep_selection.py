"""The choice within the budget and its figures, on made-up answers; the text of the page."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afzal.compare.measure import Answers
from afzal.report import sweep_views as views
from afzal.stats.intervals import Interval, over_seeds
from afzal.stats.policy_comparison import over_seeds_and_prompts
from afzal.sweep.arms import Arm
from afzal.sweep.search import score_of
from afzal.sweep.selection import Candidate, Criterion, best, candidates, difference, front, score, within_budget
from afzal.sweep.training import Point

CRITERION = Criterion("reward", "gold", 1.0)


def candidate(arm: str, goal: float, kl: float, place: int = 0) -> Candidate:
    return Candidate(arm, place, (1,), Interval(goal, None, None, 1), Interval(kl, None, None, 1))


def answers(rewards: np.ndarray, kl: float) -> Answers:
    shape = rewards.shape
    texts = [["x"] * shape[1]] * shape[0]
    return Answers(texts, np.ones(shape, int), np.zeros(shape, bool), np.full(shape, kl), {"gold": rewards}, 1.0)


def point(rewards: np.ndarray, kl: float, step: int = 1) -> Point:
    return Point(step, answers(rewards, kl), None)


def test_the_best_is_that_of_brute_force_on_random_candidates_with_ties_and_unknown_ones():
    rng = np.random.default_rng(0)
    nothing = 0
    for _ in range(500):
        n = int(rng.integers(0, 12))
        goals, kls = rng.integers(0, 4, n) / 2.0, rng.integers(0, 5, n) / 2.0
        goals[rng.random(n) < 0.1] = math.nan
        kls[rng.random(n) < 0.1] = math.nan
        arms = [candidate(f"a{k}", g, x) for k, (g, x) in enumerate(zip(goals.tolist(), kls.tolist(), strict=True))]
        inside = [c for c in arms if c.kl.value <= 1.0 and c.goal.value == c.goal.value]
        assert within_budget(CRITERION, arms) == inside
        chosen = best(CRITERION, arms)
        if chosen is None:
            nothing += 1
            assert inside == []
            continue
        assert all(c.goal.value <= chosen.goal.value for c in inside)
        equal = [c for c in inside if c.goal.value == chosen.goal.value]
        assert chosen.kl.value == min(c.kl.value for c in equal)
        assert chosen is next(c for c in equal if c.kl.value == chosen.kl.value)
    assert nothing > 20


def test_a_candidate_is_the_mean_over_seeds_and_prompts_with_the_interval_over_both():
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(3, 5, 4))
    trajectories = {"a001": {s: [point(rewards[s], 0.1 * s), point(rewards[s] + 1, 1.0)] for s in range(3)}}
    starts = {s: answers(np.zeros((5, 4)), 0.0) for s in range(3)}
    first, second = candidates(CRITERION, trajectories, starts)
    assert first.goal == over_seeds_and_prompts(rewards.mean(2))
    assert first.kl.value == pytest.approx(0.1)
    assert second.goal.value == pytest.approx(rewards.mean() + 1)
    assert (first.place, second.place) == (0, 1)


def test_a_win_rate_leaves_out_pairs_of_answers_that_share_random_numbers():
    ours, start = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    criterion = Criterion("win_rate", "gold", 1.0)
    (only,) = candidates(criterion, {"a": {0: [point(ours, 0.0)]}}, {0: answers(start, 0.0)})
    assert only.goal.value == 0.5  # 1 against 1 and 0 against 0; the other pairs would have been 1 and 0


def test_the_accuracy_of_one_seed_has_its_own_interval_and_of_several_that_over_seeds():
    criterion = Criterion("accuracy", "gold", 1.0)
    start = answers(np.zeros((2, 3)), 0.0)
    seen = [Point(1, start, (0.7, 0.5, 0.8)), Point(1, start, (0.9, 0.85, 0.95))]
    (one,) = candidates(criterion, {"a": {0: [seen[0]]}}, {0: start})
    assert (one.goal.value, one.goal.low, one.goal.high) == (0.7, 0.5, 0.8)
    (two,) = candidates(criterion, {"a": {0: [seen[0]], 1: [seen[1]]}}, {0: start, 1: start})
    assert two.goal == over_seeds([0.7, 0.9])


def test_an_arm_whose_later_seed_failed_has_no_score():
    points = {"a": {0: [point(np.ones((2, 3)), 0.1)]}}
    search: Any = SimpleNamespace(
        criterion=CRITERION, points=points, failures={}, starts=lambda: {0: answers(np.zeros((2, 3)), 0)}
    )
    assert score_of(search, Arm("a", {}), 1) == 1.0
    search.failures["a"] = "diverged"
    assert score_of(search, Arm("a", {}), 1) is None


def test_the_score_of_an_arm_beyond_the_budget_is_below_that_of_one_nearer():
    assert score(CRITERION, [candidate("a", 2.0, 0.5), candidate("a", 9.0, 3.0)]) == 2.0
    assert score(CRITERION, [candidate("a", 9.0, 3.0)]) == 7.0
    assert score(CRITERION, [candidate("a", math.nan, 0.5)]) is None


def test_the_difference_is_paired_by_seed_and_prompt():
    """A shift of every prompt by the same amount has no spread, however much prompts differ."""
    rng = np.random.default_rng(2)
    rewards = rng.normal(size=(2, 6, 3)) * 10
    theirs = {s: point(rewards[s], 0.5) for s in range(2)}
    ours = {s: point(rewards[s] + 0.25, 0.5) for s in range(2)}
    gain = difference(CRITERION, ours, theirs, {s: answers(rewards[s], 0.0) for s in range(2)})
    assert gain.value == pytest.approx(0.25)
    assert gain.ends == (pytest.approx(0.25), pytest.approx(0.25))


def test_the_front_and_its_area_by_hand():
    arms = [candidate("a", 1.0, 0.25), candidate("b", 0.5, 0.25), candidate("c", 2.0, 0.5), candidate("d", 5.0, 2.0)]
    on = front(CRITERION, arms, 0.5)
    assert on["on_front"] == [0, 2, 3]
    assert on["hypervolume"] == 0.25 * 0.5 + 0.5 * 1.5  # up to a KL of 1, above .5


def body(**changes: Any) -> dict[str, Any]:
    """A sweep of base and one arm that was chosen."""

    def figure(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high, "n": 2}

    def row(goal: float, kl: float) -> dict[str, Any]:
        more = {"rewards": {"gold": goal}, "tokens": 3.0, "unended": 0.0, "on_front": True}
        return {"steps": [20, 20], "goal": figure(goal), "kl": figure(kl), "within": kl <= 1, **more}

    def arm(name: str, label: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        facts = {"name": name, "label": label, "values": {"beta": 0.1}, "status": "finished", "why": "", "seeds": 2}
        counts = {"updates": 20, "examples": 640, "tokens": 9}
        return {**facts, **counts, "best": 0, "candidates": rows}

    confirmation = {
        "seeds": [2, 3],
        "fresh_prompts": False,
        "prompts": 8,
        "failures": {},
        "start": 0.0,
        "choice": row(1.75, 0.75),
        "base": row(1.5, 0.5),
        "base_place": 0,
        "difference": figure(0.25, 0.125, 0.375),
    }
    return {
        "goal": {"maximize": "reward", "reward": "gold", "kl": 1.0},
        "seeds": [0, 1],
        "prompts": 8,
        "start": 0.0,
        "axes": ["beta"],
        "arms": [arm("a001", "beta 0.2", [row(2.0, 0.75)]), arm("a000", "base", [row(1.5, 0.5)])],
        "front": {"points": [{"arm": "a001", "place": 0}], "knee": None, "hypervolume": 1.0},
        "choice": {"arm": "a001", "place": 0},
        "confirmation": {**confirmation, **changes.pop("confirmation", {})},
        "trained_on": {"prompts": 0},
        "settings": {"search": "grid", "samples": 4, "rewards": {"gold": "x"}},
        **changes,
    }


def test_the_page_says_what_was_chosen_what_became_of_it_and_that_it_beats_base():
    said = views.findings(body())
    assert said == [
        "a001 (beta 0.2) has the highest gold within 1.00 nats of KL: 2.000 at a KL of 0.750.",
        "With fresh seeds (2, 3), it has 1.750 at a KL of 0.750: −0.250 compared with the figure it was chosen by "
        "(the winner's curse).",
        "The choice beats base with fresh seeds: +0.250 [0.125, 0.375].",
    ]


def test_the_page_says_where_base_ends_beyond_the_budget_and_where_no_curse_was_seen():
    longer = body()
    longer["arms"][1]["candidates"].append({**longer["arms"][1]["candidates"][0], "kl": {"value": 2.5}})
    longer["arms"][0]["candidates"][0]["goal"]["value"] = 1.5
    said = views.findings(longer)
    assert "Trained to its end, base is beyond the budget, at a KL of 2.50." in said
    assert "+0.250 compared with the figure it was chosen by (no winner's curse this time)" in said[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"difference": {"value": 0.1, "low": -0.1, "high": 0.3, "n": 2}}, "does not beat base"),
        ({"difference": {"value": 0.1, "low": None, "high": None, "n": 1}}, "does not beat base"),
        ({"difference": {"value": -0.2, "low": -0.3, "high": -0.1, "n": 2}}, "is worse than base"),
        ({"difference": None}, "nothing to compare with|no figure to compare"),
        ({"choice": None, "failures": {"a001": "the loss is not finite"}}, "failed with a fresh seed: the loss"),
    ],
)
def test_the_page_says_so_where_the_choice_does_not_beat_base(changes, words):
    said = " ".join(views.findings(body(confirmation=changes)))
    assert any(part in said for part in words.split("|"))
    assert "The choice beats base" not in said


def test_the_page_says_where_nothing_was_confirmed_or_chosen():
    assert "too high on average" in " ".join(views.findings(body() | {"confirmation": None}))
    none = body() | {"choice": None, "confirmation": None}
    assert views.findings(none)[0].startswith("No snapshot is within the KL budget")
    assert views.confirmation(none)["rows"] == []
    assert "Of prompts, 2 were in the training data" in " ".join(
        views.findings(body() | {"trained_on": {"prompts": 2}})
    )
    assert "only one seed" in " ".join(views.findings(body() | {"seeds": [0]}))
