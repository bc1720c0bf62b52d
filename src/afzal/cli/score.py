"""``afzal score``: scores of the responses of a file."""

from __future__ import annotations

from typing import Any

import typer

from afzal import config
from afzal.cli import start
from afzal.cli.flags import given, parameters, with_parameters


def _score(**flags: Any) -> None:
    """Score every response of a file by a reward model (--model), or by a policy against its reference.

    Where the file has preferences: how often the scores agree with them, and how well they are calibrated.
    """
    settings = config.build(config.ScoreConfig, given(config.ScoreConfig, flags))
    start.begin(settings, f"scores of {settings.data} by {settings.model}")
    from afzal.rewards.score import score

    for line in score(settings):
        typer.echo(line)


command = with_parameters(_score, parameters(config.ScoreConfig, panel="Options"))
