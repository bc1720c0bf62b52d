"""One of several ranks runs out of memory: all restart with smaller passes, and the figures are the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_ranks import run_ranks, start_group
from helpers_runs import _run, command_line, finished
from test_recipes_ranks import gap, given, metrics

ROOM = 100  # largest forward pass, in positions, that fits into the memory of rank 1 from its fourth update on


def _short_of_memory(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from afzal.train import update

    score_batch = update.score_batch

    def limited(model: Any, method: Any, batch: Any) -> Any:
        if environment["RANK"] == "1" and batch.update >= 3 and batch.ids.numel() > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return score_batch(model, method, batch)

    update.score_batch = limited
    _run(arguments)


def short_of_memory(line: list[str], restarts: int) -> list[int]:
    started = start_group(_short_of_memory, 2, line, TORCHELASTIC_RESTART_COUNT=str(restarts))
    return [finished(process) for process in started]


@pytest.mark.slow
def test_all_ranks_start_again_in_smaller_passes_and_end_with_the_same_figures(tmp_path):
    more = {"tokens_per_forward": 300, "sample_prompts": 0, "epochs": 2.0, "save_every_steps": 2}
    whole, short = (given(tmp_path, out, "dpo", **more) for out in ("whole", "short"))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    line = command_line("dpo", short)
    noted = tmp_path / "short" / "memory.json"
    codes, tokens = [2, 2], []
    while codes != [0, 0]:
        codes = short_of_memory(line, restarts=len(tokens))
        if codes != [0, 0]:
            tokens.append(json.loads(noted.read_text())["tokens_per_forward"])
            assert len(tokens) < 4, "smaller passes do not come to an end"
    assert tokens, "memory has never run out"
    assert tokens == sorted(tokens, reverse=True)
    assert not noted.exists()
    records = metrics(tmp_path / "short")
    lowered = [line["tokens_per_forward"] for line in records if line["kind"] == "memory"]
    assert lowered[-1] == tokens[-1]
    assert_same_figures(tmp_path / "whole", records)
    assert gap(tmp_path / "whole", tmp_path / "short") <= 1e-6


def assert_same_figures(whole: Path, records: list[dict[str, Any]]) -> None:
    for a, b in zip(metrics(whole), [line for line in records if line["kind"] != "memory"], strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        assert abs(a["loss"] - b["loss"]) <= 1e-6
