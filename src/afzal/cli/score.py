"""``afzal score``: scores of the responses of a file."""

from __future__ import annotations

from typing import Any

import typer

from afzal import config
from afzal.cli import start
from afzal.cli.flags import given, parameters, with_parameters
from afzal.cli.last import last
from afzal.terminal.closing import Step, step


def _score(**flags: Any) -> None:
    """Score every response of a file by a reward model (--model), or by a policy against its reference.

    Where the file has preferences: how often the scores agree with them, and how well they are calibrated.
    """
    settings = config.build(config.ScoreConfig, given(config.ScoreConfig, flags))
    start.begin(settings, f"scores of {settings.data} by {settings.model or settings.policy}")
    with start.importing():
        from afzal.rewards.score import score

    for line in score(settings):
        typer.echo(line)
    last("", _steps(settings))


def _steps(settings: config.ScoreConfig) -> list[Step]:
    """The pairs that the scores contradict, and learning from a reward model that was trained here."""
    from afzal import runs

    if settings.columns or settings.data_format:
        return []
    if settings.model is None:
        by = ["--policy", settings.policy, "--reference", settings.reference]
        return [step("check", settings.data, *by, why="which pairs do the scores contradict?")]
    found = [step("check", settings.data, "--reward", settings.model, why="which pairs do the scores contradict?")]
    if start := runs.start_of(settings.model):
        learning = ["--model", start, "--data", settings.data, "--reward", settings.model]
        found.append(step("train", "rloo", *learning, why="learn from it"))
    return found


command = with_parameters(_score, parameters(config.ScoreConfig, panel="Options"))
