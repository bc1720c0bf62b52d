"""List a folder's runs, including broken ones, and the pages that Afzal wrote."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.runs import Run, summary, walk
from afzal.text import is_number

_HEAD = 8192  # bytes of a page that are searched for its title
_FACTS, _REPORT = "run.json", "report.html"
_KINDS = {
    "afzal.compare": "comparison",
    "afzal.sweep": "sweep",
    "afzal.report": "report",
    "afzal.board": "leaderboard",
}
_STEMS = {"judge_card": "judge card", "annotators": "annotators", "revise": "principles"}


def listing(root: Path) -> dict[str, Any]:
    """Runs and pages in a folder, as plain values; paths are relative to it, with ``/``.

    A run that cannot be read has the status ``broken`` and a reason, ``why``.
    """
    folders, files = _scan(root)
    runs, with_run = [_run(root, path) for path in folders], set(folders)
    pages = [page for path in files if (page := _page(root, path, with_run)) is not None]
    return {"runs": runs, "pages": pages}


def _scan(root: Path) -> tuple[list[str], list[str]]:
    """Folders with a ``run.json``, and HTML files, relative to the root, without hidden files and links."""
    runs, pages = [], []
    for folder, files in walk(root):
        relative = folder.relative_to(root).as_posix()  # "." for the root itself
        names = sorted(f.name for f in files if not f.name.startswith(".") and not f.is_symlink())
        runs += [relative] if _FACTS in names else []
        pages += [_joined(relative, name) for name in names if name.endswith(".html")]
    return runs, pages


def _joined(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _run(root: Path, path: str) -> dict[str, Any]:
    run = Run(root / path)
    entry: dict[str, Any] = {"path": path, "name": root.name if path == "." else path}
    report = _joined(path, _REPORT)
    entry["report"] = report if (root / report).is_file() else None
    try:
        facts = run.facts()
        if "afzal" not in facts:
            raise AfzalError(f"{_FACTS} does not belong to a run")
        run_summary = summary(run, facts)
    except (AfzalError, OSError) as error:
        why = str(error) if isinstance(error, OSError) else error.what
        return entry | {"status": "broken", "why": why.replace(f"{root}{os.sep}", "")}
    run_summary |= entry | {"left": _seconds_left(run_summary)}
    return {key: _finite(value) for key, value in run_summary.items()}


def _seconds_left(run_summary: Mapping[str, Any]) -> float | None:
    """Seconds to the end of a running run, at the mean pace so far; None if unknown."""
    step, steps, seconds = (run_summary[key] for key in ("step", "steps", "seconds"))
    if run_summary["status"] != "running" or not all(map(is_number, (step, steps, seconds))) or not 0 < step <= steps:
        return None
    return seconds / step * (steps - step)


def _finite(value: Any) -> Any:
    """The value if it is text or a finite number, else None: a damaged file may hold NaN or objects."""
    return value if isinstance(value, str) or is_number(value) else None


def _page(root: Path, path: str, with_run: set[str]) -> dict[str, Any] | None:
    """A page that Afzal wrote: the data file next to it names its schema. None for any other file.

    Also None for a run's report: the run links to it.
    """
    file = root / path
    folder, _, name = path.rpartition("/")
    schema = _schema(file.with_suffix(".json"))
    if schema is None or (name == _REPORT and (folder or ".") in with_run):
        return None
    kind = next((k for stem, k in _STEMS.items() if name.startswith(stem)), _KINDS.get(schema, "page"))
    return {"path": path, "kind": kind, "title": _title(file) or path, "changed": _modified_at(file)}


def _schema(file: Path) -> str | None:
    match = re.match(r'\s*\{\s*"schema":\s*"(afzal\.\w+)/\d+"', _head(file))
    return match[1] if match else None


def _title(file: Path) -> str:
    match = re.search(r"<title>(.*?)</title>", _head(file), re.DOTALL)
    return html.unescape(match[1]).strip() if match else ""


def _head(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return ""


def _modified_at(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


class Listing:
    """:func:`listing`, at most once a second however many pages ask."""

    def __init__(self, root: Path, clock: Any) -> None:
        self._root, self._clock = root, clock
        self._at, self._body = float("-inf"), b""

    def body(self) -> bytes:
        """The listing as JSON."""
        now = self._clock()
        if now - self._at >= 1.0:
            self._body = json.dumps(listing(self._root), allow_nan=False).encode()
            self._at = self._clock()
        return self._body
