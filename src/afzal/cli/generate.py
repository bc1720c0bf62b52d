"""``afzal generate``: answers of a model to one prompt or to a file of prompts."""

from __future__ import annotations

from typing import Any

from afzal import config
from afzal.cli import start
from afzal.cli.flags import given, parameters, with_parameters


def _generate(**flags: Any) -> None:
    """Let a model answer one prompt (--prompt TEXT) or a file of prompts (--prompts FILE)."""
    settings = config.build(config.GenerateConfig, given(config.GenerateConfig, flags))
    start.begin(settings, f"answers of {settings.model}")
    from afzal.generate.run import generate

    generate(settings)


command = with_parameters(_generate, parameters(config.GenerateConfig, panel="Options"))
