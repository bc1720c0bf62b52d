"""The mathematics of the charts: ticks, scales, gaps, labels."""

import itertools
import math
import re

import pytest

from afzal.report import svg
from afzal.report.axes import domain, integer_ticks, nice_ticks, thin, tick_labels
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.geometry import overlap_area
from afzal.report.svg import PlotArea, Rule, Series, line_chart, spread


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.0, 10.0, [0.0, 5.0, 10.0]),
        (-94.0, -51.0, [-80.0, -60.0]),
        (0.33, 0.71, [0.4, 0.5, 0.6, 0.7]),
        (0.0, 9.6e-5, [0.0, 5e-5]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 0.013, 1.0, 37.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, -0.4, 5.0, -1000.0])
def test_ticks_are_equally_spaced_one_two_or_five(scale, offset):
    low, high = offset * scale, (offset + 1.7) * scale
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-9 * scale <= t <= high + 1e-9 * scale for t in ticks)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    for gap in gaps:
        mantissa = gap / 10 ** math.floor(math.log10(gap) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_ticks_refuse_what_is_no_range(low, high):
    with pytest.raises(ValueError, match="finite ends"):
        nice_ticks(low, high)


def test_whole_ticks_are_whole():
    assert integer_ticks(0, 3) == [0, 1, 2, 3]
    assert integer_ticks(0, 96) == [0, 20, 40, 60, 80]
    assert integer_ticks(7, 7) == [7]
    assert integer_ticks(0.2, 0.8) == [1]


def test_tick_labels_line_up():
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([-100.0, 0.0, 1000.0]) == ["−100", "0", "1,000"]
    assert tick_labels([5e-5, 1e-4]) == ["5e−5", "1e−4"]


def test_domain_holds_the_values_and_survives_what_is_degenerate():
    low, high = domain([1.0, 3.0, None, math.nan])
    assert low < 1.0 < 3.0 < high
    assert domain([]) == (0.0, 1.0)
    assert domain([5.0, 5.0]) == pytest.approx((4.5, 5.5))
    assert domain([0.0]) == (-0.5, 0.5)


def test_frame_maps_the_ends_of_the_data_to_the_ends_of_the_plot():
    frame = PlotArea(left=40, top=20, right=340, bottom=200, x=(0.0, 96.0), y=(-2.0, 2.0))
    assert (frame.px(0), frame.px(96), frame.px(48)) == (40, 340, 190)
    assert (frame.py(-2), frame.py(2), frame.py(0)) == (200, 20, 110)  # larger is higher on the page


def test_a_missing_value_breaks_the_line():
    points = ((0, 1.0), (1, 2.0), (2, None), (3, math.nan), (4, 1.0), (5, 0.5))
    drawing = line_chart([Series("s", points)], title="t")
    paths = re.findall(r'<path class="l line s0" d="([^"]*)"', drawing)
    assert len(paths) == 2
    assert all(path.count("L") == 1 for path in paths)
    assert "nan" not in drawing.lower().replace("finance", "")


@pytest.mark.parametrize("points", [(), ((3, 0.7),), ((3, None),), ((0, 2.0), (1, 2.0), (2, 2.0))])
def test_degenerate_series_draw(points):
    drawing = line_chart([Series("s", points)], title="t")
    assert drawing.startswith("<svg")
    assert drawing.endswith("</svg>")
    assert not re.search(r"nan|inf\b", drawing.lower())
    assert drawing.count("<circle") >= (1 if len(points) == 1 and points[0][1] is not None else 0)


def test_coordinates_stay_inside_the_picture():
    points = tuple((x, math.sin(x / 7) * 1e4) for x in range(100))
    drawing = line_chart([Series("s", points, label="a label")], title="t")
    numbers = [float(n) for path in re.findall(r' d="M([^"]*)"', drawing) for n in re.findall(r"-?\d+\.?\d*", path)]
    assert min(numbers) >= 0
    assert max(numbers) <= 360


def test_band_follows_its_interval_and_a_single_point_becomes_a_bar():
    band = Series("s", ((0, 0.5), (1, 0.6)), low=(0.4, 0.5), high=(0.6, 0.7))
    assert 'class="band s0"' in line_chart([band], title="t")
    single = Series("s", ((0, 0.5),), low=(0.4,), high=(0.6,))
    assert re.search(r'<path class="l line s0" d="M[\d.]+ [\d.]+V', line_chart([single], title="t"))


def test_thin_keeps_spikes_and_ends_short():
    points = [(x, 0.0) for x in range(10_000)]
    points[5_432] = (5_432, 99.0)
    points[77] = (77, -5.0)
    thinned = thin(points)
    assert len(thinned) <= 410
    assert (5_432, 99.0) in thinned
    assert (77, -5.0) in thinned
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert thin([(x, None) for x in range(5000)])[0] == (0, None)
    assert thin(points[:50]) == points[:50]


def test_labels_do_not_overlap_and_keep_their_order():
    placed = spread([50.0, 51.0, 52.0, 120.0], 20, 200)
    gaps = [b - a for a, b in itertools.pairwise(placed)]
    assert min(gaps) >= 12
    assert spread([195.0, 199.0], 20, 200)[1] <= 200
    assert spread([30.0, 100.0], 20, 200) == [30.0, 100.0]  # nothing moves unnecessarily


def test_readout_names_every_series_at_a_step():
    drawing = line_chart([Series("train", ((0, 1.0), (10, 0.5))), Series("held out", ((10, 0.6),), 1)], title="t")
    assert "<title>step 10 · train 0.5000 · held out 0.6000</title>" in drawing


def test_named_ticks_stand_where_they_are_and_in_the_readout():
    series = [Series("a", ((2.0, 1.0), (3.0, 0.5)))]
    drawn = line_chart(series, title="t", x_label="labels of a task", x_ticks={2.0: "4", 3.0: "8"})
    ticks = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\w+)<', drawn)
    assert [name for _, name in ticks] == ["4", "8"]
    assert float(ticks[0][0]) < float(ticks[1][0])
    assert "labels of a task 8 · a 0.5" in drawn
    assert "labels of a task 3" not in drawn


def test_columns_are_few_and_hold_the_sparse_series():
    dense = Series("train", tuple((x, 1.0 * x) for x in range(1000)))
    sparse = Series("held out", ((0, 1.0), (333, 2.0), (999, 3.0)), 1)
    drawing = line_chart([dense, sparse], title="t")
    assert drawing.count('class="col"') <= 64
    assert "step 333 · train 333.0 · held out 2.000" in drawing


def test_words_in_charts_are_escaped():
    evil = "</text><script>alert(1)</script>"
    drawing = line_chart(
        [Series(evil, ((0, 1.0), (1, 2.0)), label=evil)],
        title=evil,
        y_label=evil,
        x_label=evil,
        rules=[Rule(1.5, evil)],
    )
    assert "<script" not in drawing
    points = frontier_svg([PolicyPoint(evil, 1, 1)], [(0, 0), (2, 2)], title=evil, x_label=evil, optimum_label=evil)
    assert "<script" not in points


def test_the_same_input_gives_the_same_bytes():
    series = [Series("s", tuple((x, math.cos(x)) for x in range(50)), low=(0.0,) * 50, high=(1.0,) * 50)]
    assert line_chart(series, title="t") == line_chart(series, title="t")


def test_frontier_draws_points_curve_and_the_region_beyond():
    drawing = frontier_svg(
        [PolicyPoint("DPO", 2.0, 2.4, y_se=0.1), PolicyPoint("KTO", 2.1, 2.3)], [(0, 0.8), (1, 2.2), (3, 3.1)]
    )
    assert 'class="never"' in drawing
    assert drawing.count('class="spot"') == 2
    assert "DPO: KL 2.000, reward 2.400" in drawing


def test_frontier_labels_avoid_each_other():
    spots = [PolicyPoint(f"method {k}", 1.0 + 0.02 * k, 1.0) for k in range(3)]
    drawing = frontier_svg(spots, [(0, 0.0), (2, 2.0)])
    at = re.findall(r'<text class="end s2" x="([\d.]+)" y="([\d.]+)">method', drawing)
    boxes = [(float(x), float(y) - 9, float(x) + 48, float(y) + 3) for x, y in at]
    assert len(boxes) == 3
    assert all(overlap_area(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_standalone_drawing_is_well_formed_xml_with_its_style():
    from xml.etree import ElementTree

    drawing = svg.standalone(line_chart([Series("a & b", ((0, 1.0), (1, 2.0)), label="<a>")], title='"t"'))
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--s2" in root[0].text


def test_frontier_without_a_curve_or_points():
    assert "never" not in frontier_svg([PolicyPoint("a", 0.0, 1.0)], [])
    assert frontier_svg([], []).startswith("<svg")
