"""Sides in separate processes: what each writes, what is repeated, and how their files are merged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dpo_step import apart

_SIDE = """
import json, sys, time
side, out = sys.argv[sys.argv.index("--only") + 1], sys.argv[sys.argv.index("--out") + 1]
if side == "trl":
    raise SystemExit("ImportError: no trl")
if side == "plain":
    time.sleep(60)
print(side, "is done")
open(out, "w").write(json.dumps({"losses": {"fp32": 0.7}, "shapes": {"hh": {}}, "failed": {}}))
"""


def _command(tmp_path: Path) -> list[str]:
    (tmp_path / "side.py").write_text(_SIDE)
    return [sys.executable, str(tmp_path / "side.py")]


def test_a_side_that_fails_is_left_out_and_one_that_is_done_is_not_done_again(tmp_path, capsys):
    seen: list[list[str]] = []
    line = _command(tmp_path)
    assert apart.gather(["afzal", "trl", "afzal-cached"], tmp_path / "parts", line, lambda f: seen.append(list(f)))
    assert seen == [["afzal"], ["afzal", "trl"], ["afzal", "trl", "afzal-cached"]]
    said = capsys.readouterr().out
    assert "afzal is done" in said
    assert "trl ended early: ImportError: no trl" in said
    (tmp_path / "side.py").write_text("raise SystemExit(f'called again')")
    sides: dict = {}
    assert apart.gather(["afzal", "trl"], tmp_path / "parts", line, sides.update)
    assert sides["afzal"]["shapes"] == {"hh": {}}
    assert sides["trl"]["failed"] == {apart.THE_REST: "called again"}


def test_sides_that_are_late_are_left_out(tmp_path):
    sides: dict = {}
    sound = apart.gather(["plain", "afzal"], tmp_path / "parts", _command(tmp_path), sides.update, seconds=1.0)
    assert not sound
    late = {"losses": {}, "shapes": {}, "failed": {apart.THE_REST: "out of time"}}
    assert sides == {"plain": late, "afzal": late}


def test_losses_that_differ_are_reported():
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}
    losses = {"fp32": {"afzal": 0.7, "trl": 0.700001}, "bf16": {"afzal": 0.7, "trl": 0.71}}
    assert apart.disagreement(losses, tolerance) == ""
    losses["fp32"]["plain"] = 0.70002
    assert "fp32" in apart.disagreement(losses, tolerance)
    assert apart.disagreement({"fp32": {}}, tolerance) == ""


def test_a_shape_of_all_sides_has_one_peak_and_the_reasons_of_what_is_missing():
    own = {"seconds": [1.0, 3.0], "least_flops": [6.0, 10.0], "peak": 8.0}
    peer = {"seconds": [2.0], "least_flops": [4.0], "peak": 10.0}
    sides = {
        "afzal": {"shapes": {"hh": own}, "failed": {}},
        "trl": {"shapes": {"hh": peer}, "failed": {"uf": "OutOfMemoryError"}},
        "plain": {"shapes": {}, "failed": {apart.THE_REST: "out of time"}},
    }
    hh = apart.merged(sides, "hh", {"pairs": 2})
    assert (hh["shape"], hh["peak"], hh["pairs"]) == ("hh", 10.0, 2)
    assert hh["afzal"]["flops_per_second"] == 4.0
    assert hh["afzal"]["roofline"] == pytest.approx(0.4)
    assert hh["left_out"] == {"plain": "out of time"}
    assert apart.merged(sides, "uf", {})["left_out"] == {"trl": "OutOfMemoryError", "plain": "out of time"}


@pytest.mark.parametrize("side", ["afzal", pytest.param("afzal-cached", marks=pytest.mark.slow)])
def test_a_side_writes_every_shape_of_one_run(side, tmp_path):
    import torch

    from benchmarks.dpo_step import models, shapes, sides

    config = models.llama(width=32, layers=1, heads=2, kv_heads=2, feed_forward=48, vocabulary=100)
    drawn = {name: np.full((2, 2, 3), n) for name, n in (("hh", 6), ("uf", 9))}
    counts = np.concatenate([np.full((2, 3), 4), *(c.reshape(-1, 3) for c in drawn.values())])
    rows, device = shapes.rows(counts, 100, 0), torch.device("cpu")
    work = sides.Work(config, rows, 2, "fp32", device, cached=sides.is_cached(side))
    file = tmp_path / "side.json"
    apart.run_side(side, work, drawn, {"fp32": work}, file)
    result = json.loads(file.read_text())
    assert list(result["shapes"]) == ["hh", "uf"]
    assert result["failed"] == {}
    for name, figures in result["shapes"].items():
        assert len(figures["seconds"]) == len(figures["losses"]) == 2
        assert figures["tokens_per_second"] == pytest.approx(drawn[name].sum() / sum(figures["seconds"]))
        assert figures["executed_over_minimum"] >= 1.0
    assert result["losses"]["fp32"] == pytest.approx(0.693, abs=0.1)


def test_a_side_that_stops_keeps_the_shapes_before(tmp_path, monkeypatch):
    import torch

    from benchmarks.dpo_step import models, sides

    def breaking(began, ended):
        for _ in range(3):
            began()
            ended(0.5)
        raise MemoryError("no room")

    config = models.llama(width=32, layers=1, heads=2, kv_heads=2, feed_forward=48, vocabulary=100)
    work = sides.Work(config, [], 1, "fp32", torch.device("cpu"))
    monkeypatch.setattr(sides, "loop_of", lambda side, work: breaking)
    drawn = {"hh": np.full((2, 1, 3), 5), "uf": np.full((2, 1, 3), 7)}
    apart.run_side("plain", work, drawn, {}, tmp_path / "plain.json")
    result = json.loads((tmp_path / "plain.json").read_text())
    assert list(result["shapes"]) == ["hh"]
    assert result["failed"] == {"uf": "MemoryError: no room"}
