"""What a command does before anything heavy is imported: it looks at the paths that were named, and says what it does.

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


def begin(settings: Settings, what: str) -> None:
    """Make sure that what the settings name is there, then say ``what`` is about to be done, on stderr.

    Raises:
        AfzalError: a file, a folder or a hub id is not there.
    """
    refuse_missing(settings)
    from afzal.runs import launched

    if launched.number() == 0:
        with suppress(OSError):  # the terminal may be closed
            print(f"{what}: loading", file=sys.stderr, flush=True)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of torch and transformers, which make a million objects and hardly any garbage: a sixth of their
    time is spent on looking for some."""
    from afzal.api.collecting import collector_paused

    with collector_paused():
        yield


def refuse_missing(settings: Settings) -> None:
    """Raise AfzalError for the first path that a setting names and that is not there; content is not read."""
    for value in _named(settings, _FUNCTIONS):
        for term in value.split("+"):
            path = term.rpartition("*")[2].strip().rpartition(":")[0]
            if path.endswith(".py") and not Path(path).is_file():
                raise AfzalError(f"there is no file {path!r}", where=value, remedy="check the path before the colon")
    from afzal import data

    for value in _named(settings, _DATA):
        data.refuse_missing(value)
    for value in _named(settings, _MODELS):
        if not Path(value).exists() and ":" not in value:
            from afzal.folders.load import find_folder

            find_folder(value)


def _named(settings: Settings, keys: tuple[str, ...]) -> Iterator[str]:
    """What these settings name; words that stand for something else are left out."""
    for key in keys:
        given = getattr(settings, key, None)
        values = given if isinstance(given, list) else [given]
        yield from (value for value in values if isinstance(value, str) and value not in _WORDS)
