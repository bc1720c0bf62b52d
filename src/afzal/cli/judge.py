"""``afzal judge``: who says which answer is better, how sure that is, and how good the judge is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal.cli.last import last
from afzal.errors import AfzalError
from afzal.terminal.closing import MODEL, step

if TYPE_CHECKING:
    from afzal.api.results import Result


def command(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Rows with two answers or more; or answers of models, or runs, with --against."
        ),
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="judge.yaml, a model folder, rule:longest, file.py:function, people:FILE, verdicts:FILE:NAME; "
            "several times: a jury. Without any, people vote blind on the page of afzal annotate."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for verdicts, rows with votes, the summary and the judge's card. Default: judged-... in the "
            "folder of the run, or beside the file."
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model's answers to the same prompts, or a run.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts that the runs FILE and --against answer before they are judged.")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Answers per prompt, with --prompts. Default 1.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Temperature of the answers, with --prompts; 0 is greedy. Default 1.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens, with --prompts. Default 256.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the answers, with --prompts. Default 0.")] = None,
    people: Annotated[
        str | None, typer.Option(help="Votes of people on the same pairs, to compare the judge with.")
    ] = None,
    require: Annotated[
        str | None, typer.Option(help="Exit with 1 unless this holds, as orders.consistent>=.8,no_verdict_share<=.02.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="File that keeps replies. Default: replies.sqlite in OUT.")] = None,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of whole prompts, for the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Judge pairs of answers: verdicts as votes, win rates, both orders, length, and people beside the judge.

    Run again, the same command asks only what has no reply yet.
    """
    conditions = parse_conditions(require) if require else []
    from afzal.api.judging import judge as judged

    found = judged(
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
        said = {"table": found["table"], "models": found["models"]} if len(source) > 1 else found["judges"]
        typer.echo(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        typer.echo(str(found))
        _conclude(found, people=people is not None)
    broken = [line for each in found["judges"] for line in unmet(each, conditions)]
    if conditions and not found["judges"]:
        broken.append(f"nobody has judged yet, so {require} is not known")
    for line in broken:
        typer.echo(line, err=True)
    if broken:
        raise typer.Exit(1)


def _conclude(found: Result, *, people: bool) -> None:
    """What to do with verdicts; the verdict itself is the last line of what was found."""
    if not found["judges"] or found.page is None:
        return  # pairs that wait for votes: that says itself how to vote
    if all(each["no_verdict_share"] == 1 for each in found["judges"]):
        return
    rows, votes = found.page.parent / "rows.jsonl", found.page.parent / "votes"
    steps = []
    if not people and not all(str(each["judge"]).startswith("people:") for each in found["judges"]):
        steps.append(step("annotate", rows, "--out", votes, why="do people agree with the judge? vote blind"))
    if len(found.body.get("models", ())) > 1:
        steps.append(step("leaderboard", rows, why="models by strength"))
    ordered = any(each["outcomes"]["first"] + each["outcomes"]["second"] for each in found["judges"])
    if found.body.get("table") is None and ordered:
        steps.append(step("train", "dpo", "--model", MODEL, "--data", rows, why="learn from the verdicts"))
    last("", steps)


Condition = tuple[str, str, float]
_CONDITION = re.compile(r"\s*([\w.]+)\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


def parse_conditions(text: str) -> list[Condition]:
    """``name>=number,name<=number`` as conditions.

    Raises:
        AfzalError: a part is not a condition.
    """
    found = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise AfzalError(
                f"{part!r} is not a condition",
                where="--require",
                remedy="write orders.consistent>=.8,no_verdict_share<=.02",
            )
        found.append((match[1], match[2], float(match[3])))
    return found


def unmet(found: Mapping[str, Any], conditions: Sequence[Condition]) -> list[str]:
    """The conditions that do not hold; one on a figure that is not known does not.

    Raises:
        AfzalError: a condition names no figure of any judge.
    """
    from afzal.judge.summary import flat

    numbers, said = flat(found), []
    for name, way, bound in conditions:
        value = numbers.get(name)
        if value is None:
            said.append(f"{found['judge']}: {name} is not known; known: {', '.join(sorted(numbers))}")
        elif (value < bound) if way == ">=" else (value > bound):
            said.append(f"{found['judge']}: {name} is {value:.4g}, required {way} {bound:g}")
    return said
