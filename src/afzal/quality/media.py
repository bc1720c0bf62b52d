"""Checks of images and sounds: markers without media, media that many prompts share, odd sizes and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from afzal.data.dataset import Losses
from afzal.data.fields import RowError
from afzal.data.mediafiles import Facts, MediaRules, inspect
from afzal.media import KINDS, Media
from afzal.quality.columns import FirstIds
from afzal.quality.finding import Finding, Severity, finding
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.thresholds import LONG_SECONDS, NARROW_SHAPE, SHORT_SECONDS, SMALL_PIXELS
from afzal.records import media_of

_ANY_SIZE = MediaRules(max_mib=float("inf"), max_megapixels=float("inf"), max_minutes=float("inf"))


class MissingMedia:
    """Items whose texts contain ``<image>`` or ``<audio>`` although the item has no such media."""

    def __init__(self) -> None:
        self.count, self.ids = 0, FirstIds()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            if "<" not in facts.full_text:
                continue
            marked = [kind for kind in KINDS if f"<{kind}>" in facts.full_text]
            if marked and not {media.kind for media in facts.media}.issuperset(marked):
                self.count += 1
                self.ids.add(facts.item.id)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self.count:
            return None
        message = f"{self.count} of {table.items} items mention <image> or <audio> but have none"
        remedy = "give the files in a column (images, audios) if they are meant; the words are now plain text"
        return finding("missing_media", "minor", self.count, table.items, message, remedy, self.ids)


class RepeatedMedia:
    """Images and sounds shared by prompts with different words, which a split by prompts separates."""

    wants = "media"

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._shared: set[str] = set()
        self.ids = FirstIds()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            words = hash(facts.prompt_text)
            for media in set(media_of(facts.item.prompt)):
                first_words = self._words.setdefault(media.sha256, words)
                self._first.setdefault(media.sha256, facts.item.id)
                if first_words != words:
                    self._shared.add(media.sha256)
                    self.ids.add(self._first[media.sha256])
                    self.ids.add(facts.item.id)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self._words:
            return None
        count, total = len(self._shared), len(self._words)
        message = f"{count} of {total} images and sounds occur in several prompts; splits go by prompts, not by media"
        return finding("repeated_media", "ok", count, total, message, "", self.ids)


class _UnusualMedia:
    """Distinct media of one kind with unusual properties; unreadable ones are skipped."""

    wants = "media"

    kind = "image"

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.problems: dict[str, int] = {}
        self.total, self.ids = 0, FirstIds()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            for media in _new(facts.media, self.kind, self._seen):
                media_facts = _facts(media)
                words = "" if media_facts is None else self.problem(media_facts)
                self.total += media_facts is not None
                if words:
                    self.problems[words] = self.problems.get(words, 0) + 1
                    self.ids.add(facts.item.id)

    def problem(self, facts: Facts) -> str:
        """The problem in words; "" if there is none, or if the library needed to detect it is not installed."""
        raise NotImplementedError

    def _finding(self, code: str, noun: str, remedy: str) -> Finding | None:
        """The finding; None if there are no media of the kind."""
        if not self.total:
            return None
        count = sum(self.problems.values())
        details = ", ".join(f"{n} {words}" for words, n in sorted(self.problems.items()))
        message = f"{count} of {self.total} distinct {noun} are odd" + (f": {details}" if details else "")
        severity: Severity = "minor" if count else "ok"
        return finding(code, severity, count, self.total, message, remedy, self.ids)


class OddImages(_UnusualMedia):
    """Images too small to show anything, or so narrow that scaling to a square destroys them."""

    def problem(self, facts: Facts) -> str:
        short, long = sorted((facts.width, facts.height))
        if not short:
            return ""
        if short < SMALL_PIXELS:
            return f"below {SMALL_PIXELS} pixels"
        return f"longer than {NARROW_SHAPE} times their width" if long > NARROW_SHAPE * short else ""

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        return self._finding("odd_images", "images", "look at these files: icons and rulers teach little")


class OddSounds(_UnusualMedia):
    """Sounds too short to contain anything, or longer than the 30 seconds that Whisper's encoder reads."""

    kind = "audio"

    def problem(self, facts: Facts) -> str:
        if not facts.rate:
            return ""
        if facts.seconds < SHORT_SECONDS:
            return f"shorter than {SHORT_SECONDS} s"
        return f"longer than {LONG_SECONDS} s" if facts.seconds > LONG_SECONDS else ""

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        return self._finding("odd_sounds", "sounds", "cut long sounds: many encoders hear only the first 30 seconds")


def _new(shown: Iterable[Media], kind: str, seen: set[str]) -> Iterator[Media]:
    for media in shown:
        if media.kind == kind and media.sha256 not in seen:
            seen.add(media.sha256)
            yield media


def _facts(media: Media) -> Facts | None:
    try:
        return inspect(media.kind, media.read(), _ANY_SIZE)
    except (OSError, ValueError, RowError):
        return None
