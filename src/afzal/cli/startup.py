"""Checks before heavy imports: look for the named paths, and announce the work.

Importing torch and transformers takes seconds (six to fifteen on a busy machine); a wrong path is reported before that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afzal import config
from afzal.config import Settings
from afzal.errors import AfzalError

_MODELS = ("model", "against", "policy", "reference", "value_model", "reward", "watch_reward", "cost", "match")
_DATA = ("data", "eval_data", "prompts", "held_out_prompts", "constraint_data", "votes")
_FUNCTIONS = ("objective", "constraint", "constraint_score", "reward", "watch_reward", "cost", "match")
_WORDS = (*config.REFERENCES, config.PEOPLE, "initial", "previous", "nobody")


def begin(settings: Settings, action: str) -> None:
    """Check that everything the settings name exists, then announce the work (``action``) on stderr, and for a message
    if a signal ends the command.

    Raises:
        AfzalError: a file, a folder or a hub id does not exist.
    """
    refuse_missing(settings)
    from afzal.cli.interruption import announce
    from afzal.runs import torchrun

    announce(action, getattr(settings, "out", None))

    if torchrun.global_rank() == 0:
        with suppress(OSError):  # the terminal may be closed
            print(f"{action}: loading", file=sys.stderr, flush=True)


@contextmanager
def importing() -> Iterator[None]:
    """Pause the garbage collector while torch and transformers are imported: they create a million objects and hardly
    any garbage, and a sixth of the import time would go into looking for it."""
    from afzal.api.gc_pause import collector_paused

    with collector_paused():
        yield


def refuse_missing(settings: Settings) -> None:
    """Raise AfzalError for the first path in the settings that does not exist; contents are not read.

    If the settings are those of a run, the error also names the folder in which a relative path was looked for, and
    where the run was started.
    """
    for check, keys in ((_refuse_function, _FUNCTIONS), (_refuse_data, _DATA), (_refuse_model, _MODELS)):
        for key, value in _named_paths(settings, keys):
            try:
                check(value)
            except AfzalError as error:
                raise _moved_run_error(error, key, value, settings) from None


def _refuse_function(value: str) -> None:
    for term in value.split("+"):
        path = term.rpartition("*")[2].strip().rpartition(":")[0]
        if path.endswith(".py") and not Path(path).is_file():
            raise AfzalError(f"there is no file {path!r}", where=value, remedy="check the path before the colon")


def _refuse_data(value: str) -> None:
    from afzal import data

    data.refuse_missing(value)


def _refuse_model(value: str) -> None:
    if not Path(value).exists() and ":" not in value:
        from afzal.folders.load import find_folder

        find_folder(value)


def _moved_run_error(error: AfzalError, key: str, value: str, settings: Settings) -> AfzalError:
    """The error for a missing path of a run that was moved, or that is named from another folder; other errors are
    returned unchanged."""
    out = getattr(settings, "out", None)
    if Path(value).is_absolute() or not out or not Path(out, "run.json").is_file():
        return error
    from afzal import runs

    started = ""
    with suppress(AfzalError):
        started = str(runs.open_run(out).facts().get("folder", ""))
    folder = str(Path.cwd())
    if started == folder:
        return error
    place = f"in {started}, where the run was started" if started else "in the folder where the run was started"
    return AfzalError(
        error.what,
        where=error.where,
        why=f"{key} of {out} is a relative path, and was looked for in {folder}",
        remedy=f"repeat the command {place}; or add {key}=PATH: the same content may have moved",
    )


def _named_paths(settings: Settings, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The settings among these and their values, without words that have a special meaning."""
    for key in keys:
        value = getattr(settings, key, None)
        values = value if isinstance(value, list) else [value]
        yield from ((key, value) for value in values if isinstance(value, str) and value not in _WORDS)
