"""``afzal compare`` on the command line: the output of a dry run, and refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from afzal.cli import main
from afzal.report import Series, line_chart, standalone


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "compare.yaml"
    path.write_text(
        "model: m\ndata: d.jsonl\nprompts: p.jsonl\nrewards: {gold: 'r.py:gold'}\nseeds: [3]\n"
        f"out: {tmp_path / 'out'}\nmethods:\n  - {{name: dpo, train: dpo, beta: 0.1}}\n  - {{name: bon, best_of: 4}}\n"
    )
    return path


def test_a_dry_run_shows_settings_and_runs_and_leaves_nothing(file, capsys, tmp_path):
    assert main(["compare", str(file), "samples=9", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "samples: 9" in said
    assert "dpo-3: to be trained" in said
    assert "bon: best of 4" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample=9"], "did you mean samples?"),
        (["temperature=0"], "wanted: a number greater than 0"),
        (["seeds=1,1"], "different seeds"),
    ],
)
def test_wrong_settings_are_refused_with_exit_code_2(file, capsys, words, said):
    assert main(["compare", str(file), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_entry_names_the_line_and_the_entry(file, capsys):
    file.write_text(file.read_text().replace("train: dpo", "train: dop"))
    assert main(["compare", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{file}:7" in said
    assert "(dpo): unknown method 'dop' (did you mean dpo?)" in said


def test_png_is_drawn_of_the_svg_and_refused_before_any_work_without_its_library(file, capsys, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    drawing = standalone(
        line_chart([Series("a", ((0, 1.0), (1, 2.0)), 2)], title="a", x_label="", width=120, height=80)
    )
    worked = []

    def compared(settings, say):
        worked.append(settings)
        (tmp_path / "compare.svg").write_text(drawing)
        return tmp_path / "compare.html"

    monkeypatch.setattr("afzal.compare.compare", compared)
    assert main(["compare", str(file)]) == 0
    assert not (tmp_path / "compare.png").exists()
    assert main(["compare", str(file), "--png"]) == 0
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["compare", str(file), "--png"]) == 2
    assert "cannot draw a PNG" in capsys.readouterr().err
    assert len(worked) == 2
