"""The last lines of a command: the verdict in words, and the commands that make sense next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from . import one_line

MOST = 3
MODEL = "MODEL"
"""Stands in a command for the one thing that only its reader can know: which model to train."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command that makes sense next.

    Attributes:
        words: the command as the shell passes it, ``afzal`` left out.
        why: what it is for, in a few words.
    """

    words: tuple[str, ...]
    why: str = ""

    @property
    def command(self) -> str:
        """One line for a shell."""
        return shlex.join(["afzal", *self.words])

    @property
    def line(self) -> str:
        """``next: COMMAND``, or ``next (WHY): COMMAND``."""
        return one_line(f"next ({self.why}): {self.command}" if self.why else f"next: {self.command}")


def step(*words: object, why: str = "") -> Step:
    """The command ``afzal WORDS``."""
    return Step(tuple(map(str, words)), why)


def closing(verdict: str, steps: Sequence[Step] = ()) -> list[str]:
    """The last lines of a command that succeeded: one of verdict, unless it is empty, and one for each step.

    Raises:
        ValueError: there are more steps than a person would read.
    """
    if len(steps) > MOST:
        raise ValueError(f"{len(steps)} steps, at most {MOST}")
    return [*([one_line(verdict)] if verdict else []), *(each.line for each in steps)]
