"""Choose the pairs of answers that people should be asked about next, and serve the page that asks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.api.inputs import Rows, settings_of
from afzal.api.results import Result
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal import config
    from afzal.quality.ask import ScoredItems
    from afzal.records import Item
    from afzal.web.folder import AnnotationFolder, AnnotationJob

NOBODY = "nobody"  # as votes: ignore the votes in the pool


def ask(
    data: Rows,
    *,
    out: str | PathLike[str] = "to_label.jsonl",
    force: bool = False,
    **settings: Any,
) -> Result:
    """Choose the pairs that people should be asked about next (docs/asking.md).

    Args:
        data: the pool: rows with two or more responses, with or without votes.
        out: file for the questions, as rows for :func:`annotate`.
        force: write it even if it exists.
        settings: as on the command line: ``n`` (questions), ``by``, ``reward``, ``random`` (a share), ...

    Returns:
        The choice and its reasons, with warnings; ``rows`` are the questions.

    Raises:
        AfzalError: the pool cannot be read, or ``out`` exists.

    Example:
        >>> result = afzal.api.ask("prefs.jsonl", n=4, by="random", votes="nobody", out="to_label.jsonl")
        >>> len(result.rows)
        4
    """
    from afzal import config

    return choose_questions(settings_of(config.AskConfig, {"data": data, "out": out, **settings}), force)


def choose_questions(settings: config.AskConfig, force: bool = False) -> Result:
    """Choose and write the questions of these settings.

    Raises:
        AfzalError: as for :func:`ask`.
    """
    from afzal import data, runs

    out = Path(settings.out)
    runs.refuse_existing(out, force)
    from afzal.quality import ask

    dataset = data.read(settings.data, columns=settings.columns or None, format=settings.data_format)
    pool_rows = data.without_verdicts(dataset.items)
    pool, known_votes, notes = _with_scores(settings, ask.join_answers(pool_rows.items)), None, []
    if settings.votes == NOBODY:
        known_votes = ask.ScoredItems(())
    elif settings.votes is not None:
        vote_rows = data.without_verdicts(data.read(settings.votes).items)
        if vote_rows.verdicts and not any(item.votes for item in vote_rows.items):
            raise AfzalError(
                f"{Path(settings.votes).name} holds no votes of people",
                where="--votes",
                why=f"it holds {vote_rows.in_words}",
                remedy=f"name the file or folder of people's votes, or --votes {NOBODY} if there are none",
            )
        known_votes, notes = (
            _with_scores(settings, ask.join_answers(vote_rows.items)),
            vote_rows.notes(Path(settings.votes).name),
        )
    else:
        notes = pool_rows.notes("the pool")
    options = ask.AskOptions(
        settings.data,
        settings.by,
        settings.n,
        settings.random,
        settings.ridge,
        settings.seed,
        settings.seeds if settings.curve else 0,
        settings.labels,
        settings.axis,
    )
    chosen = ask.ask(pool, known_votes, options)
    if chosen.rows:
        data.write(chosen.rows, out, "afzal")
    body = chosen.plain | {"out": str(out) if chosen.rows else None}
    return Result(body, [*notes, *chosen.lines], rows=chosen.rows)


def _with_scores(settings: config.AskConfig, items: Sequence[Item]) -> ScoredItems:
    """The rows with the scores or features that the rule needs; torch is loaded only for models."""
    from afzal.quality import ask

    if settings.scorers or settings.features not in (None, "words", "rows"):
        from afzal.recipes.pool_scores import score_pool

        return score_pool(settings, items)
    return ask.with_row_features(items) if settings.features == "rows" else ask.ScoredItems(items)


def annotate(
    data: Rows, *, out: str | PathLike[str] | None = None, until_done: bool = False, **settings: Any
) -> Result:
    """Serve a page on which people compare, rank or rate responses, until Ctrl-C (docs/annotate.md).

    Args:
        data: the rows to annotate.
        out: folder for the votes; every vote is on disk before the next question appears.
        until_done: return once every question has its votes.
        settings: as on the command line: ``mode``, ``axis``, ``overlap``, ``annotators``, ``port``, ...

    Returns:
        ``votes``, the number of those on rows of known truth (``gold``), ``skips``, the folder ``out``, the ``mode``,
        and whether questions are still ``open``.

    Raises:
        AfzalError: the rows cannot be read, or the address cannot be bound.

    Example:
        >>> afzal.api.annotate("prefs.jsonl", out="votes", until_done=True)  # doctest: +SKIP
    """
    from afzal import config

    arguments = {"data": data, "out": out, "until_done": until_done or None, **settings}
    return serve_annotation(settings_of(config.AnnotateConfig, arguments), _print_addresses)


def serve_annotation(
    settings: config.AnnotateConfig, ready: Callable[[AnnotationFolder, list[tuple[str, str]]], None]
) -> Result:
    """Serve the page of these settings until it ends, then write the export.

    Args:
        ready: called with the folder and with names and addresses once the page can be opened.

    Raises:
        AfzalError: as for :func:`annotate`.
    """
    from afzal import data
    from afzal.api.serving import open_page, server_options
    from afzal.text import plural
    from afzal.web.serve import serve

    data.refuse_missing(settings.data)
    if settings.export is not None and not Path(settings.export).absolute().parent.is_dir():
        raise AfzalError(f"{Path(settings.export).parent} is not a folder", where="--export", remedy="create it first")
    if settings.export is not None and _same_file(settings.export, settings.data, settings.gold):
        raise AfzalError(
            f"{settings.export} is a file that the page reads", where="--export", remedy="choose another file"
        )
    job = job_of(settings)

    def on_open(folder: AnnotationFolder, addresses: list[tuple[str, str]]) -> None:
        ready(folder, addresses)
        open_page(addresses[0][1], settings)

    folder = serve(job, server_options(settings), on_open, "done" if settings.until_done else "stopped")
    counts = folder.session.counts()
    lines = []
    if settings.export is not None:
        from afzal.web.export import export

        rows = export(job.out, settings.export)
        lines.append(
            f"{settings.export}: {plural(rows, 'row') + ' with votes' if rows else 'not written, there are no votes'}"
        )
    known = f" ({counts['gold']} on rows of known truth, which train nothing)" if counts["gold"] else ""
    lines.append(f"{job.out}: {plural(counts['votes'], 'vote')}{known}, {plural(counts['skips'], 'skip')}")
    is_open = not (counts["votes"] and folder.session.queue.is_done())
    return Result({**counts, "out": str(job.out), "mode": folder.task.mode, "open": is_open}, lines)


def _print_addresses(folder: AnnotationFolder, addresses: list[tuple[str, str]]) -> None:
    for name, address in addresses:
        print(f"{name or '-'}\t{address}", flush=True)


def _same_file(path: str, *others: str | None) -> bool:
    return Path(path).exists() and any(o and Path(o).exists() and Path(path).samefile(o) for o in others)


def job_of(settings: config.AnnotateConfig) -> AnnotationJob:
    """The settings as plain values for the page."""
    from afzal.web.folder import AnnotationJob
    from afzal.web.queue import Rules

    guideline = _text(settings.guideline) if settings.guideline else ""
    rules = Rules(settings.seed, settings.overlap, settings.repeat, settings.practice, settings.order)
    return AnnotationJob(
        source=settings.data,
        out=Path(settings.out or f"{Path(settings.data).name.partition('.')[0]}.votes"),
        mode=settings.mode,
        rules=rules,
        axes=settings.axis,
        gold=settings.gold,
        guideline=guideline,
        title=settings.title or "",
        scale=settings.scale,
        text="markdown" if settings.markdown else "plain",
        annotators=settings.people,
        columns=settings.columns or None,
        data_format=settings.data_format,
        on_error="drop" if settings.skip_bad else "raise",
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AfzalError(f"cannot read {path}", why=str(error), where="--guideline") from None
