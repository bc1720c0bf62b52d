"""From what Python holds to what settings say: rows, functions, runs and paths as text that a run folder can keep."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from afzal.data.given import is_source, keep

Rows: TypeAlias = "str | os.PathLike[str] | Iterable[Any] | Mapping[str, Any]"
"""A path, a hub id ``owner/name[:config][@split]``, a list of dicts, a pandas frame, or a ``Dataset`` of datasets."""

Model: TypeAlias = "str | os.PathLike[str]"
"""A folder, a hub id, or a run that :func:`afzal.fit` returned."""

RewardFunction: TypeAlias = Callable[..., Any]
"""``(prompt, answer, **columns) -> float``, or as TRL's: ``(prompts, completions, **columns) -> list of float``."""

ROWS = (
    *("data", "eval_data", "prompts", "held_out_prompts", "confirm_prompts", "constraint_data", "votes", "samples"),
    *("gold", "against"),
)
INPUTS = "inputs"
"""The folder, below that of a run, of rows that were given in memory."""


def plain(given: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Settings as text and numbers: rows are written to a file, functions and paths become their names.

    Args:
        given: by setting; None stands for a setting that is not given.
        folder: where rows are written; default: a folder that is removed when Python ends.

    Raises:
        AfzalError: rows cannot be read.
    """
    return {key: _plain(key, value, folder) for key, value in given.items() if value is not None}


def as_path(value: Any, name: str) -> str:
    """A source as text; rows in memory are written to a file that is removed when Python ends."""
    return os.fspath(value) if is_source(value) else str(keep(value, _scratch(), name))


def out_of(given: Mapping[str, Any], usual: str) -> str:
    """The run folder that settings name, or ``usual`` where they name none and rows are in memory."""
    if given.get("out"):
        return os.fspath(given["out"])
    return "" if all(is_source(given[key]) for key in ROWS if given.get(key) is not None) else usual


def _plain(key: str, value: Any, folder: Path | None) -> Any:
    if is_source(value):
        return os.fspath(value)
    if key in ROWS:
        return str(keep(value, folder or _scratch(), key))
    if callable(value) and not isinstance(value, type):
        from afzal.objectives import spec_of

        return spec_of(value)
    if isinstance(value, list | tuple):
        return [_plain("", one, folder) for one in value]
    if isinstance(value, dict):
        return {name: _plain(name, one, folder) for name, one in value.items()}
    return value


_SCRATCH: list[Path] = []


def _scratch() -> Path:
    """A folder of this process."""
    if not _SCRATCH:
        _SCRATCH.append(Path(tempfile.mkdtemp(prefix="afzal-")))
        atexit.register(shutil.rmtree, _SCRATCH[0], ignore_errors=True)
    return _SCRATCH[0]
