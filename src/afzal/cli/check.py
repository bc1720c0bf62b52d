"""``afzal check FILE``: what was understood, counts, findings. Imports no model library unless ``--model`` is given."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal.errors import AfzalError
from afzal.terminal import one_line

if TYPE_CHECKING:
    from afzal.data import Dataset
    from afzal.quality import Audit

Columns = Annotated[
    str | None,
    typer.Option(help="Which field is which, such as prompt=q,chosen=good,rejected=bad.", metavar="NAME=FIELD,..."),
]
FormatName = Annotated[str | None, typer.Option("--format", help="Read as this format instead of detecting one.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Drop and count damaged rows instead of stopping.")]

MaxUnpacked = Annotated[
    float,
    typer.Option("--max-unpacked", min=0, help="GiB that a gzip file may unpack to; 0 lifts the limit.", metavar="GIB"),
]

_MARKS = {"ok": "[green]ok[/]", "minor": "[yellow]minor[/]", "major": "[bold red]major[/]"}


def command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="File, folder or hub id to look at.")],
    columns: Columns = None,
    format: FormatName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    skip_bad: SkipBad = False,
    max_unpacked: MaxUnpacked = 4,
    model: Annotated[str | None, typer.Option(help="Also show the tokens this model would be trained on.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many items to show with --model.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length limit per sequence, with --model.")] = 1024,
) -> None:
    """Say what a file holds and what is wrong with it (exit 0: well, 1: major findings or no tokens, 2: unreadable)."""
    from afzal import data, quality

    given, most = parse_columns(columns), int(max_unpacked * 2**30)
    on_error = "drop" if skip_bad else "raise"
    dataset: Dataset | None = None
    with _collector_paused():
        if model is None:
            # one item after another, so that a file of any size is looked at in little memory
            reading = data.Reading(source, columns=given, format=format, on_error=on_error, max_unpacked=most)
            audit = quality.audit_stream(reading)
            about = {"notes": reading.notes(), "unread": reading.unread()}
        else:
            dataset = data.read(source, columns=given, format=format, on_error=on_error, max_unpacked=most)
            audit = quality.audit(dataset)
            about = {"notes": dataset.notes, "unread": dataset.unread}
    if as_json:
        typer.echo(json.dumps(asdict(audit) | about, ensure_ascii=False, indent=2))
    elif sys.stdout.isatty():
        _print_table(audit, **about)
    else:
        typer.echo("\n".join(_lines(audit, **about)))
    nothing_left = False
    if model is not None and dataset is not None and not as_json:
        from afzal.terminal.console import VisibleConsole
        from afzal.tokens.show import show as show_tokens

        shown = show_tokens(dataset.items, model, show, max_tokens)
        VisibleConsole(highlight=False, emoji=False, soft_wrap=True).print(shown.markup)
        nothing_left = shown.n_trees == 0
    if audit.worst == "major" or nothing_left:
        raise typer.Exit(1)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for cycles while a data set is read: millions of small objects are made, and all of them stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_columns(text: str | None) -> dict[str, str] | None:
    """``"chosen=good,prompt=q"`` as a mapping."""
    if text is None:
        return None
    pairs = [entry.split("=", 1) for entry in text.split(",") if entry.strip()]
    if not pairs or any(len(pair) != 2 or not pair[0].strip() or not pair[1].strip() for pair in pairs):
        raise AfzalError(
            f"--columns {text!r} is not NAME=FIELD,...", remedy="--columns prompt=q,chosen=good,rejected=bad"
        )
    return {name.strip(): field.strip() for name, field in pairs}


def counts(audit: Audit) -> dict[str, str]:
    """The figures of an audit by name, those that are zero or meaningless for its kind left out."""
    sizes = ", ".join(f"{n} x {k}" for k, n in audit.responses_per_item.items())
    lengths = ", ".join(f"{name} {v['median']} / {v['p95']} / {v['max']}" for name, v in audit.characters.items())
    figures: dict[str, Any] = {
        "rows": f"{audit.rows} ({audit.kept} used)",
        "items": f"{audit.items} over {audit.prompts} prompts",
        "items x responses": sizes,
        "pairs": audit.pairs and f"{audit.pairs} ({audit.ties} ties, {audit.soft} with split or stated probability)",
        "both bad": audit.both_bad,
        "labels": (audit.good or audit.bad) and f"{audit.good} good, {audit.bad} bad",
        "annotators": audit.annotators,
        "characters (median / 95 % / max)": lengths,
    }
    return {name: str(figure) for name, figure in figures.items() if figure}


def _lines(audit: Audit, notes: list[str], unread: list[str]) -> list[str]:
    lines = [f"{one_line(audit.source)}: format {audit.format}", *(f"  {one_line(note)}" for note in notes)]
    lines += [f"  not read: {one_line(', '.join(unread))}"] if unread else []
    lines += [f"{name}: {figure}" for name, figure in counts(audit).items()]
    for finding in audit.findings:
        lines.append(f"{finding.severity:<5} {finding.code}: {finding.message}")
        if finding.severity != "ok":
            lines += [f"      first: {one_line(', '.join(finding.ids[:5]))}"] if finding.ids else []
            lines += [f"      try: {finding.remedy}"] if finding.remedy else []
    return lines


def _print_table(audit: Audit, notes: list[str], unread: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from afzal.terminal.console import VisibleConsole

    console = VisibleConsole(highlight=False, emoji=False)
    console.print(f"[bold]{escape(one_line(audit.source))}[/]  format [bold cyan]{audit.format}[/]")
    facts = Table.grid(padding=(0, 2))
    for what, _, field in (note.partition(": ") for note in notes):
        facts.add_row(f"[dim]{escape(what)}[/]", escape(field))
    if unread:
        facts.add_row("[dim]not read[/]", escape(one_line(", ".join(unread))))
    for name, figure in counts(audit).items():
        facts.add_row(f"[dim]{name}[/]", escape(figure))
    console.print(facts)
    table = Table("", "finding", "what was seen", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in audit.findings:
        said = escape(finding.message)
        if finding.severity != "ok":
            said += f"\n[dim]first: {escape(one_line(', '.join(finding.ids[:5])))}[/]" if finding.ids else ""
            said += f"\n[dim]try: {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(_MARKS[finding.severity], finding.code, said)
    console.print(table)
