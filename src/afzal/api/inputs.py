"""Convert Python objects (rows, functions, runs, paths) to settings text that a run folder can keep."""

from __future__ import annotations

import atexit
import os
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

from afzal.data.in_memory import is_source, save_rows
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.config import Setting, Settings

S = TypeVar("S", bound="Settings")

Rows: TypeAlias = "str | os.PathLike[str] | Iterable[Any] | Mapping[str, Any]"
"""A path, a hub id ``owner/name[:config][@split]``, a list of dicts, a pandas frame, or a ``Dataset`` of datasets."""

Model: TypeAlias = "str | os.PathLike[str]"
"""A folder, a hub id, or a run that :func:`afzal.fit` returned."""

RewardFunction: TypeAlias = Callable[..., Any]
"""``(prompt, answer, **columns) -> float``, or as in TRL: ``(prompts, completions, **columns) -> list of float``."""

ROWS = (
    *("data", "eval_data", "prompts", "held_out_prompts", "confirm_prompts", "constraint_data", "votes", "samples"),
    "gold",
)
"""Settings that name rows. A number there is a count, such as ``samples`` of a comparison."""

INPUTS = "inputs"
"""The folder for in-memory rows, inside the run folder."""


def plain(arguments: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Settings as text and numbers: rows are written to a file, functions and paths become their names.

    Args:
        arguments: by setting; None means not given.
        folder: where rows are written; default: a folder that is removed when Python exits.

    Raises:
        AfzalError: rows cannot be read.
    """
    return {key: _plain(key, value, folder) for key, value in arguments.items() if value is not None}


def settings_of(
    kind: type[S], arguments: Mapping[str, Any], folder: Path | None = None, base: Sequence[Setting] = ()
) -> S:
    """Settings of one kind from Python arguments, as if they came from the command line.

    Args:
        kind: the class of settings.
        arguments: by setting; None means not given.
        folder: where rows in memory are written; default: a folder that is removed when Python exits.
        base: settings that ``arguments`` overrides, such as those of a file.

    Raises:
        AfzalError: a setting is unknown or has no effect, or rows cannot be read.
    """
    from afzal import config

    values = plain(arguments, folder)
    return config.build(kind, [*base, *(config.Setting(key, value) for key, value in values.items())])


def as_path(value: Any, name: str) -> str:
    """A source as text; rows in memory are written to a file that is removed when Python exits."""
    return os.fspath(value) if is_source(value) else str(save_rows(value, _scratch(), name))


def path_of(value: Any, name: str, expected: str = "a path: text or pathlib.Path") -> str:
    """A path, a hub id or a run as text.

    Raises:
        AfzalError: it is none of these.
    """
    if not is_source(value):
        raise wrong(value, name, expected)
    return os.fspath(value)


def one_of(value: Any, name: str, choices: Any) -> None:
    """Refuse a value that a ``Literal`` does not list.

    Raises:
        AfzalError: the value is not in the list.
    """
    if value not in get_args(choices):
        raise wrong(value, name, f"one of {', '.join(get_args(choices))}")


def wrong(value: Any, name: str, expected: str) -> AfzalError:
    """The error for an argument of the wrong kind, with its name and value."""
    return AfzalError(f"{name} cannot be {reprlib.repr(value)}", remedy=f"give {expected}")


def out_of(arguments: Mapping[str, Any], default: str, *, resume: bool) -> Path | None:
    """The run folder for rows in memory; None if there are none and the settings name no folder.

    Args:
        arguments: by setting.
        default: the default folder for rows in memory.
        resume: whether the folder may hold a run.

    Raises:
        AfzalError: the folder holds another run.
    """
    from afzal.runs.folder import refuse_used

    in_memory = any(_is_rows(key, value) for key, value in arguments.items())
    if arguments.get("out") is None and not in_memory:
        return None
    out = Path(path_of(arguments.get("out") or default, "out"))
    if in_memory and not resume:
        refuse_used(out)  # before rows are written into it
    return out


def _is_rows(key: str, value: Any) -> bool:
    known = value is None or is_source(value) or callable(value)
    return key in ROWS and not known and not isinstance(value, int | float)


def _plain(key: str, value: Any, folder: Path | None) -> Any:
    if is_source(value):
        return os.fspath(value)
    if _is_rows(key, value):
        return str(save_rows(value, folder or _scratch(), key))
    if callable(value) and not isinstance(value, type):
        from afzal.objectives import spec_of

        return spec_of(value)
    if isinstance(value, list | tuple):
        return [_plain("", element, folder) for element in value]
    if isinstance(value, dict):
        # in ``space``, a name maps to the values of a setting; one of them may be a list of files
        return {name: _plain("" if key == "space" else name, element, folder) for name, element in value.items()}
    return value


_SCRATCH: list[Path] = []


def _scratch() -> Path:
    """A temporary folder for this process."""
    if not _SCRATCH:
        _SCRATCH.append(Path(tempfile.mkdtemp(prefix="afzal-")))
        atexit.register(shutil.rmtree, _SCRATCH[0], ignore_errors=True)
    return _SCRATCH[0]
