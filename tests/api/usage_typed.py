"""A typed program that uses Afzal; checked by pyright in test_api_typed.py, never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import afzal
import afzal.api
from afzal.api.results import Plot, Result, Run
from afzal.errors import AfzalError
from afzal.train.callbacks import Progress


def short(prompt: str, answer: str) -> float:
    """A reward."""
    return -float(len(answer))


def watch(progress: Progress) -> None:
    """A callback that can end the run."""
    if progress.step > 10:
        progress.stop("enough")


def train(rows: Sequence[dict[str, Any]]) -> Run:
    """A run on rows in memory, with callbacks; returns its result."""
    run = afzal.fit("dpo", model="my-model", data=list(rows), out="runs/dpo", lr=1e-4, beta=0.1, on_step=watch)
    status: str = run.status()
    folder: Path = run.path
    curves: dict[str, list[Any]] = run.curves("loss", kind="eval")
    drawn: Plot = run.plot("loss")
    files: list[Path] = drawn.save(folder / "curves")
    print(status, curves["loss"], files)
    return run


def measure(run: Run) -> bool:
    """Whether the model is better, judged by a function of two texts."""
    checked: Result = afzal.api.check("prefs.jsonl")
    judged = afzal.api.judge(run, against="my-model", judge=short, prompts="prompts.jsonl", n=2)
    answers = afzal.api.generate(model=run, prompts=["Hello"], max_new_tokens=8)
    first: str = answers[0]["completion"]
    table = afzal.api.compare({"model": "my-model"}, out="study", dry_run=True)
    print(first, judged["judges"], table, afzal.api.report(run).page, afzal.api.env())
    return checked.ok and judged.ok


def rounds() -> Run | None:
    """Rounds with a Python reward; an error says what, where and how to fix it."""
    try:
        return afzal.api.iterate(model="my-model", prompts="prompts.jsonl", reward=short, rounds=2)
    except AfzalError as error:
        print(error)
        return None
