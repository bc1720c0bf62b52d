"""Chat models that answer from a list of words, and a chat page with two of them: ``python helpers_chat.py OUT``."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from afzal.media import MediaKind
from afzal.records import Message
from afzal.web.chat.conversation import Conversation, Stop
from afzal.web.chat.session import Session
from afzal.web.chat.votes import Votes


class ScriptedAnswer(NamedTuple):
    text: str
    tokens: int
    stop: Stop


class Words:
    """A model that answers with its name and the number of turns, and takes ``pause`` seconds per word."""

    def __init__(self, name: str, pause: float = 0.0, words: str = "", reads: Sequence[MediaKind] = ()) -> None:
        self.name, self._pause, self._words, self.reads = name, pause, words, frozenset(reads)
        self.asked: list[tuple[list[str], int]] = []

    def answer(self, turns: Sequence[Message], number: int, on_text: Any, stop: Event) -> ScriptedAnswer:
        self.asked.append(([str(turn.content) for turn in turns], number))
        whole = self._words or f"{self.name} says answer number {number + 1}"
        said = ""
        for word in whole.split(" "):
            if stop.is_set():
                return ScriptedAnswer(said, len(said.split()), "stopped")
            time.sleep(self._pause)
            added = f" {word}" if said else word
            on_text(len(said), added)
            said += added
        return ScriptedAnswer(said, len(said.split()), "eos")


def blind(out: Path, *partners: Words, seed: int = 0) -> Session:
    """A blind session of two models, whose order is drawn from ``seed``."""
    about = {"models": [one.name for one in partners], "annotator": "ann", "sampling": {"temperature": 1.0}}
    return Session(Conversation(partners, "", random.Random(seed)), Votes(out, about, plain=False))


if __name__ == "__main__":
    from afzal.web.chat.serve import serve
    from afzal.web.serve import ServerOptions

    session = blind(Path(sys.argv[1]), *(Words(name, 0.02, reads=("image", "audio")) for name in ("left", "right")))
    serve(
        session,
        {"system": "", "sampling": {"temperature": 1.0}},
        ServerOptions(),
        lambda address: print(address, flush=True),
    )
