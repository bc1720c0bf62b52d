"""Storage of blind votes: a folder in the annotation page's layout, which ``aggregate`` and ``train`` read.

``items.jsonl`` gets the two answers, ``votes.jsonl`` the vote; both are on disk before the vote counts.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from afzal._version import __version__
from afzal.data.annotation_folder import ITEMS, VOTES
from afzal.data.native import to_row
from afzal.errors import AfzalError
from afzal.records import P_FIRST, SWAPPED, Item, Message, Outcome, Response, Turns, as_text
from afzal.runs import atomic_write, claim_folder, lock, read_json, writing
from afzal.stats.intervals import clustered, share
from afzal.web.chat.conversation import Round
from afzal.web.journal import Journal
from afzal.web.media import MediaLibrary
from afzal.web.questions import content_sha256
from afzal.web.validation import OUTCOMES

ABOUT = "chat.json"


class Votes:
    """An open folder of blind votes between two models; one process at a time.

    Args:
        metadata: ``models`` (their names, in order), ``annotator``, and further facts about the answers. A folder with
            votes between other models is refused.
        plain: the models continue text, so conversations are written as one text.

    Raises:
        AfzalError: another process has the folder; it holds something else; it cannot be written.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], *, plain: bool) -> None:
        self.path, self._metadata, self._plain = path, dict(metadata), plain
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        claim_folder(path, "written", "stop it, or choose another --out")
        try:
            self._check()
            self._items, self._votes = Journal(path / ITEMS), Journal(path / VOTES)
            self._lines: dict[str, Mapping[str, Any]] = {}
            for line in self._votes.lines():
                if line.get("kind") == "pair":
                    self._lines[line["id"]] = line
                self._lines.pop(str(line.get("retracts")), None)
        except BaseException:
            lock.release(path)
            raise
        self.conversation = ""
        self.begin()

    def begin(self) -> None:
        """Start a new conversation; a data split keeps its votes together."""
        self.conversation = uuid.uuid4().hex

    def add(self, round_: Round, seconds: float | None) -> str:
        """Save a vote, and return its id once it is on disk.

        Raises:
            AfzalError: the write failed; then the vote is not saved.
        """
        item, ident = self._item(round_), uuid.uuid4().hex
        line = {
            "id": ident,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "item": item.id,
            "item_sha256": content_sha256(item),
            "annotator": self._metadata["annotator"],
            "axis": None,
            "kind": "pair",
            "shown": list(round_.shown),
            "outcome": round_.verdict,
            "strength": 1 if round_.verdict in ("first", "second") else None,
            "seconds": seconds,
            "conversation": self.conversation,
            "page": __version__,
        }
        self._items.append([to_row(item)])
        self._votes.append([line])
        self._lines[ident] = line
        return ident

    def retract(self, ident: str) -> None:
        """Take a vote back, by appending a line that retracts it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._votes.append([{"id": uuid.uuid4().hex, "at": now, "kind": "undo", "retracts": ident}])
        self._lines.pop(ident, None)

    @property
    def count(self) -> int:
        """Number of votes in the folder, without retracted ones."""
        return len(self._lines)

    def tally(self) -> dict[str, Any]:
        """Summarize the folder's votes, without retracted ones.

        Returns:
            ``models``; ``counts`` by outcome for the first model (``first``: it is better); and its ``win_rate`` with
            an interval over conversations: ties count half, "both bad" is left out, None without votes.
        """
        outcomes = [(line["conversation"], _outcome_by_model(line)) for line in self._lines.values()]
        counts = Counter(outcome for _, outcome in outcomes)
        scores = [(conversation, P_FIRST[outcome]) for conversation, outcome in outcomes if outcome in P_FIRST]
        rate = share(clustered(*zip(*scores, strict=True))) if scores else None
        return {
            "models": list(self._metadata["models"]),
            "counts": {name: counts[name] for name in OUTCOMES},
            "win_rate": None if rate is None else {"value": rate.value, "low": rate.low, "high": rate.high},
        }

    def close(self) -> None:
        """Let others open the folder."""
        for journal in (self._items, self._votes):
            journal.close()
        lock.release(self.path)

    def _item(self, round_: Round) -> Item:
        prompt: Turns = as_text(round_.prompts[0]) if self._plain else round_.prompts[0]
        texts = [answer.text if answer else "" for answer in round_.answers]
        turns: list[Turns] = [text if self._plain else (Message("assistant", text),) for text in texts]
        answers = [answer for answer in round_.answers if answer]
        answer_facts = {key: value for key, value in self._metadata.items() if key not in ("models", "annotator")}
        extra = {**answer_facts, "tokens": [a.tokens for a in answers], "stop": [a.stop for a in answers]}
        responses = tuple(Response(t, name) for t, name in zip(turns, self._metadata["models"], strict=True))
        item = Item(uuid.uuid4().hex, prompt, responses, group=self.conversation, extra=extra)
        library = MediaLibrary([item])
        library.copy_to(self.path)
        return library.with_copies(item)

    def _check(self) -> None:
        path = self.path / ABOUT
        if path.exists():
            models = read_json(path).get("models")
            if models != self._metadata["models"]:
                raise AfzalError(
                    f"{self.path} holds votes between {_join_with_and(models or ['?'])}",
                    why=f"this chat compares {_join_with_and(self._metadata['models'])}",
                    remedy="choose another --out",
                )
            return
        other_files = sorted(p.name for p in self.path.iterdir() if p.name != lock.NAME and not p.name.startswith("."))
        if other_files:
            why = f"it holds {', '.join(other_files[:3])}"
            raise AfzalError(
                f"{self.path} is not empty and holds no chat votes", why=why, remedy="choose another --out"
            )
        atomic_write(path, json.dumps({"afzal": __version__, **self._metadata}, indent=1, ensure_ascii=False) + "\n")


def _outcome_by_model(line: Mapping[str, Any]) -> str:
    outcome: Outcome = line["outcome"]
    return outcome if line["shown"][0] == 0 else SWAPPED.get(outcome, outcome)


def _join_with_and(names: Sequence[str]) -> str:
    return " and ".join(names)
