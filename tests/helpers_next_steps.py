"""The follow-up commands that a command proposes, parsed by the real command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import pytest

from afzal import cli
from afzal.terminal.conclusion import MOST

_STEP = re.compile(r"^next(?: \(.*?\))?: afzal (.*)$", flags=re.MULTILINE)
_WITH_SETTINGS = ("train", "iterate", "generate", "chat", "score", "export", "compare", "sweep", "revise")


class Reached(BaseException):
    """The command line was parsed, and the work would begin."""


def proposed_commands(output: str) -> list[list[str]]:
    """The words of the commands in the last lines of an output; all other lines come before them."""
    commands = [shlex.split(command) for command in _STEP.findall(output)]
    assert len(commands) <= MOST
    last = output.strip().splitlines()[-len(commands) :] if commands else []
    assert all(line.startswith("next") for line in last), output
    return commands


def parse(words: Sequence[str]) -> None:
    """Parse the words with the real command line, up to the start of its work; raise what it would print."""
    if words[0] in _WITH_SETTINGS:
        with pytest.MonkeyPatch.context() as patch:

            def begin(settings: Any, what: str) -> None:
                raise Reached

            patch.setattr("afzal.cli.startup.begin", begin)
            with pytest.raises(Reached):
                cli.main([*words, "--debug"])
        return
    command = cli._load(words[0])
    command.make_context(words[0], list(words[1:]))
