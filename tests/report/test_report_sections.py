"""Extra sections: data in, drawing out, stored with the run."""

import json

import helpers_report as rr
import pytest

from afzal import report
from afzal.report import sections
from afzal.report.sections import FrontierChart, LineChart, Section, Table


def some_sections():
    band = report.Series("reward", ((0, 1.0), (5, None), (10, 2.0)), 2, "dots", (0.9, None, 1.8), (1.1, None, 2.2), "R")
    frontier = FrontierChart(
        (report.PolicyPoint("DPO", 2.0, 2.4, 0.1, 0.05, 3), report.PolicyPoint("reference", 0.0, 0.8)),
        ((0.0, 0.8), (1.0, 2.2), (3.0, 3.0)),
        (report.Series("DPO through training", ((0, 0.8), (2, 2.4))),),
    )
    return [
        Section("Reward", "One.\n\nTwo.", LineChart((band,), "step", "reward", (report.Rule(0.8, "start"),))),
        Section("Frontier", "", frontier, Table(("policy", "reward", "KL"), (("DPO", 2.4, 2.0), ("x", None, 3)))),
        Section("Only words", "Text."),
    ]


def test_sections_survive_the_round_trip_through_json():
    for section in some_sections():
        text = json.dumps(sections.to_json(section), allow_nan=False)
        assert sections.from_json(json.loads(text)) == section


def test_a_rebuilt_report_still_has_its_sections(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    first = report.build(folder, some_sections()).read_bytes()
    assert (folder / "sections.json").exists()
    assert report.build(folder).read_bytes() == first
    html = first.decode()
    assert "no policy can be here" in html
    assert "<p>One.</p>" in html
    assert "<p>Two.</p>" in html


def test_no_markup_comes_from_the_file(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    evil = {"title": "t", "text": "<script>alert(1)</script>", "html": "<script>alert(2)</script>"}
    evil |= {"svg": "<svg onload=alert(3)>", "table": {"columns": ["<b>"], "rows": [["<i>x</i>"]]}}
    (folder / "sections.json").write_text(json.dumps({"sections": [evil]}))
    html = report.build(folder).read_text()
    assert "<script" not in html
    assert "alert(2)" not in html
    assert "alert(3)" not in html
    assert "<i>x" not in html


@pytest.mark.parametrize(
    "entry",
    [
        {"text": "no title"},
        {"title": "t", "chart": {"kind": "pie"}},
        {"title": "t", "chart": {"kind": "line", "series": [{"name": "s", "points": [[0, 1], [1]]}]}},
        {"title": "t", "chart": {"kind": "line", "series": [{"name": "s", "points": [["a", 1]]}]}},
        {"title": "t", "chart": {"kind": "line", "series": [{"name": "s", "points": [[0, 1]], "mark": "x' onload='"}]}},
        {
            "title": "t",
            "chart": {"kind": "line", "series": [{"name": "s", "points": [[0, 1]], "low": [], "high": [1]}]},
        },
        {"title": "t", "chart": {"kind": "frontier", "points": [{"label": "p", "x": 1, "y": float("nan")}]}},
        {"title": "t", "table": {"columns": ["a"], "rows": [3]}},
        3,
    ],
)
def test_a_section_that_cannot_be_drawn_is_named_and_left_out(tmp_path, entry):
    folder = rr.write_run(tmp_path / "run")
    (folder / "sections.json").write_text(json.dumps({"sections": [entry]}))
    with pytest.raises(ValueError, match="does not hold report sections"):
        sections.read(folder)
    assert "does not hold report sections" in report.build(folder).read_text()


def test_table_cells_are_set_as_numbers_or_words():
    cells = Table(("a", "b", "c"), (("word", 0.12345, None),)).cells()
    assert cells == [[("word", False), ("0.1234", True), ("—", False)]] or cells[0][1] == ("0.1235", True)
