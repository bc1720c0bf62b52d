"""A chat in the terminal: lines in, answers as they are generated, one key per vote."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from afzal.errors import AfzalError
from afzal.terminal import visible
from afzal.text import number

if TYPE_CHECKING:
    from afzal.web.chat.conversation import Answer, Stop, Verdict
    from afzal.web.chat.session import Session

HELP = """/new    start a new conversation
/undo   undo the last vote
/tally  show how often each model was better (with names)
/attach FILE   send an image or a sound with your next message
/detach        send nothing with it
/quit   end the chat, like Ctrl-D and Ctrl-C; during an answer, Ctrl-C stops the answer
Votes: 1 the first is better, 2 the second, 0 equal, 9 both bad, s skip"""
KEYS: dict[str, Verdict] = {"1": "first", "2": "second", "0": "tie", "9": "both_bad", "s": "skip"}
_VERDICTS: dict[Verdict, str] = {
    "first": "1 is better",
    "second": "2 is better",
    "tie": "equal",
    "both_bad": "both bad",
}
_STOP_NOTES: dict[Stop, str] = {"length": " [cut at the length limit]", "stopped": " [stopped]", "eos": ""}


@dataclass(frozen=True, slots=True)
class Terminal:
    """A person's terminal. ``line`` and ``key`` return None at the end of the input.

    Attributes:
        line: reads a line after a prompt.
        key: reads one key after a prompt.
        write: shows text immediately.
        is_coloured: whether model names are in bold.
    """

    line: Callable[[str], str | None]
    key: Callable[[str], str | None]
    write: Callable[[str], None]
    is_coloured: bool = False


def converse(session: Session, terminal: Terminal) -> None:
    """Chat until the input ends. Every vote is on disk before the next prompt appears."""
    _greet(session, terminal)
    with suppress(KeyboardInterrupt):
        while (line := terminal.line("\n> ")) is not None:
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                if not _step(session, terminal, line):
                    return
            except AfzalError as error:
                terminal.write(f"error: {error}\n")
    terminal.write("\n")


def _greet(session: Session, terminal: Terminal) -> None:
    names = [partner.name for partner in session.conversation.partners]
    partners = "Two models, blind, in random order" if session.conversation.is_blind else " and ".join(names)
    kinds = sorted("images" if kind == "image" else "sounds" for kind in session.conversation.reads)
    attach = f" /attach sends {' and '.join(kinds)}." if kinds else ""
    terminal.write(f"{partners}. /help lists the commands, Ctrl-D ends the chat.{attach}\n")


def _step(session: Session, terminal: Terminal, line: str) -> bool:
    """Handle one line of input; False once the input has ended."""
    match line.strip():
        case "":
            return True
        case "/help" | "/?":
            terminal.write(f"{HELP}\n")
        case "/new":
            session.begin()
            terminal.write("new conversation\n")
        case "/undo":
            return _undo(session, terminal)
        case "/tally":
            _tally(session, terminal)
        case "/detach":
            session.attached.clear()
            terminal.write("nothing is attached\n")
        case command if command.split()[0] == "/attach":
            _attach(session, terminal, command.removeprefix("/attach").strip())
        case command if command.startswith("/") and " " not in command:
            raise AfzalError(f"there is no command {command}", remedy="/help")
        case _:
            return _exchange(session, terminal, line)
    return True


def _attach(session: Session, terminal: Terminal, typed: str) -> None:
    from afzal.web.chat.attachments import read_attachment

    if not typed:
        raise AfzalError("/attach needs a file", remedy="/attach picture.png")
    try:
        paths = [typed] if Path(typed).is_file() else shlex.split(typed)  # a terminal quotes a file dropped onto it
    except ValueError:
        paths = [typed]
    for path in paths:
        attached = read_attachment(path)
        session.attach(attached)
        terminal.write(f"{visible(attached.summary)} goes with your next message\n")


def _exchange(session: Session, terminal: Terminal, text: str) -> bool:
    conversation = session.conversation
    round_ = session.say(text)
    try:
        for place, number in enumerate(round_.shown):
            head = f"[{place + 1}]" if conversation.is_blind else f"[{conversation.partners[number].name}]"
            _show(terminal, head, lambda on_text, place=place: conversation.answer(place, on_text, Event()))
    except BaseException:
        session.drop_round()
        raise
    conversation.close()
    if conversation.is_blind and conversation.waits == "say":
        terminal.write("\nnothing to compare: the answers are the same, or one was stopped\n")
    return conversation.waits == "say" or _vote(session, terminal)


def _show(terminal: Terminal, head: str, answer: Callable[[Callable[[int, str], None]], Answer]) -> None:
    """Print an answer as it grows. Printed text cannot be removed, so if the tokenizer revises some, print it again."""
    terminal.write(f"\n\x1b[1m{head}\x1b[0m\n" if terminal.is_coloured else f"\n{head}\n")
    shown = ""

    def on_text(n_kept: int, text: str) -> None:
        nonlocal shown
        terminal.write(visible(text if n_kept == len(shown) else f"\n{shown[:n_kept]}{text}"))
        shown = shown[:n_kept] + text

    terminal.write(f"{_STOP_NOTES[answer(on_text).stop]}\n")


def _vote(session: Session, terminal: Terminal) -> bool:
    started = time.monotonic()
    while True:
        key = terminal.key("\nbetter? 1, 2, 0 equal, 9 both bad, s skip: ")
        if key is None:
            return False
        verdict = KEYS.get(key.strip().lower()[:1])
        if verdict is not None:
            break
        terminal.write("no such key\n")
    session.judge(verdict, round(time.monotonic() - started, 2))
    terminal.write("skipped\n" if verdict == "skip" else f"saved: {_VERDICTS[verdict]}\n")
    return True


def _undo(session: Session, terminal: Terminal) -> bool:
    if session.undo() is None:
        raise AfzalError("this conversation has no vote to undo")
    terminal.write("undone\n")
    return _vote(session, terminal)


def _tally(session: Session, terminal: Terminal) -> None:
    if session.votes is None:
        raise AfzalError("this chat has no votes", remedy="--blind")
    terminal.write(f"{tally_line(session.votes.tally())}\n")


def tally_line(tally: dict[str, Any]) -> str:
    """How often the first model was better than the second, in one line."""
    first, second = tally["models"]
    counts, rate = tally["counts"], tally["win_rate"]
    line = f"{first} over {second}: {counts['first']} better, {counts['second']} worse, {counts['tie']} equal"
    line += f", {counts['both_bad']} both bad"
    if rate is not None:
        value, low, high = (number(100 * rate[key], 3) for key in ("value", "low", "high"))
        line += f"; win rate {value}% [{low}, {high}] over conversations"
    return line


def stdio_terminal() -> Terminal:
    """The terminal of this process; if the input is not a terminal, keys are read as lines too."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  line editing and history
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    out = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # _show makes control characters visible

    def write(text: str) -> None:
        try:
            out.write(text)
        except UnicodeEncodeError:
            out.write(text.encode("ascii", "backslashreplace").decode())
        out.flush()

    def line(prompt: str) -> str | None:
        try:
            return input(prompt)
        except EOFError:
            return None

    def key(prompt: str) -> str | None:
        if not sys.stdin.isatty():
            return line(prompt)
        pressed = _one_key(lambda: write(prompt))
        write(f"{visible(pressed)}\n")
        return pressed or None

    return Terminal(line, key, write, is_coloured)


def _one_key(ask: Callable[[], None]) -> str:
    """The next key pressed, without Enter if the system allows that; empty at the end of the input.

    Args:
        ask: shows the prompt. Called once the terminal passes on single keys: an earlier answer would wait for Enter.
    """
    try:
        import termios
        import tty
    except ImportError:
        ask()
        return sys.stdin.readline()[:1]
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSANOW)  # keeps input that was already typed
    try:
        ask()
        pressed = os.read(descriptor, 16).decode("utf-8", "replace")[:1]
        return "" if pressed == "\x04" else pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
