"""From metrics to series."""

import math

import helpers_report as rr
import pytest

from afzal.report import charts, svg
from afzal.stats.intervals import Z95


def test_running_mean_is_centred_and_keeps_gaps():
    points = [(0, 1.0), (1, 2.0), (2, 6.0), (3, None), (4, 4.0)]
    assert charts.smooth(points, 3) == [(0, 1.5), (1, 3.0), (2, 4.0), (3, None), (4, 4.0)]
    assert charts.smooth(points, 1) == points


@pytest.mark.parametrize(("count", "window"), [(1, 1), (9, 1), (10, 3), (96, 7), (1500, 101)])
def test_window_grows_with_the_curve_and_is_odd(count, window):
    assert charts.smoothing_window(count) == window


def test_a_straight_line_is_its_own_running_mean_away_from_the_ends():
    points = [(x, 2.0 * x) for x in range(40)]
    assert charts.smooth(points, 7)[3:-3] == points[3:-3]


def test_points_keep_what_is_not_finite_as_a_gap():
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3}, {"step": 4, "loss": "NaN"}]
    assert charts.points_of(records, "loss") == [(1, 1.0), (2, None), (4, None)]


def test_the_accuracy_has_its_band_and_both_ends_of_the_scale():
    figures = {f.key: f for f in charts.figures(rr.dpo_metrics(), rr.facts())}
    held_out = figures["rewards/accuracies"].legend[-1]
    last = [m for m in rr.dpo_metrics() if m["kind"] == "eval"][-1]
    assert held_out.name == "held out"
    assert (held_out.low[-1], held_out.high[-1]) == (last["rewards/accuracies_low"], last["rewards/accuracies_high"])
    assert ">0.0</text>" in figures["rewards/accuracies"].drawing
    assert ">1.0</text>" in figures["rewards/accuracies"].drawing


def test_colours_mean_the_same_in_every_chart():
    figures = {f.key: f for f in charts.figures(rr.dpo_metrics(), rr.facts())}
    for key in ("logps", "rewards", "lengths"):
        colours = {s.name.split(",")[0]: s.colour for s in figures[key].legend}
        assert (colours["chosen"], colours["rejected"]) == (svg.CHOSEN, svg.REJECTED)
    assert {s.colour for s in figures["loss"].legend} == {svg.TRAIN, svg.HELD_OUT}


def test_kl_band_is_two_standard_errors():
    kl = next(f for f in charts.figures(rr.dpo_metrics(), rr.facts()) if f.key == "kl").legend[0]
    (_, value), low = kl.points[-1], kl.low[-1]
    assert value - low == pytest.approx(Z95 * 0.08 * value)


def test_lengths_begin_at_zero():
    lengths = next(f for f in charts.figures(rr.dpo_metrics(), rr.facts()) if f.key == "lengths")
    assert ">0</text>" in lengths.drawing


def test_no_metrics_give_no_figures():
    assert charts.figures([], {}) == []
