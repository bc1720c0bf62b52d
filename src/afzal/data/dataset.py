"""The result of reading a source: items, and a reason for every row that did not become one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from afzal.data.mixture import Mixture
from afzal.drops import Drop
from afzal.records import Item, Vote, turns_to_json, vote_values


@dataclass(slots=True)
class Losses:
    """Drops during reading: all are counted, the first few are kept.

    Attributes:
        rows, parts: number of dropped rows, and of dropped parts of kept rows.
        counts: drops by reason; parts of rows count under ``"<reason> (part)"``.
    """

    rows: int = 0
    parts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: list[Drop] = field(default_factory=list)

    def add(self, drop: Drop) -> None:
        """Count one drop."""
        self.rows += drop.is_complete
        self.parts += not drop.is_complete
        self.counts[drop.reason if drop.is_complete else f"{drop.reason} (part)"] += 1
        if len(self.first) < SHOWN_DROPS:
            self.first.append(drop)


SHOWN_DROPS = 20


@dataclass(frozen=True, slots=True)
class Dataset:
    """Items of one source, with an account of every row: ``rows == kept + dropped rows``.

    A row may hold several items (a conversation tree), so ``len(items)`` can exceed ``kept``. ``notes`` describe how
    the rows were understood; ``unread`` names the skipped fields. ``fingerprint`` is the SHA-256 of prompts, responses,
    votes and gold votes in order; it does not depend on file names, ids and line numbers. ``mixture`` gives the tasks'
    shares of an epoch, if the source is a mixture.
    """

    items: list[Item]
    format: str
    rows: int
    drops: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    source: str = ""
    unread: list[str] = field(default_factory=list)
    mixture: Mixture | None = None

    @property
    def kept(self) -> int:
        """Number of rows that gave at least one item."""
        return self.rows - self.losses.rows

    @property
    def losses(self) -> Losses:
        """Counts of the drops."""
        return counted(self.drops)

    @property
    def drop_counts(self) -> dict[str, int]:
        """Drops by reason, the most frequent first; parts of rows count under ``"<reason> (part)"``."""
        return dict(self.losses.counts.most_common())


def counted(drops: Sequence[Drop]) -> Losses:
    """Count drops by reason."""
    losses = Losses()
    for drop in drops:
        losses.add(drop)
    return losses


class Fingerprint:
    """SHA-256 over the content of items, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._votes: tuple[Vote, ...] = ()
        self._spelled = "[]"

    def add(self, item: Item) -> None:
        """Append one item."""
        if item.is_plain and not item.gold:
            self._digest.update(self._plain(item).encode("utf-8", "surrogatepass"))
            return
        answers = [turns_to_json(response.turns) for response in item.responses]
        content = (turns_to_json(item.prompt), answers, [vote_values(vote) for vote in item.votes])
        if item.gold:
            content = (*content, [vote_values(vote) for vote in item.gold])
        self._digest.update(f"{_encode(content)}\n".encode("utf-8", "surrogatepass"))

    def _plain(self, item: Item) -> str:
        """The JSON that :meth:`add` hashes, for an item of texts, written without the encoder; votes shared by rows are
        encoded once."""
        if item.votes is not self._votes:
            self._votes, self._spelled = item.votes, _encode([vote_values(vote) for vote in item.votes])
        texts: list[Any] = [item.prompt, *[response.turns for response in item.responses]]
        if "\n".join(texts).encode("utf-8", "surrogatepass").translate(None, _UNESCAPED) != b"\n" * (len(texts) - 1):
            texts = list(map(_escaped, texts))
        else:  # nothing to escape; four times as fast
            texts = [f'"{text}"' for text in texts]
        return f"[{texts[0]}, [{', '.join(texts[1:])}], {self._spelled}]\n"

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._digest.hexdigest()


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 over the content of the items, in order."""
    digest = Fingerprint()
    for item in items:
        digest.add(item)
    return digest.hexdigest()


_escaped: Callable[[Any], str] = json.encoder.encode_basestring  # as _encode writes a text

_UNESCAPED = bytes(n for n in range(256) if n >= 32 and n not in b'"\\')
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=str).encode
