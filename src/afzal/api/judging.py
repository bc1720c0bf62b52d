"""Judge which answer is better: the function behind ``afzal judge``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.api.inputs import Rows, as_path, path_of, plain, wrong
from afzal.api.results import Result
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.records import Item

PAIRS, VOTES = "pairs.jsonl", "votes"
"""Names in the output folder: the pairs for people, and the folder of their votes."""


def judge(
    data: Rows,
    *,
    also: Sequence[Rows] = (),
    judge: Any = (),
    out: str | PathLike[str] | None = None,
    against: Rows | None = None,
    prompts: Rows | None = None,
    n: int | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    people: Rows | None = None,
    cache: str | PathLike[str] | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Judge which of two answers, or of two models, is better (docs/judges.md).

    Args:
        data: rows with two or more answers, one model's answers, or a run.
        also: answers of further models, or further runs, each compared with ``against`` like ``data``; one table shows
            all of them.
        judge: one or more judges: a YAML file, a model folder, ``rule:longest``, ``people:FILE``, or a function of a
            prompt and an answer. Without a judge, people decide: pairs are written for blind votes on the page of
            ``annotate``, and after the votes the same call counts them.
        out: folder for verdicts, summary and the judge's card; default: ``judged-...`` in the folder of the run.
        against: another model's answers to the same prompts, or a run.
        prompts: prompts for the runs ``data`` and ``against`` to answer before judging.
        n: answers per prompt (default 1), sampled at ``temperature`` (default 1; 0 is greedy) with at most
            ``max_new_tokens`` tokens (default 256) and ``seed``; each model has its own random numbers.
        people: people's votes on the same pairs, to compare the judges with.
        cache: file that stores a server's replies.
        resamples: number of resamples of whole prompts, for the intervals.
        say: called with lines of progress.

    Returns:
        ``body["judges"]`` has a summary per judge and model. With ``against``, ``body["table"]`` compares the models,
        and ``body["models"]`` has the summaries by model name. The last line is the answer in words: better, worse, or
        not told apart, with the win rate (ties count half) and its 95% interval over prompts.

    Raises:
        AfzalError: a judge cannot be opened, there is nothing to compare, or another process is writing into ``out``.

    Example:
        >>> ours = [{"prompt": f"Q{k}", "completion": "A long answer."} for k in range(9)]
        >>> theirs = [{"prompt": f"Q{k}", "completion": "Short."} for k in range(9)]
        >>> print(afzal.api.judge(ours, against=theirs, judge="rule:longest", out="judged").lines[-1])
        better: ours wins 100.0% [70.1, 100.0] against theirs on 9 prompts by rule:longest
    """
    sampling = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    sampling = {key: value for key, value in sampling.items() if value is not None}
    if prompts is None and sampling:
        raise AfzalError(
            f"{', '.join(sampling)}: no answers are sampled, so this has no effect",
            where="judge",
            why="without prompts, the answers come from the file",
            remedy="add prompts=FILE (--prompts) and the runs that answer them, or omit it",
        )
    from afzal import judging
    from afzal.data import without_verdicts
    from afzal.judge import summary_text
    from afzal.judge.people import votes_on
    from afzal.judge.win_rates import lines as board_lines
    from afzal.judging.win_rates import judge_against
    from afzal.runs import refuse_unwritable, sole_folder
    from afzal.text import visible

    sources = [as_path(data, "ours"), *(as_path(rows, f"ours {k}") for k, rows in enumerate(also, start=2))]
    opponent = None if against is None else as_path(against, "theirs")
    if not (isinstance(judge, str | Sequence) or callable(judge)):
        raise wrong(judge, "judge", "the name or the file of a judge, a function, or a list of them")
    judges = plain({"judge": [judge] if isinstance(judge, str) or callable(judge) else list(judge)})["judge"]
    if also:
        _refuse_several(sources, opponent, judges)
    folder = Path(path_of(out, "out")) if out is not None else default_out(sources[0], opponent)
    refuse_unwritable(folder)
    with sole_folder(folder):
        if prompts is not None:
            from afzal.generate.answers import Drawing, answers_of, refuse_no_model

            refuse_no_model([s for s in (*sources, opponent) if s is not None])
            drawing = Drawing(**sampling)
            questions, place = as_path(prompts, "prompts"), folder / "answers"
            runs = list(sources)
            sources = [answers_of(source, questions, drawing, place, say) for source in runs]
            opponent = (
                answers_of(opponent, questions, drawing, place, say, opponents=runs) if opponent is not None else None
            )
        if not judges:
            if (pending := _for_people(judging.read_items(sources[0], opponent), folder)) is not None:
                return pending
            judges = [f"people:{folder / VOTES}"]
        votes, store = None if people is None else as_path(people, "people"), None if cache is None else Path(cache)
        options: dict[str, Any] = {"cache": store, "resamples": resamples, "say": say}
        rows = None if prompts is None else as_path(prompts, "prompts")
        page = folder / "judge_card.html" if len(judges) == 1 else None
        if opponent is not None:
            board, models = judge_against(sources, opponent, judges, folder, votes=votes, prompts=rows, **options)
            summaries = [summary for of_one in models.values() for summary in of_one]
            body = {"judges": summaries, "table": board, "models": models}
            if also:
                lines = [*map(visible, board_lines(board)), f"written: {folder}"]
                return Result(body, lines, folder / "table.html")
        else:
            items = judging.read_items(sources[0], specs=judges, prompts=rows)
            human_votes = votes_on(items, votes, say) if votes is not None else None
            if human_votes is None:
                by_people = without_verdicts(items)
                for note in by_people.notes("the rows"):
                    say(note)
                human_votes = by_people.items if any(item.votes for item in by_people.items) else None
            summaries = judging.run_judges(items, judges, folder, voted=human_votes, **options)
            body = {"judges": summaries}
        lines = [visible(line) for summary in summaries for line in summary_text.lines(summary)]
        lines += [
            f"written: {folder}",
            *(visible(line) for summary in summaries if (line := summary_text.verdict(summary))),
        ]
        return Result(body, lines, page)


def _refuse_several(sources: Sequence[str], opponent: str | None, judges: Sequence[str]) -> None:
    """Refuse several models without a model to compare them with, or without a judge."""
    if opponent is None:
        raise AfzalError(
            f"{len(sources)} files, and nothing to compare them with",
            where=", ".join(sources),
            why="several models are each compared with the same other model",
            remedy="add against=ANSWERS_OR_RUN (--against), or give one file of rows",
        )
    if not judges:
        raise AfzalError(
            "several models need a judge",
            why="without one, people vote on the pairs of one model",
            remedy="add judge=... (--judge): rows.jsonl in the output folder then holds all pairs, to vote on",
        )


def default_out(source: str, against: str | None) -> Path:
    """The default folder for verdicts: inside the run that is judged, or named after the file."""
    name = f"judged-{_stem(against)}" if against is not None else "judged"
    return Path(source) / name if Path(source).is_dir() else Path(f"{_stem(source)}.{name}")


def _stem(source: str) -> str:
    return Path(source).resolve().name.partition(".")[0] or "rows"


def _for_people(items: Sequence[Item], folder: Path) -> Result | None:
    """The pairs for blind votes, and how to vote; None if there are votes already."""
    from afzal import data
    from afzal.data.annotation_folder import is_annotation_folder
    from afzal.runs import make_folder
    from afzal.terminal.conclusion import step

    if is_annotation_folder(folder / VOTES) and any(item.votes for item in data.read(folder / VOTES).items):
        return None
    make_folder(folder)
    # people do not see which model wrote an answer, nor pairs of identical answers
    pairs = [
        replace(item, votes=(), responses=tuple(replace(r, source=None) for r in item.responses)) for item in items
    ]
    pairs = [item for item in pairs if len({repr(r.turns) for r in item.responses}) > 1]
    if not pairs:
        raise AfzalError("the answers are the same on every prompt", why="nobody can prefer one of them")
    data.write(data.with_copied_media(pairs, folder), folder / PAIRS, "afzal")
    lines = [
        f"{len(pairs)} pairs wait for blind votes; {len(items) - len(pairs)} more have the same answer twice; "
        "after the votes, the same command counts them",
        step("annotate", folder / PAIRS, "--out", folder / VOTES, "--until-done", why="vote").line,
    ]
    return Result({"judges": [], "pairs": len(pairs), "out": str(folder)}, lines, rows=pairs)
