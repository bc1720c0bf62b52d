"""Reports of hundreds of names: the page shows those that matter and says how many are left out; the files have all."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

from afzal import report
from afzal.api import aggregate

PLACES = {"lines": "x.csv", "rest": "x.json"}


def board(lines: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    body = {"title": "T", "subtitle": "s", "findings": ["One."], "facts": [], "differences": [], "rule": None}
    return body | {"unit": "agreement", "lines": lines, **more}


def person(name: str, labels: int, low: float, high: float) -> dict[str, Any]:
    return {"name": name, "value": (low + high) / 2, "low": low, "high": high, "labels": labels}


def crowd(n: int = 500) -> list[dict[str, Any]]:
    return [person(f"p{k:03d}", 10, 0.5, 0.9) for k in range(n)]


def names(body: dict[str, Any]) -> set[str]:
    return {line["name"] for line in body["lines"]}


def test_the_page_keeps_those_with_remarks_low_agreement_or_many_labels():
    lines = crowd()
    lines[200] = person("odd", 10, 0.5, 0.9)
    lines[300] = person("low", 10, 0.1, 0.3)
    lines[400] = person("diligent", 900, 0.5, 0.9)
    # one label says little: its interval reaches far up, and nobody is shown for that
    lines[450] = person("once", 1, 0.0, 0.95)
    body = board(lines, remarks={"odd": ["takes 1 s"]}, findings=["One.", "odd: takes 1 s"])
    short = report.shortened(body, PLACES)
    assert {"odd", "low", "diligent"} <= names(short)
    assert "once" not in names(short)
    assert len(short["lines"]) <= 45
    assert short["lines_words"].startswith(f"{len(short['lines'])} of 500: those with remarks")
    assert "x.csv" in short["lines_words"]
    assert short["findings"] == body["findings"]


def test_short_reports_are_unchanged():
    body = board(crowd(60), remarks={}, tables=[{"title": "t", "words": "w", "columns": ["a"], "rows": [["b"]] * 60}])
    assert report.shortened(body, PLACES) == body


def test_hundreds_of_remarks_are_counted_and_other_findings_stay():
    lines = [person(f"p{k:03d}", k, 0.5, 0.9) for k in range(500)]
    remarks = {f"p{k:03d}": ["prefers the first", "takes 1 s"] for k in range(100)}
    said = [f"{name}: {remark}" for name, both in remarks.items() for remark in both]
    similar = [f"p{k} and P{k} are one?" for k in range(70)]
    body = board(lines, remarks=remarks, similar_names=similar, findings=["One.", *said, *similar, "A warning."])
    short = report.shortened(body, PLACES)["findings"]
    assert short[0] == "One."
    assert "A warning." in short
    # of 200 remarks, those on the fifteen with most labels; of 70 pairs of names, fifteen
    assert short[-1] == "225 more remarks about annotators are in x.json."
    assert "p099: takes 1 s" in short
    assert "p000: takes 1 s" not in short


def test_leaderboards_keep_the_first_and_tables_the_same_names():
    lines = [{"name": f"m{k}", "value": -k, "low": None, "high": None} for k in range(100)]
    by_name = {"title": "t", "words": "w.", "columns": ["m", "x"], "rows": [[f"m{99 - k}", "1"] for k in range(100)]}
    other = {"title": "o", "words": "", "columns": ["c"], "rows": [[f"c{k}"] for k in range(61)]}
    gaps = [{"first": "m0", "second": f"m{k}", "value": 1, "low": 0, "high": 2} for k in range(1, 100)]
    short = report.shortened(board(lines, differences=gaps, tables=[by_name, other]), PLACES)
    assert short["lines"] == lines[:45]
    assert [row[0] for row in short["tables"][0]["rows"]] == [f"m{k}" for k in range(44, -1, -1)]
    assert short["tables"][0]["words"] == "w. 45 of 100 rows are shown. All of them: x.json."
    assert len(short["tables"][1]["rows"]) == 45
    assert short["differences"] == gaps[:45]
    assert "45 of 99" in short["differences_words"]


def test_the_files_of_a_thousand_annotators_have_all_of_them(tmp_path):
    rows = [
        {
            "prompt": f"q{k % 50}",
            "response_a": "yes",
            "response_b": "no",
            "winner": "model_a",
            "judge": f"person {k:04d}",
        }
        for k in range(1000)
    ]
    result = aggregate(rows, page=tmp_path, resamples=20)
    page = (tmp_path / "annotators.html").read_text("utf-8")
    with (tmp_path / "annotators.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 1000
    assert len(json.loads((tmp_path / "annotators.json").read_text("utf-8"))["lines"]) == 1000
    assert len(result["lines"]) == 1000
    shown = set(re.findall(r"person \d{4}", page))
    assert 0 < len(shown) <= 45
    assert f"{len(shown)} of 1,000: those with remarks" in page
    words = str(result)
    assert set(re.findall(r"person \d{4}", words)) == shown
    assert f"{len(shown)} of 1,000" in words
    assert "--json" in words
    assert set(re.findall(r"person \d{4}", (tmp_path / "annotators.md").read_text("utf-8"))) == shown
    assert set(re.findall(r"person \d{4}", (tmp_path / "annotators.svg").read_text("utf-8"))) == shown
