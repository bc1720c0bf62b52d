"""Reward and watched reward that diverge, or do not: by hand, and in simulated runs with known truth."""

from __future__ import annotations

import numpy as np
import pytest

from afzal import config
from afzal.config import IterateConfig, Setting
from afzal.errors import AfzalError
from afzal.iterate import round_figures, summary
from afzal.iterate.parting import detect_parting
from afzal.iterate.round_figures import Round
from afzal.stats.intervals import Estimate

Rows = list[dict]


def rows(reward: np.ndarray, watched: np.ndarray) -> Rows:
    """Rows of ``[X, n]`` answers."""
    return [
        {"prompt_index": x, "sample": k, "reward": float(reward[x, k]), "watch_reward": float(watched[x, k])}
        for x in range(reward.shape[0])
        for k in range(reward.shape[1])
    ]


def course(seed: int, rewards: tuple[float, ...], watched: tuple[float, ...], prompts: int = 64) -> dict[int, Rows]:
    """Rounds with these means; prompts differ by 1, answers to one prompt and round by 1 each."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(2, prompts, 1))
    noise = lambda: rng.normal(size=(prompts, 4))  # noqa: E731
    both = zip(rewards, watched, strict=True)
    return {k: rows(base[0] + r + noise(), base[1] + w + noise()) for k, (r, w) in enumerate(both)}


RISING = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)


def named(watched: tuple[float, ...], runs: int) -> float:
    """The share of runs that are stopped in some round."""
    stopped = 0
    for seed in range(runs):
        known = course(seed, RISING, watched)
        stopped += any(detect_parting({k: known[k] for k in range(last + 1)}) for last in range(1, len(known)))
    return stopped / runs


def test_a_run_whose_watched_reward_stays_or_rises_is_not_stopped():
    assert named((0.0,) * 6, 150) <= 0.01
    assert named((0.0, 0.3, 0.5, 0.6, 0.6, 0.6), 50) == 0.0


def test_a_run_whose_watched_reward_falls_after_its_peak_is_stopped():
    assert named((0.0, 0.5, 0.6, 0.2, -0.3, -0.8), 50) == 1.0


def test_both_must_change_and_something_must_be_watched():
    up, down = (0.0, 1.0, 2.0), (0.0, -1.0, -2.0)
    assert detect_parting(course(0, up, down)) == detect_parting(dict(reversed(course(0, up, down).items())))
    assert detect_parting(course(0, up, down)).startswith("since round 0 the reward rose by 2")
    for rewards, watched in ((up, up), (down, down), (down, up)):
        assert detect_parting(course(0, rewards, watched)) == ""
    assert detect_parting({0: course(0, up, down)[0]}) == ""
    unwatched = {k: [{**row, "watch_reward": None} for row in known] for k, known in course(0, up, down).items()}
    assert detect_parting(unwatched) == ""


def test_a_fall_on_one_half_of_the_prompts_only_is_not_named():
    even = np.arange(64)[:, None] % 2 == 0
    start, steady = np.zeros((64, 4)), np.arange(64)[:, None] / 640 + np.zeros((64, 4))
    assert detect_parting({0: rows(start, steady), 1: rows(start + 1 + steady, steady * 2 - 1)})
    assert (
        detect_parting({0: rows(start, steady), 1: rows(start + 1 + steady, np.where(even, steady * 2 - 1, steady))})
        == ""
    )


def test_the_round_at_which_they_part_is_not_the_one_to_use():
    figure = lambda mean: Estimate(100 * mean, 100, 0.5)  # noqa: E731
    means = [
        {"reward": figure(k), "watch_reward": figure(2), "length": figure(10), "ended": figure(1)} for k in (1, 2, 3)
    ]
    known = [Round(k, measured=m, parted="they part" if k == 2 else "") for k, m in enumerate(means)]
    assert round_figures.alarms(known) == ["they part"]
    assert round_figures.best_round(known, None).number == 1
    assert "parted" in summary._REASONS


def made(**changes: str) -> IterateConfig:
    given = {"model": "m", "prompts": "p", "reward": "a:b", **changes}
    return config.build(IterateConfig, [Setting(k, v) for k, v in given.items()])


def test_on_parting_is_refused_if_nothing_is_watched():
    assert made(watch_reward="c:d", on_parting="warn").on_parting == "warn"
    for changes in ({}, {"reward": "people", "watch_reward": "c:d"}):
        with pytest.raises(AfzalError, match="on_parting"):
            made(on_parting="warn", **changes)
