"""The only module that calls a tokenizer: texts to ids and back, exact at the joints between texts.

With many tokenizers, the ids of two texts cannot be concatenated: SentencePiece-like ones put a space before every
text, and BPE merges across the joint. :class:`Codec` encodes a text *as a continuation*: it encodes the text after a
sentinel, removes the sentinel's ids, and accepts only what decodes back to the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from afzal.folders.guard import guarded
from afzal.tokens.template import marker_pattern

_SENTINELS = ("\n", "a", ".", "0", "。", "|")
_WINDOW = 16


class Codec:
    """A tokenizer with exact continuations.

    Attributes:
        prefix_ids: ids that the tokenizer itself puts before a text: its BOS, or nothing.
        specials: pattern that matches the special tokens' spellings, or None.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prefix_ids = _prefix_ids(tokenizer)
        self.specials = marker_pattern(tokenizer, special_only=True)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self.special_ids = frozenset(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - ends)
        self.sentinels = self._find_sentinels()
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._spaced, self._respelled = self._find_spaces()

    def encode(self, texts: Sequence[str], *, markers: bool) -> list[list[int]]:
        """Ids of each text, encoded as the start of a document, without BOS or EOS.

        Args:
            markers: whether special tokens spelled out in the text become their ids (for a rendered template) or are
                plain characters (for a person's text).

        Raises:
            AfzalError: the tokenizer fails on a text, for example for lack of an unknown token.
        """
        if not texts:
            return []
        with guarded(str(self.tokenizer.name_or_path)):
            return self.tokenizer(
                list(texts),
                add_special_tokens=False,
                split_special_tokens=not markers,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of ids, with special tokens spelled out."""
        if not ids:
            return []
        return self.tokenizer.batch_decode(
            [list(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def added_texts(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str | None]:
        """For each ``(before, ids)``, the text that ``ids`` add to the text of ``before``.

        None if the text of ``before`` changes when ``ids`` follow it.
        """
        texts = self._added_text([(self._body(before)[-_WINDOW:], ids) for before, ids in pairs])
        # The window may start inside a character, which byte fallback then decodes differently: retry with all ids.
        retried = [i for i, text in enumerate(texts) if text is None or "\ufffd" in text]
        for i, text in zip(
            retried, self._added_text([(self._body(pairs[i][0]), pairs[i][1]) for i in retried]), strict=True
        ):
            texts[i] = text
        return texts

    def continuations(self, texts: Sequence[str], *, markers: bool) -> list[list[int] | None]:
        """Ids of each text as the continuation of another text; None if no encoding decodes to it.

        Rendered text (``markers``) is accepted even if it does not: some tokenizers put a space after every marker.
        """
        spellings: list[list[int] | None] = [None] * len(texts)
        fallbacks: dict[int, list[int]] = {}
        for sentinel, before in self.sentinels:
            todo = [i for i, ids in enumerate(spellings) if ids is None]
            joint = self.encode([sentinel + texts[i] for i in todo], markers=markers)
            split = [
                (i, ids[len(before) :]) for i, ids in zip(todo, joint, strict=True) if is_proper_prefix(ids, before)
            ]
            fallbacks = {**dict(split), **fallbacks}
            added = self.added_texts([(before, ids) for _, ids in split])
            for (i, ids), text in zip(split, added, strict=True):
                if text is not None and same_text(text, texts[i]):
                    spellings[i] = ids
        return [fallbacks.get(i) if ids is None and markers else ids for i, ids in enumerate(spellings)]

    def rendered(self, before: Sequence[int], text: str) -> str:
        """The rendered text, recovered from what its ids decode to after ``before``.

        Some tokenizers decode with a space after every marker, or spell a marker differently.
        """
        text = self.unspaced(before, text)
        if self._spaced is not None:
            text = self._spaced.sub(r"\1", text)
        for spelling, marker in self._respelled.items():
            text = text.replace(spelling, marker)
        return text

    def unspaced(self, before: Sequence[int], text: str) -> str:
        """The text without the space that the tokenizer itself adds if ``before`` ends in a marker."""
        follows_marker = self._spaced is not None and len(before) > 0 and int(before[-1]) in self._added
        return text.removeprefix(" ") if follows_marker else text

    def _find_spaces(self) -> tuple[re.Pattern[str] | None, dict[str, str]]:
        """A pattern for a marker and the space that the tokenizer adds after it (None if it adds none), and the markers
        that it spells differently."""
        markers = marker_pattern(self.tokenizer, special_only=False)
        added = self.tokenizer.added_tokens_decoder
        texts = dict(zip(added, self.decode([[i] for i in added]), strict=True))
        respelled = {texts[i]: t.content for i, t in added.items() if texts[i] != t.content and texts[i].strip()}
        if markers is None or not added:
            return None, respelled
        marker = next(iter(added.values())).content
        joined = self.decode(self.encode([f"{marker}a"], markers=True))[0]
        spaced = joined.endswith(" a")
        names = "|".join([markers.pattern, *map(re.escape, respelled)])
        return (re.compile(f"({names}) ") if spaced else None), respelled

    def reversible(self, text: str, *, markers: bool) -> bool:
        """Whether the tokenizer can encode the text without loss."""
        return same_text(self.decode(self.encode([text], markers=markers))[0], text)

    def _body(self, ids: Sequence[int]) -> list[int]:
        ids = list(ids)
        return ids[len(self.prefix_ids) :] if ids[: len(self.prefix_ids)] == self.prefix_ids else ids

    def _added_text(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str | None]:
        texts = self.decode([before for before, _ in pairs] + [[*before, *ids] for before, ids in pairs])
        return [
            full[len(start) :] if full.startswith(start) else None
            for start, full in zip(texts[: len(pairs)], texts[len(pairs) :], strict=True)
        ]

    def _find_sentinels(self) -> list[tuple[str, list[int]]]:
        """Texts with separate ids that can precede another text; the empty text if the tokenizer prepends nothing."""
        a, b, spaced = self.encode(["a", "b", " b"], markers=False)
        usable: list[tuple[str, list[int]]] = []
        if self.decode([[*a, *b], [*a, *spaced]]) == ["ab", "a b"]:
            usable.append(("", []))
        ids = self.encode(_SENTINELS, markers=False)
        texts = self.decode(ids)
        return usable + [(s, i) for s, i, text in zip(_SENTINELS, ids, texts, strict=True) if i and text == s]


def is_proper_prefix(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    """Whether ``prefix`` is a proper prefix of ``ids``."""
    return len(ids) > len(prefix) and ids[: len(prefix)] == prefix


def same_text(decoded: str, text: str) -> bool:
    """Equality, up to the Unicode normalisation of some tokenizers."""
    return decoded == text or decoded in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text))


def _prefix_ids(tokenizer: Any) -> list[int]:
    full, body = (list(tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (True, False))
    for start in range(len(full) - len(body) + 1):
        if full[start : start + len(body)] == body:
            return full[:start]
    return []
