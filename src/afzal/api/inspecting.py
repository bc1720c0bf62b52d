"""Inspect objectives, runs, reports and versions; convert data and configurations."""

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
    """An existing run, like the one that :func:`afzal.fit` returns.

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
    """The runs in a folder, up to six levels down, in order of their paths.

    Args:
        root: the folder.

    Raises:
        AfzalError: there is no such folder.

    Example:
        >>> [run.name for run in afzal.api.runs("runs")][:1]
        ['dpo']
    """
    from afzal import runs as folders

    return [Run(run.path) for run in folders.find(path_of(root, "root"))]


def report(run: Model, /) -> Result:
    """Rebuild a run's report, and check whether its curves are healthy.

    Args:
        run: a run, or its folder.

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
    verdict, lines = conclusion(page)
    return Result(body, [str(page), *lines], page, ok=verdict["severity"] == "good")


def conclusion(page: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The verdict of a run's page, and the closing lines of a command that wrote it."""
    from afzal.terminal.conclusion import conclusion_lines, step

    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    verdict = body["verdict"]
    steps = [step(*entry["words"], why=entry["why"]) for entry in body["steps"]]
    return verdict, conclusion_lines(f"{verdict['word']}: {verdict['sentence']}", steps)


def objectives(name: str | None = None) -> list[dict[str, Any]]:
    """The objectives for ``afzal.fit("prefer", objective=...)``: formula, requirements, defaults, paper.

    Args:
        name: return only this one; or ``file.py:function``.

    Returns:
        One dict per objective, with ``name``, ``formula``, ``unit`` (what it is a mean over), ``needs``, ``defaults``
        (its parameters), ``at_reference`` (its value if the policy equals the reference; None if that depends on the
        data), ``paper``, ...

    Raises:
        AfzalError: the name is unknown (the message names the closest).

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
    """The versions and hardware that a run would use.

    Returns:
        ``versions`` of packages; ``hardware``, with memory in bytes; and ``extras``, each with the packages that it
        lacks.

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
    """Write rows in another layout, and list what it cannot hold (docs/formats.md).

    Images and sounds outside the folder of ``out`` are copied into ``media/`` next to it.

    Args:
        data: the rows to write.
        out: the file: JSON lines, gzip if its name ends in .gz.
        to: the layout; ``afzal`` is lossless.
        columns: names of the fields, such as ``{"chosen": "good"}``.
        format: the name of the rows' format; default: detected.
        skip_bad: skip and count damaged rows instead of stopping.
        max_unpacked: largest unpacked size of a gzip file in GiB; 0 means no limit.
        media_folder: base folder for image and sound paths; default: the folder of the file.
        skip: leave out rows that the layout cannot hold, and count them.
        force: overwrite ``out``.

    Returns:
        Counts; not ``ok`` if rows were left out.

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
    from afzal.data.media_copies import FOLDER
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
    planned = reading.plan(dataset.items, to)
    copied = len({m.sha256 for item in dataset.items for m in media_of(item) if _is_outside(m, target)})
    is_refused = bool(planned.skipped) and not skip  # by ``write``, which says why; nothing is copied then
    items = dataset.items if is_refused else reading.with_copied_media(dataset.items, target.parent)
    rows = reading.write(items, target, to, skip_unholdable=skip)
    left_out = Counter(dataset.drop_counts) + Counter(drop.reason for drop in planned.skipped)
    lines = [f"{target}: {rows} rows as {to}, from {dataset.kept} of {dataset.rows} rows read as {dataset.format}"]
    lines += [f"not in this layout: {name} ({n} items)" for name, n in planned.left_out.most_common()]
    lines += [f"left out: {reason} {n}" for reason, n in left_out.most_common()]
    if copied:
        lines.append(f"copied into {target.parent / FOLDER}: {copied} images or sounds from other folders")
    body = {"rows": rows, "read": dataset.rows, "left_out": dict(left_out), "no_place": dict(planned.left_out)}
    return Result(body, lines, ok=not (dataset.drops or planned.skipped))


def import_config(
    path: str | PathLike[str], /, *, peer: str | None = None, method: str | None = None, processes: int = 1
) -> Result:
    """The settings equivalent to a configuration of TRL, axolotl or LLaMA-Factory (``afzal import``).

    Args:
        path: a YAML or JSON file of the other trainer.
        peer: ``trl``, ``axolotl`` or ``llamafactory``; default: detected from the keys.
        method: TRL's command, such as ``dpo``, if its file does not say.
        processes: number of processes (GPUs) of the other trainer.

    Returns:
        ``settings``, and how every key was translated; ``print`` shows the YAML file. Not ``ok`` if something that the
        training depends on was lost.

    Raises:
        AfzalError: the file cannot be read, or belongs to no known trainer.

    Example:
        >>> afzal.api.import_config("theirs.yaml", peer="trl", method="dpo")["settings"]["beta"]
        0.2
    """
    from afzal import peers

    imported = peers.import_config(
        Path(path), peer=peer, method=method, processes=processes, mixture=str(Path(path).with_suffix(".data.yaml"))
    )
    return Result(imported.as_plain(), peers.as_yaml(imported).splitlines(), ok=imported.complete)


def board(folder: str | PathLike[str] = ".", /, **settings: Any) -> None:
    """Show the runs in a folder in the browser, read-only, until Ctrl-C (docs/board.md).

    Args:
        settings: as on the command line: ``host``, ``port``, ``headless``, ...

    Raises:
        AfzalError: there is no such folder, or the address cannot be bound.

    Example:
        >>> afzal.api.board("runs", port=8080)  # doctest: +SKIP
    """
    from afzal import config

    show_board(settings_of(config.BoardConfig, {"folder": folder, **settings}))


def show_board(settings: BoardConfig) -> None:
    """Show the board of these settings until Ctrl-C.

    Raises:
        AfzalError: as for :func:`board`.
    """
    from afzal.api.serving import server_options, show
    from afzal.web.board.serve import serve

    root = Path(settings.folder)
    if not root.is_dir():
        raise AfzalError(
            f"there is no folder {root}", remedy="name the folder that holds your runs: afzal board FOLDER"
        )
    serve(root.resolve(), server_options(settings), lambda address: show(address, settings))


def _is_outside(media: Media, target: Path) -> bool:
    return bool(media.path) and not Path(media.path).is_relative_to(target.expanduser().resolve().parent)


def facts_of(objective: Objective) -> dict[str, Any]:
    """All facts about an objective, as plain values."""
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
    """The requirements of an objective, in a few words."""
    data = {
        "pair": "pairs",
        "response": "labelled responses",
        "group": "rankings or ratings",
        "token": "good responses",
    }
    needs = [data[objective.unit]]
    if objective.needs_live_reference:
        needs.append("a reference that can be run")
    elif objective.needs_reference:
        needs.append("reference")
    if objective.statistics:
        needs.append("logits")
    if objective.statistic is not None:
        needs.append("two prompts per update")
    return needs


def _limit(objective: Objective, key: str) -> str:
    limit = objective.limit(key)
    return f"one of {', '.join(limit)}" if isinstance(limit, tuple) else str(limit)
