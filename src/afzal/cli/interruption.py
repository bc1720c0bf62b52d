"""What an interrupted command was doing, what it has written, and how to start it again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from afzal.errors import Terminated

_RUNS = ("train", "iterate")
_CONTINUE = ("compare", "sweep", "ladder", "revise", "judge")
_FILES = ("generate", "score", "export")
_SIGNALS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP (the terminal was closed)"}


@dataclass(frozen=True, slots=True)
class _Work:
    """The announced work of this process.

    Attributes:
        action: in words, such as ``dpo of M on D, into runs/a``.
        out: the file or folder that it writes; empty for none.
        before: when the output had last changed at the announcement.
    """

    action: str = ""
    out: str = ""
    before: int | None = None


_works: list[_Work] = []  # the newest is last; empty before a command has read its settings


def announce(action: str, out: str | Path | None) -> None:
    """Record what the command does and where it writes, for the message of an interruption."""
    _works.append(_Work(action, str(out or ""), _last_change(str(out or ""))))


def interruption_line(args: list[str], number: int) -> str:
    """The line for a command that a signal ended: what it was doing, what is on disk, and how to start it again."""
    verb = args[0] if args else ""
    work = _works[-1] if _works else _Work(f"afzal {verb}".strip())
    head = f"interrupted by {_SIGNALS[signal.Signals(number).name]}: {work.action}"
    if verb not in (*_RUNS, *_CONTINUE, *_FILES, "chat", "demo"):
        return head
    return "; ".join([head, *_progress_and_remedy(verb, work)])


def _progress_and_remedy(verb: str, work: _Work) -> tuple[str, str]:
    """What the command has written, and how to start it again."""
    has_written, repeat = _last_change(work.out) != work.before, "the same command starts it again"
    out = Path(work.out)
    if not work.out:
        return "nothing was written", repeat
    if verb in _RUNS:
        if has_written:
            return f"{out} holds what was written", f"continue it with: afzal {verb} {out} --resume"
        return "nothing was written", repeat
    if verb in (*_CONTINUE, "demo") and _holds_files(out):
        return f"what is finished is kept in {out}", "the same command continues it"
    if verb == "chat" and _holds_files(out):
        return f"all votes are kept in {out}", "the same command starts a new conversation"
    if verb == "generate" and (replies := Path(f"{out}.replies.sqlite")).exists():
        return f"the replies so far are kept in {replies}", "the same command requests the others"
    if verb in _FILES and has_written:
        return f"{out} was written", "nothing needs to be repeated"
    return "nothing was written", repeat


def _holds_files(folder: Path) -> bool:
    """Whether there is any file in a folder or below it, besides its lock."""
    from afzal.runs import lock

    return any(name != lock.NAME for _, _, names in os.walk(folder) for name in names)


def _last_change(out: str) -> int | None:
    """The time of the last change of a run's facts, or of the output itself; None if there is none."""
    for path in (Path(out) / "run.json", Path(out)) if out else ():
        try:
            return path.stat().st_mtime_ns
        except OSError:
            continue
    return None


@contextmanager
def record_interrupts() -> Iterator[list[int]]:
    """Inside the block, Ctrl-C raises ``KeyboardInterrupt``; SIGTERM and SIGHUP raise ``Terminated``.

    The list collects the signals' numbers: some libraries turn an interruption during their import into another error.
    A signal that is ignored, as SIGHUP is under ``nohup``, stays ignored.
    """
    interrupts: list[int] = []
    _works.clear()
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): default for name, default in defaults.items() if hasattr(signal, name)}
    on_main_thread = threading.current_thread() is threading.main_thread()
    replaced = {n: default for n, default in numbers.items() if on_main_thread and signal.getsignal(n) is default}

    def record(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(signal.Signals(number).name)

    for number in replaced:
        signal.signal(number, record)
    try:
        yield interrupts
    finally:
        for number, default in replaced.items():
            signal.signal(number, default)


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a signal's exception."""
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, Terminated)):
            return True
        error = error.__cause__ or error.__context__
    return False
