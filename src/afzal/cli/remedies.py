"""Adapt the flags in a data reader's remedy to those of the command that was typed."""

from __future__ import annotations

import re
from typing import Any

from afzal.errors import AfzalError

_READER_FLAGS = ("--columns", "--format", "--skip-bad")
_KEYS = {"--columns": "columns", "--format": "data_format"}
_FILES = ("compare", "sweep")  # these read their training settings from a file


def adapt_remedy(error: AfzalError, verb: str, command: Any) -> None:
    """Change an error's remedy to one that ``afzal verb`` accepts: its own name for ``--format``, keys of its file, or
    a command that writes a file which needs none of these flags."""
    mentioned = [flag for flag in _READER_FLAGS if re.search(rf"{flag}\b", error.remedy)]
    if not mentioned:
        return
    flags = _flags(verb, command)
    if "--format" in mentioned and "--format" not in flags and "--data-format" in flags:
        mentioned.remove("--format")
        _set_remedy(error, error.remedy.replace("--format", "--data-format"))
    lacking = [flag for flag in mentioned if flag not in flags]
    keys = [_KEYS[flag] for flag in lacking if verb in _FILES and flag in _KEYS]
    if keys:
        _set_remedy(error, f"{error.remedy}\n(as {' and '.join(keys)} in the file of afzal {verb})")
    elif lacking:
        options, pronoun = " and ".join(lacking), "them" if len(lacking) > 1 else "it"
        conversion = f"give {pronoun} to afzal convert FILE NEW.jsonl --to afzal, and NEW.jsonl to afzal {verb}"
        _set_remedy(error, f"{error.remedy}\n(afzal {verb} has no {options}: {conversion})")


def _set_remedy(error: AfzalError, remedy: str) -> None:
    AfzalError.__init__(error, error.what, where=error.where, why=error.why, remedy=remedy)


def _flags(verb: str, command: Any) -> set[str]:
    if verb == "train":  # a group, all of whose commands have these
        return {"--columns", "--data-format"}
    if verb in _FILES:
        return set()
    return {name for parameter in command.params for name in parameter.opts}
