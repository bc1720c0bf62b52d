"""``afzal check FILE``: how the file was read, counts, findings. Imports model libraries only with ``--model``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from afzal.errors import AfzalError
from afzal.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from afzal.quality import Audit

Columns = Annotated[
    str | None,
    typer.Option(help="Names of the fields, such as prompt=q,chosen=good,rejected=bad.", metavar="NAME=FIELD,..."),
]
FormatName = Annotated[str | None, typer.Option("--format", help="Read as this format instead of detecting it.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip and count damaged rows instead of stopping.")]

MaxUnpacked = Annotated[
    float,
    typer.Option("--max-unpacked", min=0, help="Largest unpacked gzip file in GiB; 0 means no limit.", metavar="GIB"),
]
MediaFolder = Annotated[
    str | None,
    typer.Option("--media-folder", help="Base folder for image and sound paths; default: the folder of FILE."),
]

_MARKS = {"ok": "[green]ok[/]", "minor": "[yellow]minor[/]", "major": "[bold red]major[/]"}


def command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="File, folder or hub id to check.")],
    columns: Columns = None,
    format: FormatName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    skip_bad: SkipBad = False,
    max_unpacked: MaxUnpacked = 4,
    media_folder: MediaFolder = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare all texts with each other even in a large file (near-duplicates).")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="A test set: which of its prompts are in FILE?", metavar="TEST")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="A reward model: which pairs does it contradict or fail to distinguish?")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="A policy, with --reference, instead of a reward model.")] = None,
    reference: Annotated[str | None, typer.Option(help="The reference of --policy.")] = None,
    model: Annotated[str | None, typer.Option(help="Also show the tokens that this model would be trained on.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many items to show with --model.")] = 3,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Length limit per sequence, with --model, --reward and --policy.")
    ] = 1024,
) -> None:
    """Show what a file holds and what is wrong with it. Exit 0: fine, 1: major findings or no tokens, 2: unreadable."""
    from afzal.api.checking import check_request, run_check

    request = check_request(
        source,
        columns=parse_columns(columns),
        format=format,
        skip_bad=skip_bad,
        max_unpacked=max_unpacked,
        media_folder=media_folder,
        reward=reward,
        policy=policy,
        reference=reference,
        max_tokens=max_tokens,
    )
    outcome = run_check(request, deep=deep, against=against, keep=model is not None)
    if as_json:
        typer.echo(json.dumps(outcome.result.body, ensure_ascii=False, indent=2))
    elif sys.stdout.isatty():
        _print_table(outcome.audit, outcome.notes, outcome.unread)
    else:
        typer.echo(str(outcome.result))
    nothing_left = False
    if model is not None and outcome.dataset is not None and not as_json:
        from afzal.terminal.console import VisibleConsole
        from afzal.tokens.display import display_tokens

        shown = display_tokens(outcome.dataset.items, model, show, max_tokens)
        VisibleConsole(highlight=False, emoji=False, soft_wrap=True).print(shown.markup)
        nothing_left = shown.n_trees == 0
    if not as_json:
        flags = {"--columns": columns, "--data-format": format, "--skip-bad": "" if skip_bad else None}
        _conclude(outcome.audit, source, model, nothing_left, flags)
    if not outcome.result.ok or nothing_left:
        raise typer.Exit(1)


def _conclude(
    audit: Audit, source: str, model: str | None, nothing_left: bool, read_with: Mapping[str, str | None]
) -> None:
    """Print whether the file can be trained on, and the next steps.

    Args:
        read_with: the flags with which it was read.
    """
    from afzal.cli.conclusion import print_conclusion
    from afzal.terminal.conclusion import MODEL, step
    from afzal.text import plural

    major = [finding.code for finding in audit.findings if finding.severity == "major"]
    minor = [finding.code for finding in audit.findings if finding.severity == "minor"]
    if nothing_left:
        print_conclusion(f"nothing to train on: no row is left after tokenizing for {model}")
    elif major:
        print_conclusion(f"not fit to train on as it is: {plural(len(major), 'major finding')} ({', '.join(major)})")
    else:
        findings = f"{plural(len(minor), 'minor finding')} ({', '.join(minor)})" if minor else "no findings"
        method, usable = _method(audit)
        flags = [word for key, value in read_with.items() if value is not None for word in (key, value) if word]
        learning = step("train", method, "--model", model or MODEL, "--data", source, *flags)
        generating = step("generate", "--model", model or MODEL, "--prompts", source, "--out", "answers.jsonl")
        steps = [learning if method else generating]
        if audit.annotators > 1 and not flags:
            steps.insert(0, step("aggregate", source, why="do the annotators agree?"))
        if not audit.pairs and max(map(int, audit.responses_per_item), default=0) > 1 and not flags:
            steps.insert(0, step("annotate", source, why="vote on the answers"))
        print_conclusion(f"{usable}; {findings}", steps)


def _method(audit: Audit) -> tuple[str, str]:
    """The method that can learn from these rows, and what they offer in words; no method for rows without answers."""
    from afzal.text import plural

    if audit.pairs:
        return "dpo", f"fit to train on: {plural(audit.pairs, 'pair')}"
    if audit.good or audit.bad:
        return "kto", f"fit to train on: {plural(audit.good + audit.bad, 'label')}"
    if any(int(n) > 0 for n in audit.responses_per_item):
        return "sft", f"fit to train on as demonstrations: {plural(audit.items, 'item')} without an opinion"
    return "", f"{plural(audit.prompts, 'prompt')} without answers"


def parse_columns(text: str | None) -> dict[str, str] | None:
    """Parse ``"chosen=good,prompt=q"`` into a mapping."""
    if text is None:
        return None
    pairs = [entry.split("=", 1) for entry in text.split(",") if entry.strip()]
    if not pairs or any(len(pair) != 2 or not pair[0].strip() or not pair[1].strip() for pair in pairs):
        raise AfzalError(
            f"--columns {text!r} is not NAME=FIELD,...", remedy="--columns prompt=q,chosen=good,rejected=bad"
        )
    return {name.strip(): field.strip() for name, field in pairs}


def _print_table(audit: Audit, notes: list[str], unread: list[str]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from afzal.api.checking import counts, left_out
    from afzal.terminal.console import VisibleConsole

    console = VisibleConsole(highlight=False, emoji=False)
    console.print(f"[bold]{escape(one_line(audit.source))}[/]  format [bold cyan]{audit.format}[/]")
    facts = Table.grid(padding=(0, 2))
    for label, _, field in (note.partition(": ") for note in notes):
        facts.add_row(f"[dim]{escape(label)}[/]", escape(field))
    if unread:
        facts.add_row("[dim]not read[/]", escape(one_line(", ".join(unread))))
    for name, figure in counts(audit).items():
        facts.add_row(f"[dim]{name}[/]", escape(figure))
    console.print(facts)
    table = Table("", "finding", "what was seen", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in audit.findings:
        text = escape(one_line(finding.message))
        if finding.severity != "ok":
            text += f"\n[dim]first: {escape(one_line(', '.join(finding.ids[:5])))}[/]" if finding.ids else ""
            text += f"\n[dim]try: {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(_MARKS[finding.severity], finding.code, text)
    console.print(table)
    for check in left_out(audit):
        console.print(f"[dim]not run: {escape(check)}[/]")
