"""Verdicts in a run's folder are on its page."""

from __future__ import annotations

import json
from pathlib import Path

import helpers_report as rr

from afzal import data, report
from afzal.cli import main
from afzal.records import Item, Response
from afzal.report import judge_sections


def pairs(path: Path) -> str:
    """Twelve prompts; the first model's answer is longer on nine."""
    texts = [("long enough", "short") if k % 4 else ("x", "longer") for k in range(12)]
    items = [
        Item(f"r{k}", f"question {k}", (Response(a, "dpo<b>"), Response(b, "sft"))) for k, (a, b) in enumerate(texts)
    ]
    data.write(items, path, "afzal")
    return str(path)


def test_what_afzal_judge_leaves_in_the_folder_is_on_the_page(tmp_path):
    run = rr.write_run(tmp_path / "run")
    assert "Judges:" not in report.build(run).read_text()
    words = ["--judge", "rule:longest", "--judge", "rule:shortest", "--resamples", "50"]
    assert main(["judge", pairs(tmp_path / "pairs.jsonl"), *words, "--out", str(run / "verdicts")]) == 0
    (section,) = judge_sections.read(run, [])
    assert section.title == "Judges: verdicts"
    assert section.table is not None
    longest, shortest = section.table.rows
    assert longest[:7] == ("rule:longest", "dpo<b> against sft", 9, 0, 3, 0, 75.0)
    assert shortest[:7] == ("rule:shortest", "dpo<b> against sft", 3, 0, 9, 0, 25.0)
    assert str(longest[7]).startswith("[")
    assert longest[8] is None
    page = report.build(run).read_text()
    assert "Judges: verdicts" in page
    assert "dpo&lt;b&gt; against sft" in page
    assert "dpo<b>" not in page


def test_what_is_no_verdict_or_damaged_is_no_section_and_is_said(tmp_path):
    bodies = {"a": "{", "b": json.dumps({"judge": "x"}), "c": json.dumps([{"judge": "x"}, 3]), "d": "[]"}
    for name, text in bodies.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
    notes: list[str] = []
    assert judge_sections.read(tmp_path, notes) == []
    assert notes == ["a/summary.json cannot be read."]


def test_a_judge_without_a_single_verdict_has_counts_only(tmp_path):
    models = {"ours": "a", "theirs": "b", "win": 0, "tie": 0, "loss": 0, "no_verdict": 4}
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "summary.json").write_text(json.dumps([{"judge": "j", "models": models}]))
    (section,) = judge_sections.read(tmp_path, [])
    assert section.table is not None
    assert section.table.rows == (("j", "a against b", 0, 0, 0, 4, None, "", None),)
