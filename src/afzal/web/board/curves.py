"""A run's curves as they grow: each read continues where the last one ended.

A place in ``metrics.jsonl`` is ``OFFSET.MARK``: the number of bytes read, and a checksum of the last of them. A resumed
run truncates its log; then the mark does not match, and the curve is read from the beginning.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from afzal.report.charts import as_train
from afzal.runs.files import parse_nonfinite
from afzal.text import is_number

FILE = "metrics.jsonl"
_CHUNK = 1 << 20  # bytes read at a time
_TAIL = 64  # bytes before a place that its mark covers
_KINDS = {"train": "train", "rollout": "train", "eval": "eval"}
_COUNTS = {"step", "epoch", "seconds", "tokens", "examples", "n"}  # not curves


def read(run: Path, names: Collection[str], since: str = "") -> dict[str, Any]:
    """Read a log from a given place.

    Args:
        names: the metrics whose points are wanted.
        since: ``next`` of the last read; empty for the beginning.

    Returns:
        ``next``, the place after the part read; ``fresh``, whether earlier points are obsolete; ``more``, whether there
        is more to read; ``names`` of all metrics in the part read; ``damaged``, the number of skipped lines; and
        ``points`` by metric and kind (train, eval): lists of ``[step, value]``, None for a value that is not finite.
    """
    try:
        with (run / FILE).open("rb") as log:
            start = _place(log, since)
            log.seek(start)
            chunk = log.read(_CHUNK)
            lines = chunk[: chunk.rfind(b"\n") + 1]
            if not lines and len(chunk) == _CHUNK:  # no log line is that long: skip the chunk
                lines = chunk
            end = start + len(lines)
            place = f"{end}.{_mark(log, end)}"
    except FileNotFoundError:
        return {"next": "", "fresh": since != "", "more": False, "names": [], "damaged": 0, "points": {}}
    progress: dict[str, Any] = {"next": place, "fresh": start == 0, "more": len(chunk) == _CHUNK}
    return progress | _points(lines, names)


def _place(log: BinaryIO, since: str) -> int:
    """The offset of a place, or 0 if the log is no longer the one that was read."""
    match = re.fullmatch(r"(\d{1,15})\.([0-9a-f]{8})", since)
    return int(match[1]) if match and _mark(log, int(match[1])) == match[2] else 0


def _mark(log: BinaryIO, offset: int) -> str:
    start = max(0, offset - _TAIL)
    log.seek(start)
    tail = log.read(offset - start)
    return f"{zlib.crc32(tail):08x}" if len(tail) == offset - start else ""


def _points(lines: bytes, names: Collection[str]) -> dict[str, Any]:
    metric_names: dict[str, None] = {}
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
            if name in _COUNTS or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            metric_names[name] = None
            if name in names:
                curve = points.setdefault(name, {}).setdefault(kind, [])
                curve.append([record["step"], value if is_number(value) else None])
    return {"names": list(metric_names), "damaged": damaged, "points": points}


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record = parse_nonfinite(record)
    return as_train(record) if record.get("kind") == "rollout" else record
