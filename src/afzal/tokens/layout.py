"""What of an item is prompt, what is scored and what is not, still as text.

A :class:`Segment` is a run of text that is scored as a whole or not at all; a branch is a list of them. Its text comes
in :class:`Chunk` pieces, because special tokens count as such in a template's own text but never in a person's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.media import Media
from afzal.records import Item, Message, Turns, template_fields, turns_to_json
from afzal.tokens.answers import THOUGHT_TAG, earlier_turn, last_turn, left_out, opening_of
from afzal.tokens.media import MediaReader, texts_of
from afzal.tokens.template import Call, Renderer, TurnError

_PRIVATE = range(0xE000, 0xF8FF)
_CONTINUE = "continue_final_message"  # the name that transformers gives it
_BEGUN = (
    "the prompt ends with a turn of the assistant; if the answer continues that turn, say so in the row: "
    f'"chat_template_kwargs": {{"{_CONTINUE}": true}}'
)
_TEXTS_OF_PEOPLE = ("tools", "documents")  # options of a template that hold texts


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
    """An item as text: its prompt, and one list of segments (or the reason why there is none) per response.

    ``remarks`` say what the template does to the conversation (:mod:`afzal.tokens.answers`); ``media`` are the images
    and sounds of the prompt, in the order of their tokens.
    """

    prompt: tuple[Chunk, ...]
    branches: tuple[Branch, ...]
    remarks: tuple[str, ...] = ()
    media: tuple[Media, ...] = ()


def text_layout(item: Item) -> Layout:
    """A prompt continued verbatim: every character of a response is scored, no spelled-out marker is special."""
    assert isinstance(item.prompt, str)
    return Layout((_plain(item.prompt),), tuple(_text_branch(r.turns) for r in item.responses))


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of an item as its template will see them: plain texts, and stand-ins for special tokens.

    Attributes:
        asked: the prompt, without a turn of the assistant that it only begins.
        begun: that turn, which the answers continue.
        responses: the messages up to the last answer, or the reason why there are none.
        options: what the row says to its template.
    """

    asked: tuple[Message, ...]
    begun: Message | None
    responses: tuple[tuple[Message, ...] | TurnError, ...]
    options: Mapping[str, Any]
    shield: _Shield

    def prompt(self) -> Call:
        """What to render for the prompt."""
        return ((*self.asked, self.begun), False) if self.begun else (self.asked, True)

    def calls(self) -> list[tuple[Call, Mapping[str, Any]]]:
        """All that must be rendered for the layout, each with its options."""
        calls = [self.prompt()]
        for response in self.responses:
            if not isinstance(response, TurnError):
                turns = self.joined(response)
                calls += [(turns[:k], True) for k in _answers(turns, len(self.asked) + 1)]
                calls.append((turns, False))
        return [(call, self.options) for call in calls]

    def joined(self, response: Sequence[Message]) -> tuple[Message, ...]:
        """Prompt and response, with a begun turn and its continuation as one message."""
        if self.begun is None:
            return (*self.asked, *response)
        first = response[0]
        content, thoughts = f"{self.begun.content}{first.content}", self.begun.reasoning + first.reasoning
        return (*self.asked, Message(first.role, content, thoughts), *response[1:])


def conversation(item: Item, specials: re.Pattern[str] | None) -> Conversation:
    """The item's messages, ready for a template.

    Raises:
        TurnError: the prompt holds text that cannot be encoded, or it ends with a turn of the assistant and the row
            does not say that the answers continue it.
    """
    prompt, options = _flat(item.prompt), template_options(item)
    continues = options.pop(_CONTINUE, False)
    responses = [_caught(_response, r.turns) for r in item.responses]
    said = [m for r in responses if not isinstance(r, TurnError) for m in r]
    shield = _Shield([*prompt, *said], options, specials)
    asked, begun = shield.hide(prompt), None
    if asked and asked[-1].role == "assistant":
        begun = asked[-1] if asked[-1].content or asked[-1].reasoning else None
        if begun and not continues:
            raise TurnError("begun_turn", _BEGUN)
        if begun and not isinstance(begun.content, str):
            raise TurnError("media_in_response", "images and sounds may not stand in a turn that answers continue")
        asked = asked[:-1]
    hidden = tuple(r if isinstance(r, TurnError) else shield.hide(r) for r in responses)
    return Conversation(asked, begun, hidden, shield.hide_options(options), shield)


def chat_layout(talk: Conversation, renderer: Renderer, reader: MediaReader | None = None) -> Layout:
    """A conversation: the rendered prompt with its generation prompt, and per response the turns that follow it.

    Args:
        reader: writes the tokens of images and sounds where the template marks them; None for models of texts.

    A turn of the assistant that the prompt begins is continued there: it is neither closed nor opened again.

    Raises:
        TurnError: the prompt cannot be rendered.
    """
    shown = tuple(part for m in talk.prompt()[0] if not isinstance(m.content, str) for part in m.content)
    media = tuple(part for part in shown if isinstance(part, Media))
    if media and reader is None:
        raise TurnError("media_not_supported", "the model reads texts alone: there is no processor in its folder")
    before = renderer.text(talk.prompt(), talk.options)
    if talk.begun is not None:
        before = opening_of(talk.begun, before, renderer.ending)
    remarks = [*left_out(_spoken(talk.prompt()[0]), before), *_unread(talk, before, renderer)]
    branches: list[Branch] = []
    for response in talk.responses:
        made = response if isinstance(response, TurnError) else _caught(_chat_branch, talk, before, response, renderer)
        if isinstance(made, TurnError):
            branches.append(made)
        else:
            branches.append(made[0])
            remarks += made[1]
    prompt = before if reader is None else reader.expand(before, media)
    return Layout(talk.shield.chunks(prompt), tuple(branches), tuple(dict.fromkeys(remarks)), media)


def template_options(item: Item) -> dict[str, Any]:
    """What the source row says to its template: ``tools`` and ``chat_template_kwargs``."""
    stated = template_fields(item)
    options = stated.pop("chat_template_kwargs", {})
    if not isinstance(options, Mapping):
        raise TurnError("template_refused", "chat_template_kwargs must be an object")
    return {**options, **stated}


def distinct_prompts(items: Iterable[Item], columns: Sequence[str] = ()) -> list[Item]:
    """The different prompts among items, as items without responses; what rows say to their template counts too.

    Args:
        columns: that count too, since a function is given them: one prompt with two answer keys is two questions.
    """
    found: dict[Any, Item] = {}
    for item in items:
        about = [turns_to_json(item.prompt), template_fields(item), *({c: item.extra.get(c)} for c in columns)]
        key = json.dumps(about, sort_keys=True, default=str)
        found.setdefault(key, replace(item, responses=(), votes=()))
    return list(found.values())


def mentions(item: Item, specials: re.Pattern[str]) -> bool:
    """Whether a text of the item spells a special token."""
    turns = [item.prompt, *(r.turns for r in item.responses)]
    texts = [t for t in turns if isinstance(t, str)]
    texts += [text for t in turns if not isinstance(t, str) for m in t for text in _typed(m)]
    return any(specials.search(text) for text in texts)


def _typed(message: Message) -> list[str]:
    """The texts of a message without the tags that an assistant puts around its thoughts."""
    words = _words(message)
    return [THOUGHT_TAG.sub("", text) for text in words] if message.role == "assistant" else words


class _Shield:
    """Stand-ins for the special tokens that people spelled out, so that what the template writes is known as its own.

    While a template runs, each such spelling is one private-use character that occurs nowhere else in the conversation.
    """

    def __init__(
        self, messages: Sequence[Message], options: Mapping[str, Any], specials: re.Pattern[str] | None
    ) -> None:
        texts = [text for m in messages for text in _words(m)]
        texts += [text for name in _TEXTS_OF_PEOPLE if name in options for text in _texts(options[name])]
        spelled = (
            sorted({s for text in texts for s in specials.findall(text)}, key=len, reverse=True) if specials else []
        )
        used = set("".join(texts)) if spelled else set()
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self.stand_ins = dict(zip(spelled, free, strict=False))
        self.spelled = {mark: text for text, mark in self.stand_ins.items()}
        self.specials = specials

    def hide(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if not self.stand_ins:
            return tuple(messages)
        return tuple(Message(m.role, self._content(m), self._hidden(m.reasoning)) for m in messages)

    def _content(self, message: Message) -> Any:
        """The content with its stand-ins; tags around an assistant's thoughts are what the model itself would write."""
        hidden = self._hidden(message.content)
        if message.role != "assistant" or not isinstance(hidden, str):
            return hidden
        for mark, spelled in self.spelled.items():
            if THOUGHT_TAG.fullmatch(spelled):
                hidden = hidden.replace(mark, spelled)
        return hidden

    def hide_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options with the tools and documents that people described; the others are switches of the template."""
        if not self.stand_ins:
            return options
        return {k: self._hidden(v) if k in _TEXTS_OF_PEOPLE else v for k, v in options.items()}

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            assert self.specials is not None
            return self.specials.sub(lambda spelled: self.stand_ins[spelled.group()], value)
        if isinstance(value, Mapping):
            return {key: self._hidden(v) for key, v in value.items()}
        return type(value)(self._hidden(v) for v in value) if isinstance(value, list | tuple) else value

    def chunks(self, text: str) -> tuple[Chunk, ...]:
        """The text with every spelling back in place, marked as no special token."""
        if not self.spelled:
            return (Chunk(text, True),) if text else ()
        parts = re.split(f"([{''.join(self.spelled)}])", text)
        return tuple(_plain(self.spelled[p]) if p in self.spelled else Chunk(p, True) for p in parts if p)


def _words(message: Message) -> list[str]:
    return [message.reasoning, *texts_of(message.content)]


def _spoken(messages: Sequence[Message]) -> list[Message]:
    """Messages without media: one for each text of a message that has some."""
    return [replace(m, content=text) for m in messages for text in texts_of(m.content)]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings, without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _unread(talk: Conversation, before: str, renderer: Renderer) -> Iterator[str]:
    """Remarks on options of the row that the template does not use."""
    tools = talk.options.get("tools")
    if isinstance(tools, list) and tools:
        functions = [tool.get("function", tool) for tool in tools if isinstance(tool, Mapping)]
        names = [str(f["name"]) for f in functions if isinstance(f, Mapping) and f.get("name")]
        if not any(name in before for name in names):
            yield "tools_left_out"
    for name in talk.options:
        if name != "tools" and name not in renderer.template:
            yield f"option_unread:{name}"


def _response(turns: Turns) -> tuple[Message, ...]:
    """The messages of a response up to its last answer."""
    messages = _flat(turns)
    if any(not isinstance(m.content, str) for m in messages):
        raise TurnError("media_in_response", "images and sounds may stand in prompts only")
    answers = _answers(messages, 0)
    if not answers or answers[0] != 0:
        raise TurnError("no_assistant_turn", "a response begins with the assistant's own turn")
    if not any(messages[k].content for k in answers):
        raise TurnError("empty_response")
    return messages[: answers[-1] + 1]


def _answers(messages: Sequence[Message], start: int) -> list[int]:
    """Places of the assistant's messages from ``start`` on."""
    return [k for k, m in enumerate(messages) if m.role == "assistant" and k >= start]


def _chat_branch(
    talk: Conversation, before: str, response: Sequence[Message], renderer: Renderer
) -> tuple[tuple[Segment, ...], list[str]]:
    """Segments of one response, the assistant's turns (with their end marker) scored, and remarks."""
    turns, first = talk.joined(response), len(talk.asked)
    answers = _answers(turns, first)
    opened = {k: before if k == first else renderer.prompt(turns[:k], talk.options) for k in answers}
    written, pieces, remarks = before, [], []
    for k, following in zip(answers, [*answers[1:], None], strict=True):
        if not opened[k].startswith(written):
            raise TurnError("template_not_prefix", f"turn {k - first} is rendered differently when another follows it")
        said = response[0] if k == first else turns[k]  # without the beginning that the prompt holds already
        if following is None:
            whole = renderer.whole(turns, talk.options)
            made = last_turn(opened[k], whole, said, renderer.ending, renderer.knows)
        else:
            made = earlier_turn(opened[k], opened[following], said, renderer.ending)
        pieces += [(opened[k][len(written) :], False), *made.pieces]
        remarks += made.remarks
        written = opened[k] + made.text
    remarks += left_out([m for m in turns[first + 1 :] if m.role != "assistant"], written[len(before) :])
    if not any(text.removesuffix(renderer.ending.text) for text, scored in pieces if scored):
        raise TurnError("empty_response")
    return tuple(Segment(talk.shield.chunks(text), scored) for text, scored in pieces if text), remarks


def _flat(turns: Turns) -> tuple[Message, ...]:
    """Messages with plain text, typed text parts joined; with media, the content is a tuple of texts and media."""
    if isinstance(turns, str):
        raise TurnError("mixed_kinds", "a text among conversations")
    return tuple(Message(m.role, _flat_content(m), _encodable(m.reasoning)) for m in turns)


def _flat_content(message: Message) -> Any:
    if isinstance(message.content, str):
        return _encodable(message.content)
    parts = [part["media"] if isinstance(part.get("media"), Media) else part for part in message.content]
    kinds = {str(part.get("type")) for part in parts if not isinstance(part, Media)} - {"text"}
    if kinds:
        raise TurnError("media_not_supported", ", ".join(sorted(kinds)))
    flat = [part if isinstance(part, Media) else _encodable(str(part.get("text", ""))) for part in parts]
    return tuple(flat) if any(isinstance(part, Media) for part in flat) else "".join(map(str, flat))


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
