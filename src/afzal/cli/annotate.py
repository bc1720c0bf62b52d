"""``afzal annotate``: a page on which people vote by keyboard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal import config
from afzal.cli.conclusion import print_conclusion, ways_to_learn
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal import one_line
from afzal.terminal.conclusion import step
from afzal.text import plural

if TYPE_CHECKING:
    from afzal.web.folder import AnnotationFolder


def _annotate(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rows to annotate.")],
    **flags: Any,
) -> None:
    """Serve a page on which people compare, rank or rate the responses in a file, by keyboard.

    Every vote is on disk before the next question appears. The same command resumes; Ctrl-C ends it.
    """
    settings = config.build(
        config.AnnotateConfig, [config.Setting("data", source, "FILE"), *given(config.AnnotateConfig, flags)]
    )
    from afzal.api.asking import serve_annotation

    result = serve_annotation(settings, _print_addresses)
    for line in result.lines[:-1]:
        typer.echo(line, err=True)
    steps = [step("aggregate", result["out"], why="agreement")] if result["votes"] else []
    if result["votes"] > result["gold"] and result["mode"] != "rate":
        steps += ways_to_learn(result["out"])
    open_ones = "; questions remain, and the same command resumes" if result["open"] else ""
    print_conclusion(f"{result.lines[-1]}{open_ones}", steps, err=True)


def _print_addresses(folder: AnnotationFolder, addresses: list[tuple[str, str]]) -> None:
    """Print facts on stderr and addresses on stdout: one line each, ``NAME<tab>ADDRESS``, then an empty line."""
    task = folder.task
    gold = sum(bool(item.gold) for item in task.items)
    gold_text = f", {gold} of them of known truth" if gold else ""
    questions = f"{plural(len(task.questions), 'question')} ({task.mode})"
    typer.echo(f"{plural(len(task.items), 'row')}{gold_text}, {questions}: {folder.path}", err=True)
    for reason, count in folder.drops.items():
        typer.echo(f"left out: {reason} {count}", err=True)
    typer.echo("".join(f"{one_line(name) or '-'}\t{address}\n" for name, address in addresses))
    sys.stdout.flush()


_FLAGS = [p for p in parameters(config.AnnotateConfig, panel="Options") if p.name != "data"]
command = with_parameters(_annotate, _FLAGS)
