"""Find the fields that a format does not read, and among them those that may change the prompt, the answers or the
preference.

A name is judged by its words (``"isGood"``, ``"thumbs_up"``, ``"Response 2"``), since names vary between files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from afzal.data.fields import LABELS, WORDS, Row, alternatives
from afzal.data.format import Format
from afzal.data.turns import content_text, full_text, looks_like_messages, unread_keys
from afzal.records import Item, Turns


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of field names that say, or may say, which answer is better ...
_ORDER = _words(
    "better best choice chosen label labels loser outcome preference preferred ranking rankings rejected verdict "
    "vote votes win winner worse worst"
)
# ... words that can accompany such a word without changing its meaning ...
_QUALIFIERS = _words(
    "a answer answers b final first gold human id is left majority model of output overall response responses right "
    "second the"
)
# ... words that say how good one answer is ...
_OPINION = _ORDER | _words(
    "accept accepted accuracy annotation annotations approved bad coherence correct correctness desirable dislike "
    "downvotes evaluation feedback good grade harmful harmless helpful helpfulness incorrect judgement judgment kto "
    "like liked lose negative passed positive quality rank ranks rating ratings reject reward rewards safe score "
    "scores stars success thumb thumbs toxic toxicity undesirable unsafe upvotes weight"
)
# ... words for parts of the prompt ...
_PROMPT = _words(
    "article background chat context conversation conversations dialog dialogs dialogue dialogues document documents "
    "functions history input inputs instruction instructions knowledge message messages passage persona premise "
    "prompt prompts queries query question questions request system tools turns"
)
# ... or for an answer ...
_ANSWER = _words(
    "answer answers candidate candidates choices completion completions continuation generation generations options "
    "output outputs rationale reasoning reply replies response responses solution target "
    "thinking thought thoughts"
)
# ... and words that, in last (or first) place, make a field only metadata about such a thing.
_METADATA = _words(
    "category characters chars count counts date difficulty fingerprint hash id idx ids index lang language len length "
    "lengths level metadata model models name names origin path source sources split template time timestamp tokens "
    "topic type url version"
)
_COUNT_PREFIXES = _words("expected gold judge labeling labelling len length n num number reference")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# distilabel's records of how texts were made, which repeat the prompt in the form that a model was sent
_RECORDS = _words("generation_prompt labelling_prompt distilabel_metadata")
_MIN_LENGTH = 20  # characters; a shorter text may occur inside another by chance
_LABEL_WORDS = frozenset(LABELS) - frozenset(WORDS)


class UnreadFields:
    """The unread fields of one source's rows; call :meth:`first_suspicious` for every row.

    Args:
        is_read_elsewhere: whether other code reads a field of this name, so that it is not suspicious.

    Attributes:
        names: every skipped field, in order of appearance; ``messages[].name`` for keys of messages.
    """

    def __init__(self, entry: Format, is_read_elsewhere: Callable[[str], bool] = lambda _: False) -> None:
        self.names: dict[str, None] = {}
        self._entry, self._read, self._is_read_elsewhere = entry, entry.used(), is_read_elsewhere
        self._known: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
        self._seen_keys: set[tuple[str, ...]] = set()
        self._choices = [field for field in entry.requires if "|" in field]

    def first_suspicious(self, row: Row, item: Item) -> str:
        """The first unread field of a row that may change its meaning; "" if there is none."""
        if not item.is_chat and (row.get("tools") or row.get("chat_template_kwargs")):
            return "tools" if row.get("tools") else "chat_template_kwargs"
        others, suspects = self._classified(row)
        for name in suspects:
            if not self._is_read_elsewhere(name) and self._adds_information(name, row[name], item):
                return name
        if others and self._entry.family == "plain":
            others = [name for name in others if not self._is_read_elsewhere(name)]
            return next((name for name in others if _is_label_word(row[name])), "")
        return ""

    def others(self, row: Row) -> list[str]:
        """The fields of a row that are not read."""
        return self._classified(row)[0]

    def first_suspicious_key(self, row: Row) -> str:
        """The first unread key of a message that may say how good it is; records all unread keys."""
        for name, value in row.items():
            if type(value) is list and value and type(value[0]) is dict and looks_like_messages(value):
                for entry in value:  # a message with two keys has only role and content
                    if type(entry) is dict and len(entry) > 2 and (key := self._suspicious_key(name, entry)):
                        return key
        return ""

    def _suspicious_key(self, field: str, message: Mapping[str, Any]) -> str:
        keys = (field, *message)
        if keys in self._seen_keys:
            return ""
        self._seen_keys.add(keys)
        unread = unread_keys(message)
        self.names |= dict.fromkeys(f"{field}[].{key}" for key in unread)
        opinions = (key for key in unread if self._entry.family == "plain" and _OPINION.intersection(words_of(key)))
        return next((f"{field}[].{key}" for key in opinions), "")

    def _classified(self, row: Row) -> tuple[list[str], list[str]]:
        keys = tuple(row)
        classes = self._known.get(keys)
        if classes is None:
            classes = self._known[keys] = self._classify(keys)
        return classes

    def _classify(self, keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """(unread fields, those among them that may change the meaning) for rows with these keys."""
        rivals = [name for field in self._choices for name in _rivals(field, keys, self._entry.optional)]
        read_names = self._read.union(self._entry.also(keys))
        others = [name for name in keys if name not in read_names] + rivals
        self.names |= dict.fromkeys(others)
        return others, [name for name in others if suspicious(name, self._entry)]

    def _adds_information(self, name: str, value: Any, item: Item) -> bool:
        """Whether a value says something that is not already in the item."""
        if value is None or value != value or (isinstance(value, str | list | tuple | Mapping) and not value):
            return False
        words = set(words_of(name))
        if words == {"weight"} and value == 1:
            return False
        if not words & _OPINION and not isinstance(value, str | list | tuple | Mapping):
            return False
        if isinstance(value, str) and not value.strip():
            return False
        return not _is_in_item(value, item)


def suspicious(name: str, entry: Format) -> bool:
    """Whether a field of this name may change what rows of a format mean."""
    row = words_of(name)
    words = set(row)
    if name in _RECORDS:
        return False
    if words & _ORDER and words <= _ORDER | _QUALIFIERS:
        return True
    if not row or row[-1] in _METADATA or row[0] in _COUNT_PREFIXES:
        return False
    if words & _PROMPT:
        return True
    if entry.family != "plain":
        return False
    return bool(words & _ANSWER) or (bool(words & _OPINION) and entry.name != "prompts")


def may_be_prompt(name: str) -> bool:
    """Whether a field of this name may be part of the prompt."""
    return bool(_PROMPT.intersection(words_of(name)))


def words_of(name: str) -> list[str]:
    """The words of a field's name: ``"thumbs_up"``, ``"thumbsUp"`` and ``"Thumbs up 1"`` all give thumbs, up."""
    return [word.lower() for word in _WORD.findall(name)]


def _rivals(field: str, keys: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    """The fields of ``"a|b|c"`` that are present but not read, because an earlier one is."""
    present = [name for name in alternatives(field) if name in keys]
    return [name for name in present[1:] if name not in optional]


def _is_label_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 20 and value.strip().lower() in _LABEL_WORDS


def _is_in_item(value: Any, item: Item) -> bool:
    """Whether all texts of a value are already in the item."""
    texts = list(_texts(value))
    if not texts:
        return False
    turns = [item.prompt, *(response.turns for response in item.responses)]
    units = {unit.strip() for part in turns for unit in _units(part)}
    item_text = "\n".join(map(full_text, turns))
    return all(text.strip() in units or (len(text) >= _MIN_LENGTH and text.strip() in item_text) for text in texts)


def _units(turns: Turns) -> list[str]:
    return [turns] if isinstance(turns, str) else [content_text(m.content) for m in turns]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, Mapping):
        content = value.get("content", value.get("value")) if looks_like_messages(value) else list(value.values())
        yield from _texts([part.get("text") for part in content if isinstance(part, Mapping)] or content)
