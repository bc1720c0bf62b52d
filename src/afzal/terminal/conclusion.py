"""The last lines of a command: the result in words, and useful next commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from . import one_line

MOST = 3
MODEL = "MODEL"
"""Placeholder in a command for the model to train, which only the user knows."""


@dataclass(frozen=True, slots=True)
class Step:
    """A useful next command.

    Attributes:
        words: the command's arguments, without ``afzal``.
        why: its purpose, in a few words.
    """

    words: tuple[str, ...]
    why: str = ""

    @property
    def command(self) -> str:
        """The command as one line for a shell."""
        return shlex.join(["afzal", *self.words])

    @property
    def line(self) -> str:
        """``next: COMMAND``, or ``next (WHY): COMMAND``."""
        return one_line(f"next ({self.why}): {self.command}" if self.why else f"next: {self.command}")


def step(*words: object, why: str = "") -> Step:
    """The command ``afzal WORDS``."""
    return Step(tuple(map(str, words)), why)


def conclusion_lines(verdict: str, steps: Sequence[Step] = ()) -> list[str]:
    """The last lines of a successful command: the verdict, unless it is empty, and one line for each step.

    Raises:
        ValueError: there are more than :data:`MOST` steps.
    """
    if len(steps) > MOST:
        raise ValueError(f"{len(steps)} steps, at most {MOST}")
    return [*([one_line(verdict)] if verdict else []), *(next_step.line for next_step in steps)]
