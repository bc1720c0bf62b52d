"""``afzal score``: score the responses in a file."""

from __future__ import annotations

from typing import Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.conclusion import print_conclusion
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal.conclusion import Step, step


def _score(**flags: Any) -> None:
    """Score every response in a file with a reward model (--model), or with a policy and its reference.

    If the file has preferences, also show how often the scores agree with them, and how well they are calibrated.
    """
    settings = config.build(config.ScoreConfig, given(config.ScoreConfig, flags))
    startup.begin(settings, f"scores of {settings.data} by {settings.model or settings.policy}")
    with startup.importing():
        from afzal.rewards.score import score

    for line in score(settings):
        typer.echo(line)
    print_conclusion("", _steps(settings))


def _steps(settings: config.ScoreConfig) -> list[Step]:
    """The next steps: check for pairs that the scores contradict, and train with a reward model that has a start."""
    from afzal import runs

    if settings.columns or settings.data_format:
        return []
    if settings.model is None:
        by = ["--policy", settings.policy, "--reference", settings.reference]
        return [step("check", settings.data, *by, why="which pairs do the scores contradict?")]
    steps = [step("check", settings.data, "--reward", settings.model, why="which pairs do the scores contradict?")]
    if start := runs.start_of(settings.model):
        learning = ["--model", start, "--data", settings.data, "--reward", settings.model]
        steps.append(step("train", "rloo", *learning, why="learn from it"))
    return steps


command = with_parameters(_score, parameters(config.ScoreConfig, panel="Options"))
