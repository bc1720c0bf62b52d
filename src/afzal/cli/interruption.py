"""How to resume an interrupted command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType

_RUNS = ("train", "iterate")
_CONTINUE = ("compare", "sweep", "ladder", "revise")
_REPEAT = ("generate", "score", "judge", "export", "demo")


def resume_hint(args: list[str]) -> str:
    """How to resume the command with these arguments; empty if an interruption loses nothing."""
    verb = args[0] if args else ""
    if verb in _CONTINUE:
        return "the same command continues it"
    if verb in _REPEAT or (verb in _RUNS and "--resume" in args):
        return "the same command starts it again"
    if verb not in _RUNS:
        return ""
    out = _out(args)
    if not out:
        return "the same command starts it; add --resume if the run had already started"
    if (Path(out) / "run.json").is_file():
        return f"continue it with: afzal {verb} {out} --resume"
    return "the run had not started: the same command starts it"


@contextmanager
def record_interrupts() -> Iterator[list[int]]:
    """Inside the block, the list collects every Ctrl-C: some libraries turn an interruption during their import into
    another error."""
    interrupts: list[int] = []
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return

    def record(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, record)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _out(args: list[str]) -> str:
    """The folder named by the last ``--out X``, ``--out=X`` or ``out=X``."""
    named = [after for before, after in pairwise(args) if before == "--out"]
    named += [value for arg in args for key, mark, value in [arg.partition("=")] if mark and key in ("--out", "out")]
    return named[-1] if named else ""
