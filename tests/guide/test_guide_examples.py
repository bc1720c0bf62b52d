"""The flat file and Afzal train the same model: losses of every update, and weights at the end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers_runs import model_folder, pair_file

from afzal.tokens import update_order

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flat_file_and_afzal_give_the_same_numbers(tmp_path):
    from transformers import AutoModelForCausalLM

    model_folder(tmp_path / "model")
    pair_file(tmp_path / "pairs.jsonl", n=44)  # the last update has four pairs
    rows = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    order = [k for update in update_order(len(rows), 8, epoch=0, seed=0) for k in update]
    (tmp_path / "ordered.jsonl").write_text("".join(rows[k] + "\n" for k in order))  # only Afzal shuffles
    assert len({json.dumps(json.loads(row), sort_keys=True) for row in rows}) == len(rows), "nothing is left out"
    flat = loaded("flat_dpo").main(str(tmp_path / "model"), str(tmp_path / "ordered.jsonl"), str(tmp_path / "flat"))
    ours = loaded("with_afzal").main(str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), str(tmp_path / "afzal"))
    assert len(flat) == 6
    assert flat[0] == pytest.approx(0.6931, abs=1e-4)
    assert flat[-1] < 0.69
    assert ours == pytest.approx(flat, abs=1e-5)
    first, second, start = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("flat", "afzal", "model")
    )
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=2e-5)
    assert max(float((first[n] - w).abs().max()) for n, w in start.items()) > 1e-3
