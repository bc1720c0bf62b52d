"""``afzal export``: a trained adapter as a stand-alone model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.conclusion import print_conclusion
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal.conclusion import step


def _export(
    run: Annotated[str, typer.Argument(help="The adapter: a run folder or a hub id.", show_default=False)],
    **flags: Any,
) -> None:
    """Merge a trained adapter into its base model, check that log-probs do not change, and save it for transformers.

    Virtual tokens (prefix, prompt, p_tuning) cannot be merged: their folder is copied, for PEFT to load.
    """
    settings = config.build(config.ExportConfig, given(config.ExportConfig, {**flags, "model": run}))
    startup.begin(settings, f"export of {settings.model}")
    with startup.importing():
        from afzal import recipes

    for line in recipes.export(settings):
        typer.echo(line)
    next_step = step("generate", "--model", settings.out, "--prompt", "How are you?", why="try it")
    print_conclusion("", [next_step] if Path(settings.out, "config.json").is_file() else [])


command = with_parameters(_export, [p for p in parameters(config.ExportConfig, panel="Options") if p.name != "model"])
