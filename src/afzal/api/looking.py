"""Looking at what is there: objectives, runs, reports, versions; and data in another layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from afzal.api.inputs import Model, Rows, as_path, path_of, settings_of
from afzal.api.results import Result, Run
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.config import BoardConfig
    from afzal.objectives import Objective
    from afzal.records import Media

Layout = Literal["trl", "conversational", "openai", "afzal", "alpaca_eval", "fastchat"]


def open_run(path: Model, /) -> Run:
    """An existing run, as :func:`afzal.fit` returned it.

    Args:
        path: the run folder.

    Raises:
        AfzalError: the folder holds no run.

    Example:
        >>> afzal.api.open_run("runs/dpo").status()
        'finished'
    """
    from afzal import runs as folders

    return Run(folders.open_run(path_of(path, "path")).path)


def runs(root: str | PathLike[str] = ".") -> list[Run]:
    """The runs below a folder, six levels down, by path.

    Raises:
        AfzalError: there is no such folder.

    Example:
        >>> [run.name for run in afzal.api.runs("runs")][:1]
        ['dpo']
    """
    from afzal import runs as folders

    return [Run(run.path) for run in folders.find(path_of(root, "root"))]


def report(run: Model, /) -> Result:
    """Rebuild the page of a run, and say whether its curves are healthy.

    Returns:
        The facts of ``report.json``; not ``ok`` unless the curves are healthy.

    Raises:
        AfzalError: there is no run.

    Example:
        >>> afzal.api.report("runs/dpo")["facts"]["status"]
        'finished'
    """
    from afzal import report as reports

    page = reports.build(path_of(run, "run"))
    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    said, lines = conclusion(page)
    return Result(body, [str(page), *lines], page, ok=said["severity"] == "good")


def conclusion(page: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The verdict of a run's page, and the last lines of a command that wrote it."""
    from afzal.terminal.closing import closing, step

    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    said = body["verdict"]
    steps = [step(*each["words"], why=each["why"]) for each in body["steps"]]
    return said, closing(f"{said['word']}: {said['sentence']}", steps)


def objectives(name: str | None = None) -> list[dict[str, Any]]:
    """The objectives for ``afzal.fit("prefer", objective=...)``: formula, what each needs, defaults, paper.

    Args:
        name: of a single one, or ``file.py:function``.

    Raises:
        AfzalError: there is none of that name; names the closest.

    Example:
        >>> afzal.api.objectives("ipo")[0]["unit"]
        'pair'
    """
    from afzal import objectives as known

    try:
        chosen = [known.get(name)] if name else list(known.REGISTRY.values())
    except ValueError as error:
        raise AfzalError(str(error), remedy="afzal objectives") from error
    return [facts_of(objective) for objective in chosen]


def env() -> dict[str, Any]:
    """Which versions and hardware a run would use; ``memory_bytes`` are bytes.

    Example:
        >>> sorted(afzal.api.env())[:2]
        ['extras', 'hardware']
    """
    from afzal import runs as folders
    from afzal.runs.environment import extras

    return {**folders.environment(), "extras": extras()}


def convert(
    data: Rows,
    out: str | PathLike[str],
    *,
    to: Layout,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    skip_bad: bool = False,
    max_unpacked: float = 4,
    media_folder: str | PathLike[str] | None = None,
    skip: bool = False,
    force: bool = False,
) -> Result:
    """Write rows in another layout, and say what it cannot hold (docs/formats.md).

    Images and sounds that lie outside the folder of ``out`` are copied into ``media/`` beside it.

    Args:
        data: the rows to write.
        out: the file: JSON lines, gzip if its name ends in .gz.
        to: the layout; ``afzal`` loses nothing.
        columns: which field is which, such as ``{"chosen": "good"}``.
        format: the name of the rows' format; default: detected.
        skip_bad: drop and count damaged rows instead of stopping.
        max_unpacked: GiB that a gzip file may unpack to; 0 lifts the limit.
        media_folder: where paths of images and sounds start; default: the folder of the file.
        skip: leave out what the layout cannot hold, and count it.
        force: overwrite ``out``.

    Returns:
        Counts; not ``ok`` where rows were left out.

    Raises:
        AfzalError: ``out`` exists, or the layout cannot hold a row and ``skip`` is not given.

    Example:
        >>> rows = [{"prompt": "Hi", "good": "Hello!", "bad": "Go away."}]
        >>> columns = {"chosen": "good", "rejected": "bad"}
        >>> afzal.api.convert(rows, "converted.jsonl", to="trl", columns=columns, force=True)["rows"]
        1
    """
    from afzal import data as reading
    from afzal import runs as folders
    from afzal.data.beside import FOLDER
    from afzal.records import media_of

    target = Path(path_of(out, "out"))
    folders.refuse_existing(target, force)
    rules = reading.MediaRules(folder=fspath(media_folder) if media_folder else "")
    dataset = reading.read(
        as_path(data, "data"),
        columns=columns,
        format=format,
        on_error="drop" if skip_bad else "raise",
        max_unpacked=int(max_unpacked * 2**30),
        media=rules,
    )
    made = reading.plan(dataset.items, to)
    away = len({m.sha256 for item in dataset.items for m in media_of(item) if _lies_elsewhere(m, target)})
    is_refused = bool(made.skipped) and not skip  # by ``write``, which says why; nothing is copied then
    items = dataset.items if is_refused else reading.with_media_beside(dataset.items, target.parent)
    rows = reading.write(items, target, to, skip_unholdable=skip)
    left_out = Counter(dataset.drop_counts) + Counter(drop.reason for drop in made.skipped)
    lines = [f"{target}: {rows} rows as {to}, from {dataset.kept} of {dataset.rows} rows read as {dataset.format}"]
    lines += [f"not in this layout: {name} ({n} items)" for name, n in made.left_out.most_common()]
    lines += [f"left out: {reason} {n}" for reason, n in left_out.most_common()]
    if away:
        lines.append(f"copied into {target.parent / FOLDER}: {away} images or sounds of another folder")
    body = {"rows": rows, "read": dataset.rows, "left_out": dict(left_out), "no_place": dict(made.left_out)}
    return Result(body, lines, ok=not (dataset.drops or made.skipped))


def import_config(
    path: str | PathLike[str], /, *, peer: str | None = None, method: str | None = None, processes: int = 1
) -> Result:
    """The settings that do what a configuration of TRL, axolotl or LLaMA-Factory does (``afzal import``).

    Args:
        path: a YAML or JSON file of the other trainer.
        peer: ``trl``, ``axolotl`` or ``llamafactory``; default: recognised by the keys.
        method: TRL's command, such as ``dpo``, where its file does not tell.
        processes: processes (GPUs) that the other trainer ran in.

    Returns:
        ``settings``, and what became of every key; printed, the YAML file. Not ``ok`` where something was lost that the
        training depends on.

    Raises:
        AfzalError: the file cannot be read, or is of no known trainer.

    Example:
        >>> afzal.api.import_config("theirs.yaml", peer="trl", method="dpo")["settings"]["beta"]
        0.2
    """
    from afzal import peers

    found = peers.import_config(
        Path(path), peer=peer, method=method, processes=processes, mixture=str(Path(path).with_suffix(".data.yaml"))
    )
    return Result(found.as_plain(), peers.as_yaml(found).splitlines(), ok=found.complete)


def board(folder: str | PathLike[str] = ".", /, **settings: Any) -> None:
    """Show the runs below a folder in the browser, until Ctrl-C; it only reads (docs/board.md).

    Args:
        settings: as on the command line: ``host``, ``port``, ``headless``, ...

    Raises:
        AfzalError: there is no such folder, or the address cannot be bound.

    Example:
        >>> afzal.api.board("runs", port=8080)  # doctest: +SKIP
    """
    from afzal import config

    show_board(settings_of(config.BoardConfig, {"folder": folder, **settings}))


def show_board(made: BoardConfig) -> None:
    """Show the board of settings until Ctrl-C.

    Raises:
        AfzalError: as for :func:`board`.
    """
    from afzal.api.serving import place_of, show
    from afzal.web.board.serve import serve

    root = Path(made.folder)
    if not root.is_dir():
        raise AfzalError(
            f"there is no folder {root}", remedy="name the folder that holds your runs: afzal board FOLDER"
        )
    serve(root.resolve(), place_of(made), lambda address: show(address, made))


def _lies_elsewhere(media: Media, target: Path) -> bool:
    return bool(media.path) and not Path(media.path).is_relative_to(target.expanduser().resolve().parent)


def facts_of(objective: Objective) -> dict[str, Any]:
    """All that is known about an objective, as plain values."""
    from afzal.objectives import ALIASES

    return {
        "name": objective.name,
        "aliases": sorted(alias for alias, real in ALIASES.items() if real == objective.name),
        "formula": objective.formula,
        "unit": objective.unit,
        "needs": needs_of(objective),
        "uses": sorted(objective.uses),
        "defaults": objective.parameters,
        "limits": {key: _limit(objective, key) for key in objective.parameters},
        "learnable": sorted(objective.learnable),
        "at_reference": objective.at_reference(objective.parameters),
        "bounded": objective.bounded,
        "couples_batch": objective.couples_batch,
        "length_normalised": objective.length_normalised,
        "shift_invariant": objective.shift_invariant,
        "trains": objective.scores,
        "paper": objective.paper,
    }


def needs_of(objective: Objective) -> list[str]:
    """What an objective cannot do without, in a few words."""
    data = {
        "pair": "pairs",
        "response": "labelled responses",
        "group": "rankings or ratings",
        "token": "good responses",
    }
    found = [data[objective.unit]]
    if objective.needs_live_reference:
        found.append("a reference that can be run")
    elif objective.needs_reference:
        found.append("reference")
    if objective.statistics:
        found.append("logits")
    if objective.statistic is not None:
        found.append("two prompts per update")
    return found


def _limit(objective: Objective, key: str) -> str:
    limit = objective.limit(key)
    return f"one of {', '.join(limit)}" if isinstance(limit, tuple) else str(limit)
