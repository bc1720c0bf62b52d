"""The comparison of attention kernels: its oracle, its rows, and the command on a CPU."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from afzal.model.kernels import choose
from afzal.tokens.attention_blocks import TreeLayout
from benchmarks import attention


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 50])
def test_the_unshared_path_is_attention_by_definition(window, softcap):
    job = choose.Job(torch.device("cpu"), torch.float32, 4, 2, 16, 0.25, window, softcap)
    layout = TreeLayout(choose._TRIAL, 467, job.device)
    torch.manual_seed(0)
    q, k, v = (torch.randn(467, n, 16) for n in (4, 2, 2))
    actual = attention.unshared(*(t.transpose(0, 1) for t in (q, k, v)), layout, job)
    torch.testing.assert_close(actual, choose.plain(q, k, v, layout, job), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["hh", "long"])
def test_rows_hold_complete_pairs_up_to_the_limit(shape):
    layout = attention.row(shape, 3000, torch.device("cpu"))
    assert 1500 <= layout.n_tokens <= 3000
    assert sum(s.length for s in layout.segments) == layout.n_tokens
    assert len(layout.segments) % 3 == 0


def test_the_command_compares_what_runs_here_and_says_what_does_not(tmp_path, monkeypatch, capsys):
    out = tmp_path / "attention-cpu.json"
    arguments = ["--device", "cpu", "--tiny", "--dtype", "fp32", "--shapes", "hh", "uf", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["attention", *arguments])
    attention.main()
    record = json.loads(out.read_text())
    assert [c["shape"] for c in record["cases"]] == ["hh", "uf"]
    for c in record["cases"]:
        assert c["kernels"]["blocks"]["error"] < 1e-5
        assert attention.winner(c) == "blocks"
        assert "not in float32" in c["left_out"]["ragged"]
        assert "backward" in c["left_out"]["flex"]
    said = capsys.readouterr().out
    assert "| uf | tiny |" in said
    assert "Left out: flex: " in said


def test_an_error_is_detected():
    right = [torch.ones(3), torch.ones(2)]
    assert attention._error([torch.ones(3), torch.tensor([1.0, 2.0])], right) == pytest.approx(0.5**0.5)
