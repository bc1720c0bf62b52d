"""The curves of a run as they grow: each reading takes up where the last one ended.

A place in ``metrics.jsonl`` is ``OFFSET.MARK``: bytes that have been read, and a checksum of the last of them. A run
that is resumed cuts its log back; then the mark does not fit, and the curve is read anew.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from afzal.report.charts import as_train
from afzal.runs.files import unspell
from afzal.text import is_number

FILE = "metrics.jsonl"
_CHUNK = 1 << 20  # bytes that are read at a time
_TAIL = 64  # bytes before a place that its mark covers
_KINDS = {"train": "train", "rollout": "train", "eval": "eval"}
_BESIDE = {"step", "epoch", "seconds", "tokens", "examples", "n"}  # counts, not curves


def read(run: Path, names: Collection[str], since: str = "") -> dict[str, Any]:
    """What a log holds after a place.

    Args:
        names: the metrics whose points are wanted.
        since: ``next`` of the last reading; empty for the beginning.

    Returns:
        ``next``, the place after what was read; ``fresh``, whether earlier points no longer hold; ``more``, whether a
        further reading finds more at once; ``names`` of all metrics met; ``damaged`` lines passed over; and ``points``,
        by metric and kind (train, eval), lists of ``[step, value]`` where a value that is not finite is None.
    """
    try:
        with (run / FILE).open("rb") as log:
            start = _place(log, since)
            log.seek(start)
            chunk = log.read(_CHUNK)
            whole = chunk[: chunk.rfind(b"\n") + 1]
            if not whole and len(chunk) == _CHUNK:  # no line of a log is as long: what this is, is not read
                whole = chunk
            end = start + len(whole)
            place = f"{end}.{_mark(log, end)}"
    except FileNotFoundError:
        return {"next": "", "fresh": since != "", "more": False, "names": [], "damaged": 0, "points": {}}
    found: dict[str, Any] = {"next": place, "fresh": start == 0, "more": len(chunk) == _CHUNK}
    return found | _points(whole, names)


def _place(log: BinaryIO, since: str) -> int:
    """The offset of a place, or 0 where the log is no longer the one that was read."""
    told = re.fullmatch(r"(\d{1,15})\.([0-9a-f]{8})", since)
    return int(told[1]) if told and _mark(log, int(told[1])) == told[2] else 0


def _mark(log: BinaryIO, offset: int) -> str:
    start = max(0, offset - _TAIL)
    log.seek(start)
    tail = log.read(offset - start)
    return f"{zlib.crc32(tail):08x}" if len(tail) == offset - start else ""


def _points(lines: bytes, names: Collection[str]) -> dict[str, Any]:
    known: dict[str, None] = {}
    points: dict[str, dict[str, list[list[float | None]]]] = {}
    damaged = 0
    for line in lines.splitlines():
        record = _record(line)
        if record is None:
            damaged += bool(line.strip())
            continue
        kind = _KINDS.get(str(record.get("kind")))
        if kind is None or not is_number(record.get("step")):
            continue
        for name, value in record.items():
            if name in _BESIDE or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            known[name] = None
            if name in names:
                at = points.setdefault(name, {}).setdefault(kind, [])
                at.append([record["step"], value if is_number(value) else None])
    return {"names": list(known), "damaged": damaged, "points": points}


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record = unspell(record)
    return as_train(record) if record.get("kind") == "rollout" else record
