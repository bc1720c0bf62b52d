"""Comparison figures from hand-made answers: budgets, levels, differences, wins, over-optimisation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afzal import config
from afzal.compare import measure
from afzal.compare.measure import Answers
from afzal.compare.summary import Cost, Point, summary
from afzal.config import entries


def answers(gold: np.ndarray, kl: float = 0.0, other: np.ndarray | None = None) -> Answers:
    """Answers with these rewards ``[X, n]``, each of 3 tokens and this KL."""
    rewards = {"gold": np.asarray(gold, float)} | ({} if other is None else {"proxy": np.asarray(other, float)})
    shape = rewards["gold"].shape
    texts = [["a"] * shape[1]] * shape[0]
    return Answers(texts, np.full(shape, 3), np.zeros(shape, bool), np.full(shape, kl), rewards, 3.0)


def settings(**changes: Any) -> config.CompareConfig:
    methods = [{"name": "a", "run": "a-{seed}"}, {"name": "b", "run": "b-{seed}"}]
    given = {"model": "m", "prompts": "p", "rewards": {"gold": "x:y"}, "methods": methods, "seeds": [0], "samples": 2}
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in (given | changes).items()])


def figures(made: config.CompareConfig, starts: dict, courses: dict) -> dict[str, Any]:
    policies = [e for e in entries(made) if e.is_policy]
    return summary(made, policies, starts, courses, [])


def course(*points: tuple[float, np.ndarray]) -> list[Point]:
    return [Point(10 * k, answers(gold, kl), Cost()) for k, (kl, gold) in enumerate(points, 1)]


START = np.zeros((6, 2))


def test_a_budget_includes_its_own_value_and_the_last_snapshot_within_it_is_taken():
    way = course((0.5, START + 1), (2.0, START + 3), (1.0, START + 2), (3.0, START + 9))
    for budget, steps in ((None, [40]), (1.0, [30]), (0.99, [10]), (0.4, [])):
        made = figures(settings(kl_budget=budget), {0: answers(START)}, {("a", 0): way})
        assert made["methods"][0]["judged"].get("steps", []) == steps


def test_default_levels_are_those_that_every_seed_reaches():
    """a reaches 4 and 2 nats, b 1 and 1: half of the methods reach 1."""
    made = figures(
        settings(seeds=[0, 1]),
        {0: answers(START), 1: answers(START)},
        {
            ("a", 0): course((4.0, START)),
            ("a", 1): course((2.0, START)),
            ("b", 0): course((1.0, START)),
            ("b", 1): course((1.0, START)),
        },
    )
    assert made["matched_kl"] == [0.25, 0.5, 1.0]


def test_a_level_that_a_seed_does_not_reach_has_no_value():
    rewards = START + 2
    made = figures(
        settings(seeds=[0, 1], matched_kl=[1.0, 3.0]),
        {0: answers(START), 1: answers(START)},
        {("a", 0): course((4.0, 4 * rewards)), ("a", 1): course((2.0, 2 * rewards))},
    )
    low, high = made["methods"][0]["matched"]
    assert (low["reached"], low["of"], low["value"]) == (2, 2, 2.0)  # a quarter of 8, a half of 4
    assert (high["reached"], high["of"], high["value"]) == (1, 2, None)
    assert made["methods"][1]["matched"][0]["reached"] == 0


def test_methods_are_compared_by_differences_of_the_same_prompt():
    """b is better by .1 on every prompt; prompts differ by tens, so their intervals overlap."""
    base = 10.0 * np.arange(6)[:, None] + START + np.array([[0.0, 1.0]])
    wobble = 0.01 * np.array([1, -1, 1, -1, 1, -1])[:, None]
    made = figures(
        settings(matched_kl=[1.0]),
        {0: answers(base)},
        {("a", 0): course((1.0, base + wobble)), ("b", 0): course((1.0, base + 0.1 - wobble))},
    )
    (row,) = made["differences"]
    assert (row["kl"], row["ours"], row["theirs"], row["n"]) == (1.0, "a", "b", 6)
    assert row["value"] == pytest.approx(-0.1)
    assert row["high"] < 0


def test_wins_leave_out_answers_of_the_same_draw_and_ties_count_half():
    """Of the pairs (0, 1) and (1, 0) one is a win and one a tie; the start's rate against a is the complement."""
    ours, theirs = np.tile([2.0, 1.0], (6, 1)), np.tile([1.0, 1.5], (6, 1))
    made = figures(settings(), {0: answers(theirs)}, {("a", 0): course((1.0, ours))})
    rates = {(w["ours"], w["theirs"]): w["value"] for w in made["wins"]}
    assert rates == {("start", "a"): 0.25, ("a", "start"): 0.75}
    assert made["methods"][0]["judged"]["win"]["value"] == 0.75
    assert made["methods"][0]["points"][0]["win"]["value"] == 0.75
    assert made["start_points"][0]["win"]["value"] == 0.5


def test_the_best_of_n_is_not_compared_with_the_answers_that_it_was_chosen_from():
    """Best of 2 with answers from draws (0, 1) and (2, 3); the start's are 0 and 1: pairs (1, 0), (1, 1) are left."""
    methods = [{"name": "bon", "best_of": 2}]
    start, best = np.tile([0.0, 3.0], (6, 1)), np.tile([9.0, 1.0], (6, 1))
    made = figures(
        settings(methods=methods), {0: answers(start)}, {("bon", 0): [Point(2, answers(best, 0.2), Cost(), draws=2)]}
    )
    assert made["methods"][0]["judged"]["win"]["value"] == 0.5  # 1 beats 0 and loses to 3; 9 is left out


def test_a_gain_is_ours_less_the_starts():
    made = figures(settings(), {0: answers(START + 1)}, {("a", 0): course((1.0, START + 3))})
    assert made["methods"][0]["judged"]["gain"]["value"] == 2.0
    assert made["methods"][0]["points"][0]["gain"]["value"] == 2.0


def test_a_gain_is_over_the_start_of_the_same_seed():
    """3 - 1 and 3 - 2; with the start of the other seed both would be 2, or 1."""
    starts, way = {0: answers(START + 1), 1: answers(START + 2)}, course((1.0, START + 3))
    made = figures(settings(seeds=[0, 1]), starts, {("a", 0): way, ("a", 1): way})
    assert made["methods"][0]["judged"]["gain"]["value"] == 1.5
    assert [point["gain"]["value"] for point in made["methods"][0]["points"]] == [2.0, 1.0]


def test_over_optimisation_is_named_if_it_is_clear_and_not_if_noise_makes_a_peak():
    rng = np.random.default_rng(0)
    both = settings(rewards={"gold": "x:y", "proxy": "x:z"})
    start = answers(np.zeros((40, 2)), 0.0, np.zeros((40, 2)))

    def turned(gold, proxy):
        noise = lambda: rng.normal(size=(40, 2))  # noqa: E731
        points = enumerate(zip(gold, proxy, strict=True), 1)
        way = [Point(k, answers(g + noise(), k, p + noise()), Cost()) for k, (g, p) in points]
        return figures(both, {0: start}, {("a", 0): way})["methods"][0]["turned"]

    (turn,) = turned([1.0, 3.0, 1.0], [1.0, 2.0, 4.0])
    assert turn["reward"] == "proxy"
    assert turn["before"] == pytest.approx([3.0, 2.0], abs=0.4)
    assert turn["after"] == pytest.approx([1.0, 4.0], abs=0.4)
    assert turned([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]) == []  # still rising
    assert turned([1.0, 3.0, 1.0], [1.0, 4.0, 2.0]) == []  # both fell
    flat = [turned([1.0] * 8, [1.0] * 8) for _ in range(150)]
    assert sum(bool(f) for f in flat) <= 2  # the highest of eight equal means is above the last in seven of eight


def test_a_fall_counts_on_the_prompts_that_did_not_choose_the_peak_and_where_it_is_clear():
    """The peak is chosen on prompts 0, 2, 4, ...; the fall after it is measured on 1, 3, 5, ..."""
    both = settings(rewards={"gold": "x:y", "proxy": "x:z"})
    even = np.arange(40) % 2 == 0
    sway = np.where(np.arange(40) // 2 % 2, 1.0, -1.0)  # half up and half down on both halves of the prompts

    def turned(*points: tuple[np.ndarray, np.ndarray]) -> list[str]:
        wide = lambda values: np.repeat(np.broadcast_to(values, 40)[:, None], 2, 1)  # noqa: E731
        way = [Point(k, answers(wide(g), k, wide(p)), Cost()) for k, (g, p) in enumerate(points, 1)]
        start = {0: answers(wide(0.0), 0.0, wide(0.0))}
        return [turn["reward"] for turn in figures(both, start, {("a", 0): way})["methods"][0]["turned"]]

    flat = np.zeros(40)
    assert turned((flat + 2, flat), (flat + 1, flat + 1)) == ["proxy"]
    assert turned((3.0 * even, flat), (flat, flat + 1)) == []  # only the prompts that chose the peak fell
    assert turned((flat + 2, flat), (flat + 1.8 + sway, flat + 1)) == []  # a fall of .2 give or take .45
    assert turned((flat + 2, flat), (flat + 1, 0.2 + sway)) == []  # a rise of .2 give or take .45
    # the best on even prompts is the first point, on odd ones and on all the second
    assert turned((1.0 * even, flat), (2.0 * ~even, flat), (flat, flat + 1)) == []


def test_a_curve_begins_at_the_start_as_step_0():
    made = figures(settings(), {0: answers(START + 1)}, {("a", 0): course((0.5, START + 3), (1.0, START + 4))})
    curve = made["methods"][0]["curve"]
    assert [(point["step"], point["gain"]["value"], point["kl"]["value"]) for point in curve] == [
        (0, 0.0, 0.0),
        (10, 2.0, 0.5),
        (20, 3.0, 1.0),
    ]


def test_answers_and_their_kl_are_drawn_at_the_temperature_of_the_settings(monkeypatch):
    seen: dict[str, Any] = {}

    def kl(policy, first, drawn, prompts, budget, temperature=1.0):
        seen.update(policy=policy, first=first, temperature=temperature)
        return [0.25] * len(drawn)

    class Drawn:
        prompt_index, ids, answer, stop = 0, np.array([1]), np.array([1]), "eos"

    def draw(model, prompts, *, sampling, n, seed, **rest):
        seen.update(model=model, sampling=sampling, seed=seed, n=n)
        return [Drawn()] * (n * len(prompts))

    monkeypatch.setattr(measure, "sequence_kl", kl)
    monkeypatch.setattr(measure, "sample", draw)
    speaker = SimpleNamespace(continuations=lambda rows: ["a"] * len(rows))
    made = settings(temperature=0.7, sample_tokens=5)
    sampling = measure.Sampling(made.sample_tokens, made.temperature)
    setup = measure.MeasurementSetup(
        "first", speaker, ["p", "q"], [[1], [2]], [0], sampling, None, made, "key", [{}, {}]
    )
    drawn = measure._draw(setup, "policy", 2, 3)
    assert (seen["policy"], seen["first"], seen["temperature"]) == ("policy", "first", 0.7)
    assert (seen["model"], seen["sampling"].temperature, seen["sampling"].max_new_tokens) == ("policy", 0.7, 5)
    assert drawn.kl.tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert measure._draw(setup, "first", 2, 3).kl.tolist() == [[0.0, 0.0], [0.0, 0.0]]
