"""``afzal check FILE``: what was understood, counts, findings. Imports no model library unless ``--model`` is given."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal.errors import AfzalError
from afzal.terminal import one_line

if TYPE_CHECKING:
    from afzal.config import ScoreConfig
    from afzal.data import Dataset, MediaRules
    from afzal.quality import Audit, Finding, NotRun

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
MediaFolder = Annotated[
    str | None,
    typer.Option("--media-folder", help="Where paths of images and sounds start; default: the folder of FILE."),
]

_MARKS = {"ok": "[green]ok[/]", "minor": "[yellow]minor[/]", "major": "[bold red]major[/]"}


def command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="File, folder or hub id to look at.")],
    columns: Columns = None,
    format: FormatName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    skip_bad: SkipBad = False,
    max_unpacked: MaxUnpacked = 4,
    media_folder: MediaFolder = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare all texts with each other also in a large file (near-duplicates).")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="A test set: which of its prompts stand in FILE?", metavar="TEST")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="A reward model: which pairs does it contradict, or not tell apart?")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="In its place, a policy, with --reference.")] = None,
    reference: Annotated[str | None, typer.Option(help="The reference of --policy.")] = None,
    model: Annotated[str | None, typer.Option(help="Also show the tokens this model would be trained on.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many items to show with --model.")] = 3,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Length limit per sequence, with --model, --reward and --policy.")
    ] = 1024,
) -> None:
    """Say what a file holds and what is wrong with it (exit 0: well, 1: major findings or no tokens, 2: unreadable)."""
    from afzal import data, quality

    most, rules = int(max_unpacked * 2**30), data.MediaRules(folder=media_folder or "")
    reads = _Reads(parse_columns(columns), format, "drop" if skip_bad else "raise", most, rules)
    scorer = _scorer(source, reward, policy, reference, max_tokens)
    dataset: Dataset | None = None
    with _collector_paused():
        extra = [quality.Overlap(quality.HeldOutPrompts(data.stream(against)))] if against else []
        how = "always" if deep else "small"
        if model is None and scorer is None and not data.is_mixture(source):
            # one item after another, so that a file of any size is read in little memory
            reading = data.Reading(source, **reads.named())
            audit = quality.audit_stream(reading, extra, how)
            about = {"notes": reading.notes(), "unread": reading.unread()}
        else:
            dataset = data.read(source, **reads.named())
            audit = quality.audit(dataset, extra, how)
            about = {"notes": dataset.notes, "unread": dataset.unread}
    if scorer is not None and dataset is not None:
        audit = replace(audit, findings=audit.findings + _by_scores(dataset, scorer))
    audit = replace(audit, not_run=audit.not_run + _not_asked(audit, against, scorer))
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


@dataclass(frozen=True, slots=True)
class _Reads:
    """How FILE is read, in the words of :class:`afzal.data.Reading`."""

    columns: dict[str, str] | None
    format: str | None
    on_error: str
    max_unpacked: int
    media: MediaRules

    def named(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _scorer(
    source: str, reward: str | None, policy: str | None, reference: str | None, max_tokens: int
) -> ScoreConfig | None:
    """The settings of the scorer that was named, if any."""
    if not (reward or policy or reference):
        return None
    from afzal import config

    named = {"model": (reward, "--reward"), "policy": (policy, "--policy"), "reference": (reference, "--reference")}
    settings = [config.Setting(key, value, flag) for key, (value, flag) in named.items() if value is not None]
    settings += [config.Setting("data", source, "FILE"), config.Setting("max_tokens", max_tokens, "--max-tokens")]
    return config.build(config.ScoreConfig, settings)


def _by_scores(dataset: Dataset, scorer: ScoreConfig) -> list[Finding]:
    from afzal import quality
    from afzal.rewards.score import heads

    made = [scores.mean(1).tolist() for scores in heads(scorer, dataset.items)]
    if not any(score == score for scores in made for score in scores):
        raise AfzalError("no response could be scored", where=dataset.source, remedy="look at the tokens with --model")
    return quality.scored_findings(zip(dataset.items, made, strict=True))


def _not_asked(audit: Audit, against: str | None, scorer: ScoreConfig | None) -> list[NotRun]:
    """Findings that need what was not given."""
    from afzal.quality import NotRun

    lacking = []
    if against is None:
        lacking.append(NotRun(("overlap",), "needs a test set", "--against TEST"))
    if scorer is None and audit.pairs:
        how = "--reward MODEL, or --policy MODEL --reference MODEL"
        lacking.append(NotRun(("suspicious_pairs", "ambiguous_pairs"), "need scores", how))
    return lacking


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
        lines.append(f"{finding.severity:<5} {finding.code}: {one_line(finding.message)}")
        if finding.severity != "ok":
            lines += [f"      first: {one_line(', '.join(finding.ids[:5]))}"] if finding.ids else []
            lines += [f"      try: {finding.remedy}"] if finding.remedy else []
    return lines + [f"not run: {one}" for one in _left_out(audit)]


def _left_out(audit: Audit) -> list[str]:
    """What was not looked for, why, and the flag that asks for it."""
    return [f"{', '.join(one.codes)} ({one.why}): add {one.how}" for one in audit.not_run]


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
        said = escape(one_line(finding.message))
        if finding.severity != "ok":
            said += f"\n[dim]first: {escape(one_line(', '.join(finding.ids[:5])))}[/]" if finding.ids else ""
            said += f"\n[dim]try: {escape(finding.remedy)}[/]" if finding.remedy else ""
        table.add_row(_MARKS[finding.severity], finding.code, said)
    console.print(table)
    for one in _left_out(audit):
        console.print(f"[dim]not run: {escape(one)}[/]")
