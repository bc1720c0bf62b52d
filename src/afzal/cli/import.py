# ruff: noqa: N999 - the verb is a word of Python
"""``afzal import CONFIG``: translate a configuration of TRL, axolotl or LLaMA-Factory into Afzal settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afzal.cli.conclusion import print_conclusion
from afzal.terminal.conclusion import step

if TYPE_CHECKING:
    from afzal.peers import Imported


def command(
    config: Annotated[Path, typer.Argument(help="A YAML or JSON file of the other trainer.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the settings to this file; with several data sets, also a file of sources."),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help="trl, axolotl or llamafactory; default: detected from the keys.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="TRL's command, such as dpo, if the file does not say.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes (GPUs) of the other trainer.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the settings, and how every key was translated.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Print the settings equivalent to a configuration of TRL, axolotl or LLaMA-Factory.

    Lists every key without a counterpart, or with another meaning or default, and the reason. Exit 1 if a key is
    unknown, or if something that the training depends on was lost.
    """
    from afzal import peers

    sources = out.with_suffix(".data.yaml") if out is not None else config.with_suffix(".data.yaml")
    imported = peers.import_config(config, peer=peer, method=method, processes=processes, mixture=str(sources))
    if out is not None:
        _write(imported, out, sources, force)
    if as_json:
        print(json.dumps(imported.as_plain(), indent=2, ensure_ascii=False, default=str))
    elif out is not None:
        typer.echo("\n".join(peers.summary(imported)))
        print_conclusion(f"written: {out}", [step("check", imported.settings["data"]), step("train", out)])
    else:
        typer.echo(peers.as_yaml(imported), nl=False)
        if text := peers.mixture_yaml(imported):
            typer.echo(
                f"\n# {sources} (--out writes both files):\n" + "".join(f"# {line}\n" for line in text.splitlines()),
                nl=False,
            )
    if not imported.complete:
        raise typer.Exit(1)


def _write(imported: Imported, out: Path, sources: Path, force: bool) -> None:
    from afzal import peers, runs

    files = {out: peers.as_yaml(imported)}
    if text := peers.mixture_yaml(imported):
        files[sources] = text
    for file in files:
        runs.refuse_existing(file, force)
    for file, content in files.items():
        runs.atomic_write(file, content)
