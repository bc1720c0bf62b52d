"""``afzal iterate --model M --prompts P --reward R ...`` and ``afzal iterate RUN --resume``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.files import path_of, settings_of
from afzal.cli.flags import given, parameters, with_parameters
from afzal.cli.report import ended
from afzal.errors import AfzalError


def _iterate(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE|RUN] KEY=VALUE", show_default=False, help="As for train.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume where the run stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the settings, do nothing.")] = False,
    **flags: Any,
) -> None:
    """Generate, score, reject, pair and train in rounds, with a reward or with people.

    Every flag is also a key of a YAML file: `afzal iterate FILE.yaml key=value ...` runs one, and
    `afzal iterate RUN --resume` resumes a run, also after it has asked for labels.
    """
    settings = [*_base(words or ()), *given(config.IterateConfig, flags), *_overrides(words or ())]
    built = config.build(config.IterateConfig, settings)
    if dry_run:
        typer.echo(config.dump(built))
        if built.generator is not None:
            from afzal.iterate import check

            check(built)
        return
    startup.begin(built, f"rounds of {built.model} on {built.prompts}, into {built.out}")
    with startup.importing():
        from afzal.iterate import iterate

    folder = iterate(built, resume=resume, command=shlex.join(["afzal", *ctx.obj]))
    ended(folder)


def _base(words: Sequence[str]) -> list[config.Setting]:
    """The settings of the file or run in the first word."""
    if not words or "=" in words[0]:
        return []
    path = path_of(words[0])
    if not path.is_file():
        raise AfzalError(f"{words[0]!r} is neither a file nor a run", remedy="afzal iterate --help")
    settings = settings_of(words[0])
    if any(s.key == "method" for s in settings):
        raise AfzalError(f"{path} is a run of afzal train", remedy=f"afzal train {words[0]}")
    return settings


def _overrides(words: Sequence[str]) -> list[config.Setting]:
    return [config.read_override(word) for word in words[bool(words) and "=" not in words[0] :]]


command = with_parameters(_iterate, parameters(config.IterateConfig))
