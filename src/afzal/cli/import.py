# ruff: noqa: N999 - the verb is a word of Python
"""``afzal import CONFIG``: a configuration of TRL, axolotl or LLaMA-Factory as settings of Afzal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afzal.cli.last import last
from afzal.terminal.closing import step

if TYPE_CHECKING:
    from afzal.peers import Imported


def command(
    config: Annotated[Path, typer.Argument(help="A YAML or JSON file of the other trainer.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Write the settings to this file; with several data sets, also a file of sources."),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help="trl, axolotl or llamafactory; default: recognised by the keys.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="TRL's command, such as dpo, where its file does not tell.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes (GPUs) that the other trainer ran in.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: settings, and what became of every key.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Print the settings that do what a configuration of TRL, axolotl or LLaMA-Factory does.

    Every key without a counterpart, or with another meaning or default, is named with its reason. Exit 1 when something
    that the training depends on was lost, or a key is unknown.
    """
    from afzal import peers

    beside = out.with_suffix(".data.yaml") if out is not None else config.with_suffix(".data.yaml")
    imported = peers.import_config(config, peer=peer, method=method, processes=processes, mixture=str(beside))
    if out is not None:
        _write(imported, out, beside, force)
    if as_json:
        print(json.dumps(imported.as_plain(), indent=2, ensure_ascii=False, default=str))
    elif out is not None:
        typer.echo("\n".join(peers.summary(imported)))
        last(f"written: {out}", [step("check", imported.settings["data"]), step("train", out)])
    else:
        typer.echo(peers.as_yaml(imported), nl=False)
        if text := peers.mixture_yaml(imported):
            typer.echo(
                f"\n# {beside} (--out writes both files):\n" + "".join(f"# {line}\n" for line in text.splitlines()),
                nl=False,
            )
    if not imported.complete:
        raise typer.Exit(1)


def _write(imported: Imported, out: Path, beside: Path, force: bool) -> None:
    from afzal import peers, runs

    files = {out: peers.as_yaml(imported)}
    if text := peers.mixture_yaml(imported):
        files[beside] = text
    for file in files:
        runs.refuse_existing(file, force)
    for file, content in files.items():
        runs.atomic_write(file, content)
