"""Checkpoints by the clock: the work that a kill can cost at any moment, with updates of any length."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from helpers_models import make, random_trees

from afzal import objectives
from afzal.train import checkpoint
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable
from afzal.train.timer import SaveTimer


class Clock:
    """A clock that advances only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def times_of_saving(lengths, seconds, writing=0.0):
    """When checkpoints were complete, and the work (in seconds of updates) that each one holds."""
    clock = Clock()
    timer = SaveTimer(seconds, clock)
    done, saves = 0.0, [(clock.now, 0.0)]
    for length in lengths:
        clock.now += length
        done += length
        if timer.due():
            clock.now += writing
            timer.saved()
            saves.append((clock.now, done))
    return saves


def worst_loss(saves):
    """The most seconds of work that a kill can cost: just before a checkpoint is complete, all since the last one."""
    return max(b[1] - a[1] for a, b in pairwise(saves))


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_costs_no_more_than_the_interval_whatever_the_updates_take(seed):
    """Ten minutes, and updates of 50 to 100 s."""
    rng = random.Random(seed)
    steady = [rng.uniform(50.0, 100.0) for _ in range(500)]
    saves = times_of_saving(steady, 600.0)
    assert worst_loss(saves) <= 600.0
    assert len(saves) - 1 <= sum(steady) / 400.0  # and not much more often than necessary


def test_equal_updates_are_saved_as_late_as_the_interval_allows():
    """Updates of 7 s: after 84 of them, 588 s, one of 14 s would be too long."""
    assert times_of_saving([7.0] * 180, 600.0) == [(1000.0, 0.0), (1588.0, 588.0), (2176.0, 1176.0)]


def test_an_update_longer_than_the_interval_is_saved_at_its_end():
    assert times_of_saving([900.0, 900.0], 600.0) == [(1000.0, 0.0), (1900.0, 900.0), (2800.0, 1800.0)]


def test_the_time_of_writing_is_not_work_and_does_not_bring_the_next_one_nearer():
    assert times_of_saving([150.0] * 6, 600.0, writing=550.0) == [(1000.0, 0.0), (2000.0, 450.0), (3000.0, 900.0)]


def test_a_long_update_is_forgotten_after_two_checkpoints():
    """The first one compiles for 500 s; the others take 10, and after 590 s one of 20 would be too long."""
    saves = times_of_saving([500.0, *[10.0] * 121], 600.0)
    assert [work for _, work in saves] == [0.0, 500.0, 510.0, 1100.0, 1690.0]


def test_a_long_evaluation_is_expected_again():
    """Updates of 10 s, every 30th with 100 s of evaluation: no checkpoint is further than 600 s from the next."""
    saves = times_of_saving(([10.0] * 29 + [110.0]) * 20, 600.0)
    assert worst_loss(saves) <= 600.0


def test_without_an_interval_nothing_is_ever_due():
    assert times_of_saving([1e9] * 3, float("inf")) == [(1000.0, 0.0)]


def test_a_default_run_killed_after_fifteen_minutes_loses_at_most_ten():
    """The real loop, with updates of 40 s on a simulated clock, killed in each second of its first 15 minutes."""
    clock = Clock()
    timer = SaveTimer(600.0, clock)
    saved: list[tuple[float, int]] = [(clock.now, 0)]

    def save(state: State) -> None:
        saved.append((clock.now, state.step))
        timer.saved()

    def stepped(step: int) -> None:
        clock.now += 40.0

    model = make("llama")
    method = Method.of(objectives.get("simpo"), {}, None)
    feed = Feed(random_trees(8), (), 8, 0, Layout("shared", 1000))
    optimizer = make_optimizer([{"params": list(trainable(model).values())}], "adamw")
    settings = Settings(steps=23, lr=1e-3)
    hooks = Hooks(save=save, stepped=stepped, save_due=timer.due)
    fit(model, method, feed, optimizer, settings, hooks=hooks, state=State())
    assert saved == [(1000.0, 0), (1560.0, 14), (1920.0, 23)]  # by the clock, and at the end
    for second in range(900):
        held = max(step for when, step in saved if when <= 1000 + second)
        assert second - 40 * held <= 600


@pytest.mark.parametrize(
    ("steps", "keep", "every", "last", "stay"),
    [
        ([3, 7, 9], 2, 0, 20, {7, 9}),  # all by the clock: the newest ones
        ([4, 8, 9], 2, 4, 20, {4, 8, 9}),  # besides the planned ones, one to resume from
        ([4, 8, 9, 11], 2, 4, 20, {4, 8, 11}),
        ([4, 8, 9, 11, 12], 2, 4, 20, {8, 12}),  # a planned one takes its place
        ([1, 2, 3], 2, 100, 200, {2, 3}),  # none is planned yet: as many as are to be kept
        ([2, 4, 5, 6, 7], 4, 2, 7, {2, 4, 6, 7}),  # the end is always planned
        ([], 2, 4, 20, set()),
    ],
)
def test_checkpoints_of_the_clock_give_way_to_those_that_were_asked_for(steps, keep, every, last, stay):
    planned = lambda step: not every or step % every == 0 or step == last  # noqa: E731
    assert checkpoint.steps_to_keep(steps, keep, planned) == stay
