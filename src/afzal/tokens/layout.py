"""What of an item is prompt, what is scored and what is not, still as text.

A :class:`Segment` is a run of text that is scored as a whole or not at all; a branch is a list of them. Its text comes
in :class:`Chunk` pieces, because special tokens count as such in a template's own text but never in a person's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afzal.records import Item, Message, Turns
from afzal.tokens.template import Renderer, TurnError

_PRIVATE = range(0xE000, 0xF8FF)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text; ``markers`` says whether special tokens spelled out in it are meant as such."""

    text: str
    markers: bool


@dataclass(frozen=True, slots=True)
class Segment:
    chunks: tuple[Chunk, ...]
    scored: bool

    @property
    def text(self) -> str:
        return "".join(c.text for c in self.chunks)


Branch = tuple[Segment, ...] | TurnError


@dataclass(frozen=True, slots=True)
class Layout:
    """An item as text: its prompt, and one list of segments (or the reason why there is none) per response."""

    prompt: tuple[Chunk, ...]
    branches: tuple[Branch, ...]


def text_layout(item: Item) -> Layout:
    """A prompt continued verbatim: every character of a response is scored, no spelled-out marker is special."""
    assert isinstance(item.prompt, str)
    return Layout((_plain(item.prompt),), tuple(_text_branch(r.turns) for r in item.responses))


def chat_layout(item: Item, renderer: Renderer, specials: re.Pattern[str] | None) -> Layout:
    """A conversation: the rendered prompt with its generation prompt, and per response the turns that follow it.

    Raises:
        TurnError: the prompt cannot be rendered.
    """
    options = template_options(item)
    prompt = _flat(item.prompt)
    responses = [_caught(_flat, r.turns) for r in item.responses]
    everything = [*prompt, *(m for r in responses if not isinstance(r, TurnError) for m in r)]
    shield = _Shield(everything, specials)
    asked = shield.hide(prompt)
    before = renderer.prompt(asked, options)
    branches: list[Branch] = []
    for response in responses:
        if isinstance(response, TurnError):
            branches.append(response)
        else:
            branches.append(_caught(_chat_branch, asked, before, shield.hide(response), renderer, options, shield))
    return Layout(shield.chunks(before), tuple(branches))


def prompt_chunks(turns: Turns, renderer: Renderer, specials: re.Pattern[str] | None) -> tuple[Chunk, ...]:
    """A prompt alone, as generation sees it; equal to the prompt of the layout."""
    if isinstance(turns, str):
        return (_plain(turns),)
    return chat_layout(Item("", turns, ()), renderer, specials).prompt


def template_options(item: Item) -> dict[str, Any]:
    """What the source row says to its template: ``tools`` and ``chat_template_kwargs``."""
    options = dict(item.extra.get("chat_template_kwargs") or {})
    if item.extra.get("tools"):
        options["tools"] = item.extra["tools"]
    return options


def mentions(item: Item, specials: re.Pattern[str]) -> bool:
    """Whether a text of the item spells a special token."""
    turns = [item.prompt, *(r.turns for r in item.responses)]
    texts = [t for t in turns if isinstance(t, str)]
    texts += [m.content for t in turns if not isinstance(t, str) for m in t if isinstance(m.content, str)]
    return any(specials.search(text) for text in texts)


class _Shield:
    """Stand-ins for the special tokens that people spelled out, so that what the template writes is known as its own.

    While a template runs, each such spelling is one private-use character that occurs nowhere else in the conversation.
    """

    def __init__(self, messages: Sequence[Message], specials: re.Pattern[str] | None) -> None:
        texts = [text for m in messages for text in (m.reasoning, m.content) if isinstance(text, str)]
        spelled = (
            sorted({s for text in texts for s in specials.findall(text)}, key=len, reverse=True) if specials else []
        )
        used = set("".join(texts)) if spelled else set()
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self.stand_ins = dict(zip(spelled, free, strict=False))
        self.spelled = {mark: text for text, mark in self.stand_ins.items()}
        self.specials = specials

    def hide(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if not self.stand_ins or self.specials is None:
            return tuple(messages)
        return tuple(Message(m.role, self._hidden(str(m.content)), self._hidden(m.reasoning)) for m in messages)

    def _hidden(self, text: str) -> str:
        assert self.specials is not None
        return self.specials.sub(lambda spelled: self.stand_ins[spelled.group()], text)

    def chunks(self, text: str) -> tuple[Chunk, ...]:
        """The text with every spelling back in place, marked as no special token."""
        if not self.spelled:
            return (Chunk(text, True),) if text else ()
        parts = re.split(f"([{''.join(self.spelled)}])", text)
        return tuple(_plain(self.spelled[p]) if p in self.spelled else Chunk(p, True) for p in parts if p)


def _chat_branch(
    asked: Sequence[Message],
    before: str,
    response: Sequence[Message],
    renderer: Renderer,
    options: Mapping[str, Any],
    shield: _Shield,
) -> tuple[Segment, ...]:
    """Segments of one response, the assistant's turns (with their end marker) scored."""
    answers = [k for k, m in enumerate(response) if m.role == "assistant"]
    if not answers or answers[0] != 0:
        raise TurnError("no_assistant_turn", "a response begins with the assistant's own turn")
    if not any(response[k].content for k in answers):
        raise TurnError("empty_response")
    whole = renderer.whole([*asked, *response], options)
    segments: list[Segment] = []
    at = len(before)
    for k in answers:
        start, end = _turn(asked, before, response, k, whole, renderer, options)
        if start > at:
            segments.append(Segment(shield.chunks(whole[at:start]), False))
        segments.append(Segment(shield.chunks(whole[start:end]), True))
        at = end
    marker = renderer.end_of_turn or ""
    if not any(s.scored and s.text.removesuffix(marker) for s in segments):
        raise TurnError("empty_response")
    return tuple(s for s in segments if s.chunks)


def _turn(
    asked: Sequence[Message],
    before: str,
    response: Sequence[Message],
    k: int,
    whole: str,
    renderer: Renderer,
    options: Mapping[str, Any],
) -> tuple[int, int]:
    """Where in ``whole`` the assistant's turn ``k`` starts and ends; it starts where its generation prompt ends."""
    opened = before if k == 0 else renderer.prompt([*asked, *response[:k]], options)
    if not whole.startswith(opened):
        raise TurnError("template_not_prefix", f"after the generation prompt of turn {k}")
    last = k == len(response) - 1
    closed = whole if last else renderer.whole([*asked, *response[: k + 1]], options)
    common = len(whole) if last else _common(closed, whole)
    if renderer.end_of_turn is not None:
        found = whole.find(renderer.end_of_turn, len(opened), common)
        if found < 0:
            raise TurnError("template_not_prefix", f"turn {k} is rendered otherwise when another follows it")
        return len(opened), found + len(renderer.end_of_turn)
    if common < len(closed):
        raise TurnError("template_not_prefix", f"turn {k} is rendered otherwise when another follows it")
    return len(opened), max(len(opened), common - renderer.padding)


def _common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])


def _flat(turns: Turns) -> tuple[Message, ...]:
    """Messages with plain text; typed text parts are joined."""
    if isinstance(turns, str):
        raise TurnError("mixed_kinds", "a text among conversations")
    return tuple(Message(m.role, _flat_content(m), _encodable(m.reasoning)) for m in turns)


def _flat_content(message: Message) -> str:
    if isinstance(message.content, str):
        return _encodable(message.content)
    kinds = [str(part.get("type")) for part in message.content]
    if any(kind != "text" for kind in kinds):
        raise TurnError("media_not_supported", ", ".join(sorted({k for k in kinds if k != "text"})))
    return _encodable("".join(str(part.get("text", "")) for part in message.content))


def _text_branch(turns: Turns) -> Branch:
    if not isinstance(turns, str):
        return TurnError("mixed_kinds", "a conversation among texts")
    if not turns:
        return TurnError("empty_response")
    text = _caught(_encodable, turns)
    return text if isinstance(text, TurnError) else (Segment((_plain(text),), True),)


def _plain(text: str) -> Chunk:
    return Chunk(_encodable(text), False)


def _encodable(text: str) -> str:
    """The text, unless it holds half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TurnError("bad_unicode", f"a lone surrogate at character {error.start}") from error
    return text


def _caught(function: Any, *arguments: Any) -> Any:
    """The result, or the TurnError instead of raising it."""
    try:
        return function(*arguments)
    except TurnError as error:
        return error
