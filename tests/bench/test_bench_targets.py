"""Targets compared with figures, and `afzal plan` compared with measurements."""

from __future__ import annotations

import pytest

from afzal import plan
from benchmarks.gpu import targets
from benchmarks.table import Figures

ABOUT = {
    "device": "NVIDIA H200",
    "dtype": "bf16",
    "model": "llama-3.1-8b",
    "parameters": 8_030_261_248,
    "rank": 16,
    "optimizer": "adamw",
    "stated_peak": 989e12,
}
UF = {
    "shape": "uf",
    "pairs": 2,
    "counts": [[121, 288, 288]] * 4,
    "left_out": {"trl-best": "OutOfMemoryError: no room"},
    "afzal": {"peak_bytes": 40e9, "flops_per_second": 400e12, "seconds": [0.5, 0.7], "notes": []},
    "trl": {"peak_bytes": 90e9, "ratio": {"median": 1.9, "low": 1.8, "high": 2.1}},
}


def test_every_target_is_reported_as_met_or_not():
    results = list(targets.targets(Figures("dpo-step-cuda-8b-lora", {"about": ABOUT, "shapes": [UF]})))
    assert [(t.wanted, t.found, t.met) for t in results] == [
        (">= 2x", "1.90x (1.80 to 2.10)", False),
        ("<= 50%", "44% (40.0 GB of 90.0 GB)", True),
        (">= 1.25x", "OutOfMemoryError: no room", None),
        (">= 40%", "40.4%", True),
    ]


def test_small_models_and_unknown_cards_have_no_mfu_to_reach_and_peers_not_asked_for_no_row():
    alone = {k: v for k, v in UF.items() if k != "trl"} | {"left_out": {}}
    small = Figures("dpo-step-cuda-1b", {"about": ABOUT | {"parameters": 1_235_814_400}, "shapes": [alone]})
    assert list(targets.targets(small)) == []
    unknown = Figures("dpo-step-cpu-8b", {"about": ABOUT | {"stated_peak": None}, "shapes": [alone]})
    assert list(targets.targets(unknown)) == []


def test_the_plan_is_compared_with_the_measurement_of_the_same_updates():
    (row,) = targets.planned(Figures("x", {"about": ABOUT, "shapes": [UF]}))
    job = targets.job_of(ABOUT, UF, "afzal")
    assert (job.rank, job.reference, job.batch_size, job.lengths.tokens) == (16, "live", 2, 4 * 697)
    device = plan.device_named("h200")
    memory = plan.peak(job, plan.Layout(), device).total - device.reserve
    assert f"| 40.0 GB | {memory / 1e9:.1f} GB | {memory / 40e9 - 1:+.1%} | 0.600 |" in row
    assert list(targets.planned(Figures("x", {"about": ABOUT | {"device": "a CPU"}, "shapes": [UF]}))) == []


@pytest.mark.parametrize(("side", "optimizer", "state"), [("afzal-cached", "rmsprop", 4), ("afzal", "adamw", 8)])
def test_the_planned_job_keeps_what_the_run_kept(side, optimizer, state):
    job = targets.job_of(ABOUT | {"optimizer": optimizer, "rank": 0}, UF, side)
    assert job.state_bytes == state
    assert job.reference == ("cached" if side == "afzal-cached" else "live")


def test_eight_billion_weights_fit_an_h200_with_rmsprop_and_a_cached_reference_only():
    lines = targets.what_fits(plan.device_named("h200"))
    row = next(line for line in lines if line.startswith("| llama-3.1-8b"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [cell.rpartition(", ")[2] for cell in cells[1:]] == ["does not fit", "does not fit", "fits"]


def test_the_section_is_complete_if_nothing_was_measured():
    assert "| what | wanted | found | met |" in targets.section([])
