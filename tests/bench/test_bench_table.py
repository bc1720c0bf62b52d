"""The README's figures and the tables match the files in benchmarks/results."""

from __future__ import annotations

import json

import pytest

from benchmarks import growth, table
from benchmarks.dpo_step import table as dpo_step

ABOUT = {
    "date": "2026-01-02",
    "command": "python -m benchmarks.dpo_step --shapes hh",
    "device": "A processor",
    "threads": 2,
    "versions": {"python": "3.11.7", "afzal": "0.1.0", "torch": "2.13.0"},
    "load": 0.25,
    "dtype": "bf16",
    "parameters": 58_000_000,
}


def side(seconds: float, share: float, **more) -> dict:
    figures = {"seconds": [seconds], "pairs_per_second": 8 / seconds, "tokens_per_second": 800 / seconds}
    return figures | {"roofline": share, "executed_over_minimum": None} | more


def shape(name: str) -> dict:
    return {
        "shape": name,
        "mean": [126.3, 54.2, 54.9],
        "left_out": {"trl-best": "OutOfMemoryError: no room"},
        "afzal": side(4.0, 0.561, executed_over_minimum=1.0081, peak_bytes=2.57e9),
        "trl": side(30.0, 0.07, ratio={"median": 7.62, "low": 7.53, "high": 7.69}),
        "plain": side(20.0, 0.11, ratio={"median": 5.3, "low": 5.1, "high": 5.5}),
    }


def test_the_readme_shows_what_the_files_hold():
    results = table.read(table.RESULTS)
    readme = (table.ROOT / "README.md").read_text(encoding="utf-8")
    assert table.replaced(readme, table.claim(results)) == readme, "run: python -m benchmarks.table"
    page = (table.ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert page == table.page(results), "run: python -m benchmarks.table"


def test_the_claim_is_the_range_of_the_rows(tmp_path):
    files = (("dpo-step-cpu-a", 30.0, "trl"), ("dpo-step-cpu-b", 6.0, "trl"), ("dpo-step-cpu-c", 5.0, "trl-best"))
    for name, ratio, peer in files:
        sides = {"afzal": side(4.0, 0.561, executed_over_minimum=1.0081, peak_bytes=2.57e9)}
        sides |= {peer: side(30.0, 0.07, ratio={"median": ratio, "low": ratio, "high": ratio})}
        content = {"about": ABOUT | {"device": name}, "shapes": [{**shape("hh"), "trl": {}, **sides}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    said = table.claim(table.read(tmp_path))
    assert "is 6 to 30 times as fast as TRL's, and 5 to 5 times" in said
    assert "3 shapes, number formats and machines" in said
    assert table.claim([]) == "Speed: no figures have been taken yet."


def test_the_summary_has_a_row_per_shape_and_a_line_per_machine(tmp_path):
    for name, device in (("uf", "A processor"), ("hh", "A processor"), ("wide", "Another one")):
        content = {"about": ABOUT | {"device": device}, "shapes": [shape("hh" if name == "wide" else name)]}
        (tmp_path / f"dpo-step-cpu-{name}.json").write_text(json.dumps(content))
    lines = table.summary(table.read(tmp_path)).splitlines()
    assert [line for line in lines if line.endswith(":")] == [
        "2026-01-02, A processor, 2 threads, afzal 0.1.0, torch 2.13.0, bf16:",
        "2026-01-02, Another one, 2 threads, afzal 0.1.0, torch 2.13.0, bf16:",
    ]
    rows = [line for line in lines if line.startswith(("| HH-RLHF", "| UltraFeedback"))]
    assert rows[0] == "| HH-RLHF (126 + 55) | 58 M | 2.00 | 7.6x | - | 5.3x | 56% | 1.008 |"
    assert [row.split()[1] for row in rows] == ["HH-RLHF", "UltraFeedback", "HH-RLHF"]


def test_a_speedup_in_processor_time_stands_beside_that_of_the_clock(tmp_path):
    content = {"about": ABOUT, "shapes": [shape("hh")]}
    content["shapes"][0]["trl"]["processor_ratio"] = {"median": 6.02, "low": 5.9, "high": 6.14}
    (tmp_path / "dpo-step-cpu-hh.json").write_text(json.dumps(content))
    (row,) = [line for line in table.summary(table.read(tmp_path)).splitlines() if line.startswith("| HH-RLHF")]
    assert row == "| HH-RLHF (126 + 55) | 58 M | 2.00 | 7.6x; processor time 6.0x | - | 5.3x | 56% | 1.008 |"
    assert "7.6x (7.5 to 7.7); processor time 6.0x (5.9 to 6.1)" in dpo_step.markdown(ABOUT, content["shapes"])


def test_sides_of_one_shape_may_be_in_two_files(tmp_path):
    whole = shape("hh")
    cached = {"shape": "hh", "mean": [126.3, 54.2, 54.9], "afzal-cached": side(3.0, 0.5)}
    cached["trl-best"] = side(15.0, 0.09, ratio={"median": 5.04, "low": 5.0, "high": 5.1})
    with_peer = ABOUT | {"versions": ABOUT["versions"] | {"trl": "1.16.0"}}
    for name, about, content in (("hh", ABOUT, whole), ("hh-best", with_peer, cached)):
        (tmp_path / f"dpo-step-cpu-{name}.json").write_text(json.dumps({"about": about, "shapes": [content]}))
    lines = table.summary(table.read(tmp_path)).splitlines()
    assert lines[0] == "2026-01-02, A processor, 2 threads, afzal 0.1.0, torch 2.13.0, trl 1.16.0, bf16:"
    assert [line for line in lines if line.startswith("| HH-RLHF")] == [
        "| HH-RLHF (126 + 55) | 58 M | 2.00 | 7.6x | 5.0x | 5.3x | 56% | 1.008 |"
    ]


def test_the_page_names_command_hardware_spread_and_what_was_left_out():
    content = {"about": ABOUT | {"left_out": {"trl": "ImportError: too new"}}, "shapes": [shape("hh")]}
    page = table.page([table.Figures("dpo-step-cpu-hh", content)])
    assert "2026-01-02, A processor, 2 threads, load 0.25, python 3.11.7, afzal 0.1.0" in page
    assert "    python -m benchmarks.dpo_step --shapes hh\n" in page
    assert "| hh (126, 54, 55) | trl | 0.267 | 27 | 7.6x (7.5 to 7.7) | 7% |  |  |" in page
    assert "| afzal | 2.000 | 200 |  | 56% | 1.008 | 2.57 GB |" in page
    assert "Left out: trl: ImportError: too new" in page
    assert "Left out: trl-best on hh: OutOfMemoryError: no room" in page


def test_growth_names_what_four_responses_cost():
    rows = [
        {"varied": "responses", "value": k, "seconds": s, "kept_bytes": 1e6, "flops": 2e9, "share": 0.5}
        for k, s in ((2, 2.0), (4, 3.0))
    ]
    results = {"about": ABOUT | {"width": 256, "layers": 4}, "peak": 4e9, "rows": rows, "groups": growth.groups(rows)}
    assert results["groups"] == {"k4_in_pair_steps": 1.5, "bound": 2.0}
    assert "4 responses per prompt cost 1.50 times a pair" in table.growth(results)
    assert "| responses | 4 | 3.000 | 1 MB | 2.0 GFLOP | 50% |" in table.growth(results)


def test_the_cases_of_growth_vary_one_part_each():
    for name, varied in growth.cases().items():
        fixed = {tuple(v for k, v in vars_of(case).items() if k != name) for case in varied}
        assert len(fixed) == 1
        assert len({getattr(case, name) for case in varied}) == len(varied) > 2
    assert growth.cases(16)["prompt"][0].prompt == growth.cases()["prompt"][0].prompt // 16


def vars_of(case: growth.Case) -> dict[str, int]:
    return {name: getattr(case, name) for name in case.__slots__}


def test_files_of_any_other_kind_are_listed_figure_by_figure():
    content = {"about": ABOUT, "runs": {"a": "done", "b": [1, 0.123456]}}
    page = table.page([table.Figures("run-cuda", content)])
    assert "| runs a | done |" in page
    assert "| runs b | 1, 0.1235 |" in page


def test_start_up_gives_median_and_spread():
    results = {"about": ABOUT, "processor_seconds": {"afzal --help": {"median": 0.16, "seconds": [0.15, 0.16, 0.2]}}}
    assert "| afzal --help | 0.16 (0.15 to 0.20) |" in table.startup(results)


def test_a_text_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="figures"):
        table.replaced("a text", "block")


def test_a_figure_that_was_not_taken_is_left_blank():
    assert dpo_step.shown(None, ".3f") == ""
    assert dpo_step.shown(1.0081, ".3f") == "1.008"
    assert dpo_step.shown(2.57e9, "GB") == "2.57 GB"
