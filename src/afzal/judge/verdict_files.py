"""Files of verdicts of any kind: those of ``afzal judge`` itself, of other tools, and rows with votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data
from afzal.data import files
from afzal.data.annotation_folder import is_annotation_folder
from afzal.data.turns import answer_text
from afzal.errors import AfzalError
from afzal.judge import formats
from afzal.judge.games import category_of
from afzal.judge.labelled import pair_name, read_labelled, truths_of
from afzal.judge.outputs import ROWS
from afzal.judge.recorded import OWN, parse_row
from afzal.judge.verdicts import Outcome, Verdict, Verdicts
from afzal.records import Item, prompt_key
from afzal.text import plural

FORMAT = "verdicts of afzal judge"


def is_afzal_file(source: str) -> bool:
    """Whether a file is ``verdicts.jsonl`` of ``afzal judge``, by its first row.

    Raises:
        AfzalError: the file cannot be read.
    """
    if Path(source).is_dir() or is_annotation_folder(source):
        return False
    first = next(iter(files.rows(source)), None)
    return first is not None and isinstance(first.value, dict) and first.value.keys() >= OWN


def read_afzal_file(source: str) -> Verdicts:
    """Every game of ``verdicts.jsonl``, including those without a verdict, on the rows in the same folder.

    Responses without a ``source`` have no model name; the truth of a pair is as in :func:`.read_labelled`.

    Raises:
        AfzalError: a row cannot be read, or the judged rows are missing from the folder.
    """
    rows_file = Path(source).with_name(ROWS)
    if not rows_file.is_file():
        raise AfzalError(
            f"{source} refers to rows that are not in its folder",
            why=f"{ROWS} of afzal judge holds the answers and the names of their models",
            remedy=f"keep {ROWS} in the same folder",
        )
    items, ambiguous = _by_id(data.read(str(rows_file)).items)
    verdicts: list[Verdict] = []
    gold: dict[str, Outcome] = {}
    rows = 0
    for raw in files.rows(source):
        rows += 1
        if not isinstance(raw.value, dict) or not raw.value.keys() >= OWN:
            raise AfzalError("a row is not a verdict of afzal judge", where=raw.where)
        item = items.get(str(raw.value["id"]))
        if item is None:
            raise AfzalError(f"{rows_file} has no row {raw.value['id']!r}", where=raw.where)
        if item.id in ambiguous:
            raise AfzalError(
                f"the id {item.id!r} names several rows of {rows_file}",
                where=raw.where,
                why="the verdict does not say which of them it is on",
                remedy=f"name {rows_file}, which has the verdicts as votes, or judge rows with ids of their own",
            )
        verdicts.append(_verdict(item, raw.value, raw.where))
        gold |= truths_of(item)
    judged_items = {v.item for v in verdicts}
    return Verdicts(verdicts, {name: truth for name, truth in gold.items() if name in judged_items}, FORMAT, rows)


def _by_id(items: Sequence[Item]) -> tuple[dict[str, Item], set[str]]:
    """The items by id, and the ids of several items that differ in prompt or answers."""
    by_id: dict[str, Item] = {}
    ambiguous = set()
    for item in items:
        known = by_id.setdefault(item.id, item)
        if (known.prompt, known.responses) != (item.prompt, item.responses):
            ambiguous.add(item.id)
    return by_id, ambiguous


def _verdict(item: Item, row: dict[str, Any], where: str) -> Verdict:
    game, ruling = parse_row(row, len(item.responses), where)
    ends = game.pair.first, game.pair.second
    first, second = (item.responses[k] for k in ends)
    lengths = len(answer_text(first.turns)), len(answer_text(second.turns))
    return Verdict(
        prompt_key(item),
        pair_name(item, *ends),
        first.source or "",
        second.source or "",
        ruling.outcome,
        str(row["judge"]),
        int(game.swapped),
        ruling.p_first,
        lengths,
        category_of(item) or "",
    )


def read_model_verdicts(sources: Sequence[str]) -> Verdicts:
    """Verdicts on models, from files of one format.

    Raises:
        AfzalError: as for :func:`afzal.judge.formats.read` and :func:`read_afzal_file`, or the answers name no models.
    """
    ours = _all_afzal_files(sources)
    merged = _merged([read_afzal_file(source) for source in sources]) if ours else formats.read(sources)
    verdicts = [v for v in merged.verdicts if v.first and v.second and v.first != v.second]
    if not verdicts:
        raise AfzalError(
            f"{', '.join(sources)} holds no verdicts on models",
            why=f"{len(merged.verdicts)} verdicts, but the answers of their rows name no models",
            remedy="afzal judge FILE --against FILE, which names them; or --of judges, if the rows have a label",
        )
    n_left_out = len(merged.verdicts) - len(verdicts)
    notes = [f"Left out: {plural(n_left_out, 'verdict')} on answers that do not name two models."] if n_left_out else []
    return replace(merged, verdicts=verdicts, gold={} if ours else merged.gold, notes=[*merged.notes, *notes])


def read_gold_verdicts(sources: Sequence[str]) -> Verdicts:
    """Verdicts on items of known truth.

    Raises:
        AfzalError: a file cannot be read, or no item has both a truth and a verdict.
    """
    if any(map(formats.has_known_format, sources)):
        return formats.read(sources)
    if not _all_afzal_files(sources):
        return read_labelled(sources)
    merged = _merged([read_afzal_file(source) for source in sources])
    verdicts = [v for v in merged.verdicts if v.item in merged.gold]
    if not verdicts:
        raise AfzalError(
            f"{', '.join(sources)} holds no verdicts on pairs of known truth",
            why=f"no row of {ROWS} in its folder has gold, or a label without an annotator",
            remedy="judge rows that have a label",
        )
    return replace(merged, verdicts=verdicts)


def _all_afzal_files(sources: Sequence[str]) -> bool:
    ours = [is_afzal_file(source) for source in sources]
    if any(ours) and not all(ours):
        raise AfzalError(
            f"the files are of different formats: {FORMAT} and another", remedy="pass them one at a time, or rows.jsonl"
        )
    return all(ours)


def _merged(parts: Sequence[Verdicts]) -> Verdicts:
    gold: dict[str, Outcome] = {}
    for part in parts:
        gold |= part.gold
    verdicts = [v for part in parts for v in part.verdicts]
    return Verdicts(verdicts, gold, FORMAT, sum(part.rows for part in parts))
