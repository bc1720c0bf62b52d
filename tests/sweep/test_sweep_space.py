"""Points of a space, the arms that they become, and equal examples."""

from __future__ import annotations

import math
from itertools import islice

import pytest

from afzal import config
from afzal.config import Axis
from afzal.errors import AfzalError
from afzal.sweep.arms import Arm, arms_of, distinct, plan_of, save_arms
from afzal.sweep.proposals import is_hopeless, propose
from afzal.sweep.space import grid, random_points, size, sobol_points, value_at
from afzal.sweep.training_length import examples_in, updates_for
from afzal.train.feed import Feed, Layout

BETA = Axis("beta", "uniform", (0.1, 0.5))
LR = Axis("lr", "log", (1e-6, 1e-4))
BATCH = Axis("batch_size", "list", (32, 64, 128))


def test_a_grid_has_every_combination_the_last_axis_fastest():
    combinations = grid([Axis("beta", "list", (0.1, 0.2)), Axis("lr", "log", (1e-6, 1e-4), points=3)])
    assert [(p["beta"], p["lr"]) for p in combinations] == [
        (beta, lr) for beta in (0.1, 0.2) for lr in (1e-6, pytest.approx(1e-5, rel=1e-3), 1e-4)
    ]


def test_shares_of_an_axis_by_hand():
    assert value_at(LR, 0.0) == 1e-6
    assert value_at(LR, 1.0) == 1e-4
    assert value_at(LR, 0.5) == 1e-5
    assert value_at(BETA, 0.25) == 0.2
    assert [value_at(BATCH, u) for u in (0.0, 0.33, 0.34, 0.99, 1.0)] == [32, 32, 64, 128, 128]
    assert value_at(Axis("batch_size", "log", (32, 128), integer=True), 0.5) == 64


@pytest.mark.parametrize("points", [random_points, sobol_points])
def test_draws_stay_within_the_axes_and_depend_on_the_seed_alone(points):
    draws = list(islice(points([BETA, LR, BATCH], 3), 100))
    assert draws == list(islice(points([BETA, LR, BATCH], 3), 100))
    assert draws[:10] != list(islice(points([BETA, LR, BATCH], 4), 10))
    assert all(0.1 <= p["beta"] <= 0.5 and 1e-6 <= p["lr"] <= 1e-4 and p["batch_size"] in BATCH.values for p in draws)


def test_sobol_points_fill_both_halves_of_every_axis_evenly():
    """A power of two of its points has equally many in every half; independent draws have that by chance only."""
    draws = list(islice(sobol_points([BETA, LR], 0), 32))
    assert sum(p["beta"] < 0.3 for p in draws) == 16
    assert sum(p["lr"] < 1e-5 for p in draws) == 16


def test_size_of_a_space():
    assert size([BATCH, Axis("beta", "list", (0.1, 0.2))]) == 6
    assert size([BATCH, BETA]) is None


def test_updates_for_equal_examples_against_the_feed_of_trees(monkeypatch):
    """Examples are counted from the exact updates that the loop would request."""
    monkeypatch.setattr("afzal.train.feed.weight_per_item", lambda trees: 1.0)
    for items in (7, 20, 64):
        for batch in (1, 3, 8, 64, 100):
            feed = Feed([None] * items, (), batch, 0, Layout("shared", 100))  # type: ignore[list-item]
            for steps in (1, 2, 5, 11):
                assert examples_in(steps, items, batch) == sum(len(feed.members(k)) for k in range(steps))
            for wanted in (1, 10, 50, 333):
                nearest = min(abs(examples_in(k, items, batch) - wanted) for k in range(1, 400))
                seen = examples_in(updates_for(wanted, items, batch), items, batch)
                assert abs(seen - wanted) == nearest, (items, batch, wanted)


def test_equal_settings_are_one_arm(place, settings, tmp_path):
    """Base with its own values, and values that base has by default, are base."""
    sweep = settings(tmp_path / "o", space={"beta": [0.1, 0.5], "weight_decay": [0.0, 0.1]})
    plan = plan_of(sweep)
    arms = arms_of(sweep, plan)
    assert [a.label for a in arms] == [
        "base",
        "beta 0.1, weight_decay 0.1",
        "beta 0.5, weight_decay 0",
        "beta 0.5, weight_decay 0.1",
    ]
    assert distinct(plan, arms, [{"beta": 0.5}, {}]) == arms  # named otherwise, trained alike


def test_a_finite_space_ends_where_it_has_no_more(settings, tmp_path):
    sweep = settings(tmp_path / "o", search="random", arms=40)
    arms = arms_of(sweep, plan_of(sweep))
    assert len(arms) == 4  # base is one of the four combinations
    assert len({tuple(a.values.items()) for a in arms}) == 4


@pytest.mark.parametrize("search", ["random", "sobol"])
def test_more_arms_continue_the_sequence(settings, tmp_path, search):
    space = {"beta": {"uniform": [0.1, 0.5]}, "lr": {"log": [1e-4, 1e-2]}}
    sweep = settings(tmp_path / "o", search=search, arms=5, space=space)
    plan = plan_of(sweep)
    (tmp_path / "o").mkdir()
    first = arms_of(sweep, plan)
    save_arms(sweep, plan, first, finished=True)
    more = arms_of(sweep, plan, 3)
    assert more[:6] == first
    assert len(more) == 9
    assert more == arms_of(sweep.model_copy(update={"arms": 8, "out": str(tmp_path / "other")}), plan)
    save_arms(sweep, plan, more, finished=True)
    assert arms_of(sweep, plan) == more  # the command without --more keeps them


def test_another_space_in_the_same_folder_is_refused(settings, tmp_path):
    sweep = settings(tmp_path / "o")
    (tmp_path / "o").mkdir()
    save_arms(sweep, plan_of(sweep), arms_of(sweep, plan_of(sweep)), finished=True)
    other = settings(tmp_path / "o", space={"beta": [0.1, 0.7]})
    with pytest.raises(AfzalError, match="another space"):
        arms_of(other, plan_of(other))
    with pytest.raises(AfzalError, match="nothing can be added"):
        arms_of(sweep, plan_of(sweep), 2)


def test_the_preset_has_the_ranges_of_the_guide(settings, tmp_path):
    sweep = settings(tmp_path / "o", preset="guide", space={"lr": [1e-5]}, search="sobol")
    assert [(a.key, a.scale, a.values) for a in sweep.axes] == [
        ("beta", "uniform", (0.1, 0.5)),
        ("lr", "list", (1e-5,)),
        ("batch_size", "list", (32, 64, 128)),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"goal": {"maximize": "loss", "within": {"kl": 1}}}, "a loss is not a goal"),
        ({"goal": {"minimize": "train_loss", "within": {"kl": 1}}}, "a loss is not a goal"),
        ({"goal": {"maximize": "rewards", "within": {"kl": 1}}}, "did you mean reward"),
        ({"goal": {"maximize": "reward"}}, "add the budget"),
        ({"goal": {"maximize": "reward", "within": {"kl": 0}}}, "add the budget"),
        ({"rewards": {}}, "needs a reward"),
        ({"space": {}}, "space is empty"),
        ({"space": {"epochs": [1, 2]}}, "same number of examples"),
        ({"space": {"seed": [1, 2]}}, "cannot be varied"),
        ({"space": {"beta": [0.1, 0.1]}}, "each only once"),
        ({"space": {"beta": {"log": [0.5, 0.1], "points": 3}}}, "the lower one first"),
        ({"space": {"beta": {"log": [0, 0.1], "points": 3}}}, "above 0"),
        ({"space": {"beta": {"log": [0.1, 0.5]}}}, "points: N"),
        ({"arms": 3}, "arms has no effect"),
        ({"prune": "median"}, "there is only one"),
        ({"confirm_prompts": "x.jsonl"}, "confirm is 0"),
    ],
)
def test_what_is_refused(settings, tmp_path, changes, said):
    with pytest.raises(AfzalError, match=said):
        settings(tmp_path / "o", **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"betta": [0.1, 0.2]}}, "did you mean beta"),
        ({"space": {"objective": ["dpo"]}}, "no setting 'objective'"),
        ({"space": {"lr_schedule": {"log": [1, 2], "points": 2}}}, "is not a number"),
        ({"space": {"beta": [0.1, -1]}}, "beta"),
        ({"goal": {"maximize": "accuracy", "within": {"kl": 1}}}, "held-out pairs"),
        ({"prompts": None}, "no held-out prompts"),
        ({"base": {"method": "reward"}}, "trains no policy"),
    ],
)
def test_what_does_not_go_with_base_is_refused(settings, tmp_path, changes, said):
    sweep = settings(tmp_path / "o", **changes)
    with pytest.raises(AfzalError, match=said):
        arms_of(sweep, plan_of(sweep))


def test_the_name_of_an_arm_stands_in_what_is_wrong_with_it(settings, tmp_path):
    sweep = settings(tmp_path / "o", space={"beta": [0.2, -1]})
    with pytest.raises(AfzalError, match=r"arm a002 \(beta -1\)"):
        arms_of(sweep, plan_of(sweep))


def test_tpe_is_a_function_of_what_was_tried_and_turns_to_what_was_good():
    pytest.importorskip("optuna")
    axes = [Axis("beta", "uniform", (0.0, 1.0)), BATCH]
    tried = []
    for k in range(40):
        values = propose(axes, k, tried)
        assert values == propose(axes, k, tried)
        tried.append((values, -abs(values["beta"] - 0.3)))
    late = [v["beta"] for v, _ in tried[20:]]
    assert math.fsum(abs(b - 0.3) for b in late) / len(late) < 0.15  # uniform draws are .29 away


def test_pruning_by_the_median_of_the_arms_before():
    pytest.importorskip("optuna")
    others = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
    assert is_hopeless([2.4], others)
    assert not is_hopeless([2.6], others)
    assert not is_hopeless([0.0], others[:3])  # too few to go by


def test_an_arm_is_named_by_its_settings():
    assert (
        Arm("a001", {"lr": 3e-5, "clean": False, "objective": "simpo"}).label == "lr 3e-5, clean False, objective simpo"
    )


def test_settings_of_a_sweep_are_read_back_as_they_were(settings, tmp_path):
    sweep = settings(tmp_path / "o")
    (tmp_path / "s.yaml").write_text(config.dump(sweep))
    assert config.build(config.SweepConfig, config.read_file(tmp_path / "s.yaml")) == sweep
