"""``afzal judge``: which answer is better, how sure that is, and how good the judge is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal.cli.conclusion import print_conclusion
from afzal.errors import AfzalError
from afzal.terminal.conclusion import MODEL, step

if TYPE_CHECKING:
    from afzal.api.results import Result


def command(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Rows with two or more answers; with --against, models' answers or runs."
        ),
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="judge.yaml, a model folder, rule:longest, file.py:function, people:FILE, verdicts:FILE:NAME; "
            "repeat it for a jury. Without it, people vote blind on the page of afzal annotate."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for verdicts, rows with votes, the summary and the judge's card. Default: judged-... in the "
            "folder of the run or of the file."
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model's answers to the same prompts, or a run.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts for the runs FILE and --against to answer before judging.")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Answers per prompt, with --prompts. Default 1.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature, with --prompts; 0 is greedy. Default 1.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens, with --prompts. Default 256.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the answers, with --prompts. Default 0.")] = None,
    people: Annotated[
        str | None, typer.Option(help="People's votes on the same pairs, to compare the judge with.")
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(help="Exit with 1 unless this holds, such as orders.consistent>=.8,no_verdict_share<=.02."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File that stores replies. Default: replies.sqlite in OUT.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of whole prompts, for the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Judge pairs of answers: verdicts as votes, win rates, both orders, length, and agreement with people.

    Run the same command again to ask only the questions that have no reply yet.
    """
    conditions = parse_conditions(require) if require else []
    from afzal.api.judging import default_out
    from afzal.api.judging import judge as judged
    from afzal.cli.interruption import announce

    announce(f"verdicts on {', '.join(source)}", out or default_out(source[0], against))
    result = judged(
        source[0],
        also=source[1:],
        judge=judge or (),
        out=out,
        against=against,
        prompts=prompts,
        people=people,
        cache=cache,
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        resamples=resamples,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        body = {"table": result["table"], "models": result["models"]} if len(source) > 1 else result["judges"]
        typer.echo(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        typer.echo(str(result))
        _conclude(result, people=people is not None)
    unmet_lines = [line for each in result["judges"] for line in unmet(each, conditions)]
    if conditions and not result["judges"]:
        unmet_lines.append(f"nobody has judged yet, so {require} is not known")
    for line in unmet_lines:
        typer.echo(line, err=True)
    if unmet_lines:
        raise typer.Exit(1)


def _conclude(result: Result, *, people: bool) -> None:
    """Print the next steps; the verdict is already the last line of the result."""
    if not result["judges"] or result.page is None:
        return  # pairs are waiting for votes: the result says how to vote
    if all(each["no_verdict_share"] == 1 for each in result["judges"]):
        return
    rows, votes = result.page.parent / "rows.jsonl", result.page.parent / "votes"
    steps = []
    if not people and not all(str(each["judge"]).startswith("people:") for each in result["judges"]):
        steps.append(step("annotate", rows, "--out", votes, why="do people agree with the judge? vote blind"))
    if len(result.body.get("models", ())) > 1:
        steps.append(step("leaderboard", rows, why="models by strength"))
    has_winner = any(each["outcomes"]["first"] + each["outcomes"]["second"] for each in result["judges"])
    if result.body.get("table") is None and has_winner:
        steps.append(step("train", "dpo", "--model", MODEL, "--data", rows, why="learn from the verdicts"))
    print_conclusion("", steps)


Condition = tuple[str, str, float]
_CONDITION = re.compile(r"\s*([\w.]+)\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


def parse_conditions(text: str) -> list[Condition]:
    """Parse ``name>=number,name<=number`` into conditions.

    Raises:
        AfzalError: a part is not a condition.
    """
    conditions = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise AfzalError(
                f"{part!r} is not a condition",
                where="--require",
                remedy="write orders.consistent>=.8,no_verdict_share<=.02",
            )
        conditions.append((match[1], match[2], float(match[3])))
    return conditions


def unmet(summary: Mapping[str, Any], conditions: Sequence[Condition]) -> list[str]:
    """A line for each condition that does not hold, including those on figures that are not known.

    Raises:
        AfzalError: a condition names no figure of any judge.
    """
    from afzal.judge.summary import flat

    numbers, lines = flat(summary), []
    for name, comparison, bound in conditions:
        value = numbers.get(name)
        if value is None:
            lines.append(f"{summary['judge']}: {name} is not known; known: {', '.join(sorted(numbers))}")
        elif (value < bound) if comparison == ">=" else (value > bound):
            lines.append(f"{summary['judge']}: {name} is {value:.4g}, required {comparison} {bound:g}")
    return lines
