"""TRL as an oracle: where it is right, the same rows give the same trajectory.

Needs TRL 1.16 in the environment (``make peers``); skipped without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_runs import pair_file, settings
from helpers_trl import in_order, trl_arguments

from afzal import config, recipes, runs

trl = pytest.importorskip("trl", reason="TRL is not installed here (make peers)")
pytestmark = pytest.mark.slow


def trl_losses(given, rows, out, **overrides):
    """Logged metrics of TRL's DPOTrainer over ``rows`` in the given order."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    arguments = trl_arguments(out, given["batch_size"], given["lr"], **overrides)
    trainer = in_order()(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", ["dpo"])
def test_twenty_steps_of_dpo_agree_with_trl_in_fp32(tmp_path, method):
    given = settings(tmp_path, tmp_path / "afzal", batch_size=8, epochs=1.0, lr=3e-4, eval_fraction=0.0)
    given |= {"eval_every_steps": None, "save_every_steps": None, "lr_schedule": "constant", "warmup": 0}
    pair_file(tmp_path / "pairs.jsonl", n=160)
    recipes.train(config.make(method, **given))
    ours = runs.open_run(tmp_path / "afzal").metrics("train")
    theirs = trl_losses(given, _rows_in_our_order(given), tmp_path / "trl")
    assert len(ours) == len(theirs) == 20
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-3), (a["step"], name)
    assert ours[-1]["loss"] < 0.6, "nothing was learnt, so agreement would say little"


def _rows_in_our_order(given):
    from afzal.tokens import update_order

    rows = [json.loads(line) for line in Path(given["data"]).read_text(encoding="utf-8").splitlines()]
    order = update_order(len(rows), given["batch_size"], epoch=0, seed=0)
    return [rows[i] for update in order for i in update]
