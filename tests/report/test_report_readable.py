"""Charts of awkward inputs, by their geometry: a stray run, spikes, two seeds, long names, one point, no numbers."""

from __future__ import annotations

import itertools
import math
import re
from html import unescape

import pytest

from afzal.report import views
from afzal.report.axes import fitting_ticks
from afzal.report.charts import figure_of, figures
from afzal.report.comparison import method_line, seeds
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.geometry import clip, overlap_area
from afzal.report.svg import Rule, Series, line_chart
from afzal.report.value_range import robust_range

LONG = "dpo-beta-0.05-lr-3e-4-batch-64-packed-lora-r16-alpha-32-seed-1234567890-second-try"


def falling(level=0.69, n=60, shift=0.0):
    return tuple((float(k), level * math.exp(-k / n) + shift + 0.01 * math.sin(3 * k)) for k in range(n))


def wild(n=60, since=20):
    return tuple((x, y if x < since else y * 1.5 ** (x - since)) for x, y in falling(n=n))


def labels(drawing):
    """The texts that are always visible, as (words, box), by the letter size that the charts assume."""
    always = re.sub(r'<g class="col">.*?</g></g>', "", drawing)
    boxes = []
    for css, x, y, anchor, words in re.findall(
        r'<text class="([^"]*)" x="([-\d.]+)" y="([-\d.]+)"(?: text-anchor="(\w+)")?>([^<]*)</text>', always
    ):
        del css
        width, left = len(unescape(words)) * 5.9, float(x)
        left -= {"end": width, "middle": width / 2}.get(anchor, 0.0)
        boxes.append((unescape(words), (left, float(y) - 9.0, left + width, float(y) + 2.0)))
    return boxes


def collisions(drawing):
    return [
        (a, b) for (a, one), (b, other) in itertools.combinations(labels(drawing), 2) if overlap_area(one, other) > 1
    ]


def inside(drawing, slack=1.0):
    """Whether every line and dot is within the drawing."""
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())
    for d in re.findall(r'<path class="l [^"]*" d="([^"]*)"', drawing):
        spots = [tuple(map(float, spot.split())) for spot in re.split("[MLZ]", d) if " " in spot]
        if not all(-slack <= x <= width + slack and -slack <= y <= height + slack for x, y in spots):
            return False
    dots = re.findall(r'<circle class="d [^"]*" cx="([-\d.]+)" cy="([-\d.]+)"', drawing)
    return all(-slack <= float(x) <= width + slack and -slack <= float(y) <= height + slack for x, y in dots)


def test_the_range_is_that_of_the_usual_series():
    usual = [[0.7, 0.5, 0.4, 0.3], [0.69, 0.52, 0.41, 0.31], [0.71, 0.49, 0.39, 0.3]]
    assert robust_range([*usual, [0.7, 8.0, 400.0, 9e4]]) == (0.3, 0.71)
    assert robust_range(usual) == (0.3, 0.71)
    assert robust_range([[0.7, 0.5], [70.0, 50.0]]) == (0.5, 70.0)  # with two runs, either could be the stray
    assert robust_range([[1.0], [1.1], [50.0]])[1] in (1.1, 50.0)
    assert robust_range([[], [None, math.nan]]) == (0.0, 1.0)
    assert robust_range([[5.0, 5.0]]) == (5.0, 5.0)
    assert robust_range([[0.5]] * 3 + [[0.5, 9.0]]) == (0.5, 9.0)  # a constant says nothing about the usual range


def test_a_spike_is_cut_and_a_steep_start_is_not():
    noisy = [1 + 0.1 * math.sin(k) for k in range(100)]
    low, high = robust_range([[*noisy, 800.0]])
    assert high < 1.2
    assert low > 0.8
    start = [10 * math.exp(-k / 10) + 2 for k in range(100)]
    assert robust_range([start]) == (min(start), max(start))


def test_a_stray_run_is_cut_at_the_edge_and_named_with_its_furthest_value():
    series = [Series(f"seed {k}", falling(shift=0.004 * k), k, label=f"seed {k}") for k in range(4)]
    drawing = line_chart([*series, Series("lr 1e-2", wild(), 5, label="lr 1e-2")], title="loss")
    ticks = [words for words, (_, _, right, _) in labels(drawing) if re.fullmatch(r"[\d.]+", words) and right < 45]
    assert max(map(float, ticks)) < 1
    assert drawing.count('class="beyond s5"') == 1
    furthest = max(y for _, y in wild())
    (named,) = [words for words, _ in labels(drawing) if words.startswith("lr 1e-2: ")]
    assert float(named.split(": ")[1].replace(",", "")) == pytest.approx(furthest, rel=1e-3)
    assert inside(drawing)
    assert collisions(drawing) == []


def test_values_below_the_axis_are_marked_at_its_foot():
    series = [Series(f"seed {k}", falling(shift=0.004 * k), k) for k in range(4)]
    sunk = Series("sunk", tuple((x, y - 3 * x) for x, y in falling()), 5)
    drawing = line_chart([*series, sunk], title="t")
    (mark,) = re.findall(r'<path class="beyond s5" d="M[\d.]+ ([\d.]+)h9l-4.5 (-?\d+)Z"', drawing)
    assert int(mark[1]) > 0  # the triangle points down
    assert not re.search(r'beyond s[0-4]"', drawing)


def test_spikes_of_the_gradient_do_not_flatten_it():
    metrics = [
        {"kind": "train", "step": k, "grad_norm": 900.0 if k == 40 else 1 + 0.2 * math.sin(k), "loss": 0.5}
        for k in range(1, 101)
    ]
    (figure,) = [f for f in figures(metrics, {"config": {"max_grad_norm": 1.0}}) if f.key == "grad_norm"]
    assert 'class="beyond' in figure.drawing
    assert any(words.endswith((": 900", ": 900.0")) for words, _ in labels(figure.drawing))
    assert any(words == "clipped above 1" for words, _ in labels(figure.drawing))
    assert collisions(figure.drawing) == []
    assert inside(figure.drawing)


@pytest.mark.parametrize("width", [300, 360, 560])
@pytest.mark.parametrize("top", [1.0, 7.3e-5, 123456.0])
def test_labels_do_not_collide(width, top):
    series = [
        Series(f"{LONG}-{k}", tuple((x * 1e5, top * y) for x, y in falling(shift=0.001 * k)), k, label=f"{LONG}-{k}")
        for k in range(6)
    ]
    rules = [Rule(0.69 * top, "policy = reference: 0.6931"), Rule(0.68 * top, "chance"), Rule(0.5 * top, LONG)]
    drawing = line_chart(
        series, title="t", y_label="nats", rules=rules, marked=(2e6, "weights kept"), x_label="step", width=width
    )
    assert collisions(drawing) == []
    assert inside(drawing)
    assert all(box[2] <= width + 2 for _, box in labels(drawing))


def test_more_labels_than_fit_are_left_to_the_legend():
    series = [Series(f"s{k}", falling(shift=0.01 * k), k % 7, label=f"s{k}") for k in range(30)]
    drawing = line_chart(series, title="t")
    assert not any(words.startswith("s") and words[1:].isdigit() for words, _ in labels(drawing))
    assert collisions(drawing) == []


@pytest.mark.parametrize("points", [(), ((3.0, 0.5),), ((3.0, None),), ((0.0, math.nan), (1.0, math.inf), (2.0, 0.4))])
def test_one_point_and_no_number_draw_something(points):
    drawing = line_chart([Series("s", points, 1, label="s")], title="t", rules=[Rule(0.7, "chance")])
    assert "nan" not in drawing
    assert "inf" not in drawing
    assert inside(drawing)
    assert drawing.count('<circle class="d s1"') >= (1 if any(y and math.isfinite(y) for _, y in points) else 0)


def test_ticks_fit_their_axis():
    for room in (80, 160, 290, 900):
        for high in (1e-5, 0.3, 96, 1e6, 123456789):
            ticks = fitting_ticks(0, high, room)
            assert ticks
            assert sum(len(label) * 6.1 for label in ticks.values()) <= max(room, 110)


def test_a_line_is_cut_where_it_leaves_and_enters():
    box = (0.0, 0.0, 10.0, 10.0)
    assert clip([(1, 5), (2, 15), (3, 5)], box) == [[(1, 5), (1.5, 10)], [(2.5, 10), (3, 5)]]
    assert clip([(-5, 5), (15, 5)], box) == [[(0, 5), (10, 5)]]
    assert clip([(1, 12), (9, 12)], box) == []
    assert clip([(1, 1), (2, 2), (3, 3)], box) == [[(1, 1), (2, 2), (3, 3)]]
    assert clip([(4, 4)], box) == [[(4, 4)]]
    assert clip([(4, 40)], box) == []


def test_a_policy_far_away_stands_at_the_edge_of_the_frontier_with_its_values():
    spots = [PolicyPoint(f"method {k}", 2 + 0.2 * k, 1 + 0.1 * k, colour=k) for k in range(5)]
    paths = [Series(s.label, ((0.0, 0.0), (1.0, 0.6), (s.x, s.y)), s.colour) for s in spots]
    far = PolicyPoint("collapsed", 640.0, -3.0, colour=6)
    stray = Series("collapsed", ((0.0, 0.0), (300.0, -2.0), (640.0, -3.0)), 6)
    drawing = frontier_svg([*spots, far], [], paths=[*paths, stray])
    assert re.search(r'<path class="beyond s6"', drawing)
    assert any(words.startswith("collapsed (640") for words, _ in labels(drawing))
    assert len([1 for words, _ in labels(drawing) if words.startswith("method")]) == 5
    assert collisions(drawing) == []
    assert inside(drawing, slack=8)
    xs = [float(x) for x in re.findall(r'<circle class="d s[0-4]" cx="([\d.]+)" cy="[\d.]+" r="4"', drawing)]
    assert max(xs) - min(xs) > 60  # the others are distinguished


def test_labels_of_many_policies_in_one_place_do_not_collide():
    spots = [PolicyPoint(f"{LONG[:30]} {k}", 1 + 0.001 * k, 1 + 0.001 * k, colour=k % 7) for k in range(12)]
    assert collisions(frontier_svg(spots, [])) == []


def method(n_seeds):
    """A method with two snapshots, as in a comparison."""
    mean = {"value": 1.0, "low": -20.0, "high": 22.0}
    curve = [
        {"seeds": n_seeds, "kl": {"value": x, "low": 0, "high": 9}, "rewards": {"r": {**mean, "value": x}}}
        for x in (1.0, 2.0)
    ]
    points = [
        {"seed": seed, "kl": {"mean": x + 0.1 * seed}, "rewards": {"r": {"mean": x + seed}}, "cost": {"seconds": x}}
        for seed in range(n_seeds)
        for x in (1.0, 2.0)
    ]
    return {"label": "m", "curve": curve, "points": points}


@pytest.mark.parametrize(("n", "has_band", "drawn"), [(1, True, 0), (2, False, 2), (3, True, 3), (5, True, 0)])
def test_two_seeds_are_drawn_and_have_no_band(n, has_band, drawn):
    made = method(n)
    assert bool(method_line(made, "kl", "r").low) == has_band
    lines = seeds(made, "kl", "r", 3)
    assert [s.mark for s in lines] == ["faint"] * drawn
    if drawn:
        assert lines[1].points == ((1.1, 2.0), (2.1, 3.0))


def test_the_furthest_value_of_a_stray_is_the_furthest_one_among_negative_numbers_too():
    usual = [Series(f"run {k}", falling(shift=-200.0), k) for k in range(3)]
    up = Series("wild", tuple((float(k), -185.0 + 2.25 * k) for k in range(61)), 5)
    drawing = line_chart([*usual, up], title="log-prob")
    assert any(words.startswith("wild: −50") for words, _ in labels(drawing)), labels(drawing)
    down = Series("sunk", tuple((float(k), -15.0 - 2.25 * k) for k in range(61)), 5)
    drawing = line_chart([*(Series(f"run {k}", falling(), k) for k in range(3)), down], title="y")
    assert any(words.startswith("sunk: −150") for words, _ in labels(drawing)), labels(drawing)


def test_a_figure_of_a_rollouts_metric_is_drawn_beside_training():
    kinds = (("train", "loss"), ("rollout", "objective/kl"))
    metrics = [{"kind": kind, "step": k, name: 0.1 * k} for k in range(4) for kind, name in kinds]
    assert "<svg" in figure_of("objective/kl", metrics).drawing
    assert "<svg" in figure_of("loss", metrics).drawing
    assert figure_of("reward", metrics).drawing == ""


def test_rollouts_have_the_shares_of_time_of_their_stages():
    metrics = [
        {"kind": "rollout", "step": 0, "seconds": 3.0, "seconds/sampling": 2.0, "seconds/scoring": 0.5},
        {"kind": "train", "step": 1, "seconds": 4.0},
        {"kind": "rollout", "step": 1, "seconds": 7.0, "seconds/sampling": 3.0, "seconds/scoring": math.nan},
    ]
    assert ("Rollouts", "sampling 50%, scoring 5% of the time") in views.overview({"seconds": 10.0}, metrics)
    for unknown in ({}, {"seconds": None}, {"seconds": 0.0}):
        assert not [row for row in views.overview(unknown, metrics) if row[0] == "Rollouts"]
    assert not [row for row in views.overview({"seconds": 10.0}, metrics[1:2]) if row[0] == "Rollouts"]
