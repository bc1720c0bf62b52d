"""Divide an item, still as text, into its prompt, scored and unscored segments.

A :class:`Segment` is a run of text that is scored completely or not at all; a branch is a list of segments. The text
comes in :class:`Chunk` pieces, because special tokens count as such in a template's text but never in a person's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.media import Media
from afzal.records import Item, Message, Turns, template_fields, turns_to_json
from afzal.tokens.assistant_turns import THOUGHT_TAG, earlier_turn, last_turn, left_out, opening_of
from afzal.tokens.media import MediaReader, texts_of
from afzal.tokens.template import Call, Renderer, TurnError

_PRIVATE = range(0xE000, 0xF8FF)
_CONTINUE = "continue_final_message"  # named as in transformers
_BEGUN = (
    "the prompt ends with a turn of the assistant; if the answer continues that turn, say so in the row: "
    f'"chat_template_kwargs": {{"{_CONTINUE}": true}}'
)
_TEXTS_OF_PEOPLE = ("tools", "documents")  # template options that contain texts


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text; ``markers``: whether special tokens spelled out in it count as such."""

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
    """An item as text: its prompt, and per response a list of segments or the reason why there is none.

    ``remarks`` name the template's changes to the conversation (:mod:`afzal.tokens.assistant_turns`). ``media`` are the
    images and sounds of the prompt, in token order.
    """

    prompt: tuple[Chunk, ...]
    branches: tuple[Branch, ...]
    remarks: tuple[str, ...] = ()
    media: tuple[Media, ...] = ()


def text_layout(item: Item) -> Layout:
    """Lay out a prompt that is continued verbatim: every character of a response is scored, and no spelled-out marker
    is special."""
    assert isinstance(item.prompt, str)
    return Layout((_plain(item.prompt),), tuple(_text_branch(r.turns) for r in item.responses))


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of an item as its template sees them: plain texts, with placeholders for special tokens.

    Attributes:
        prompt: the prompt, without an assistant turn that it begins.
        begun: that turn, which the answers continue.
        responses: per response the messages up to its last answer, or the reason why there are none.
        options: the row's template options.
    """

    prompt: tuple[Message, ...]
    begun: Message | None
    responses: tuple[tuple[Message, ...] | TurnError, ...]
    options: Mapping[str, Any]
    shield: _Shield

    def prompt_call(self) -> Call:
        """The call that renders the prompt."""
        return ((*self.prompt, self.begun), False) if self.begun else (self.prompt, True)

    def calls(self) -> list[tuple[Call, Mapping[str, Any]]]:
        """All renderings that the layout needs, each with its options."""
        calls = [self.prompt_call()]
        for response in self.responses:
            if not isinstance(response, TurnError):
                turns = self.joined(response)
                calls += [(turns[:k], True) for k in _answers(turns, len(self.prompt) + 1)]
                calls.append((turns, False))
        return [(call, self.options) for call in calls]

    def joined(self, response: Sequence[Message]) -> tuple[Message, ...]:
        """Prompt and response, with a begun turn and its continuation merged into one message."""
        if self.begun is None:
            return (*self.prompt, *response)
        first = response[0]
        content, thoughts = f"{self.begun.content}{first.content}", self.begun.reasoning + first.reasoning
        return (*self.prompt, Message(first.role, content, thoughts), *response[1:])


def conversation(item: Item, specials: re.Pattern[str] | None) -> Conversation:
    """The item's messages, prepared for a template.

    Raises:
        TurnError: the prompt contains text that cannot be encoded, or it ends with an assistant turn and the row does
            not say that the answers continue it.
    """
    prompt, options = _flat(item.prompt), template_options(item)
    continues = options.pop(_CONTINUE, False)
    responses = [_caught(_response, r.turns) for r in item.responses]
    response_messages = [m for r in responses if not isinstance(r, TurnError) for m in r]
    shield = _Shield([*prompt, *response_messages], options, specials)
    prompt_messages, begun = shield.hide(prompt), None
    if prompt_messages and prompt_messages[-1].role == "assistant":
        begun = prompt_messages[-1] if prompt_messages[-1].content or prompt_messages[-1].reasoning else None
        if begun and not continues:
            raise TurnError("begun_turn", _BEGUN)
        if begun and not isinstance(begun.content, str):
            raise TurnError("media_in_response", "a turn that answers continue cannot contain images or sounds")
        prompt_messages = prompt_messages[:-1]
    hidden = tuple(r if isinstance(r, TurnError) else shield.hide(r) for r in responses)
    return Conversation(prompt_messages, begun, hidden, shield.hide_options(options), shield)


def chat_layout(talk: Conversation, renderer: Renderer, reader: MediaReader | None = None) -> Layout:
    """Lay out a conversation: the rendered prompt with its generation prompt, and per response the turns after it.

    Args:
        reader: inserts the tokens of images and sounds at the template's markers; None for text-only models.

    An assistant turn that the prompt begins is continued in place: it is neither closed nor opened again.

    Raises:
        TurnError: the prompt cannot be rendered.
    """
    parts = tuple(part for m in talk.prompt_call()[0] if not isinstance(m.content, str) for part in m.content)
    media = tuple(part for part in parts if isinstance(part, Media))
    if media and reader is None:
        raise TurnError("media_not_supported", "the model reads only text: its folder has no processor")
    before = renderer.text(talk.prompt_call(), talk.options)
    if talk.begun is not None:
        before = opening_of(talk.begun, before, renderer.ending)
    remarks = [*left_out(_spoken(talk.prompt_call()[0]), before), *_unread(talk, before, renderer)]
    branches: list[Branch] = []
    for response in talk.responses:
        result = (
            response if isinstance(response, TurnError) else _caught(_chat_branch, talk, before, response, renderer)
        )
        if isinstance(result, TurnError):
            branches.append(result)
        else:
            branches.append(result[0])
            remarks += result[1]
    prompt = before if reader is None else reader.expand(before, media)
    return Layout(talk.shield.chunks(prompt), tuple(branches), tuple(dict.fromkeys(remarks)), media)


def template_options(item: Item) -> dict[str, Any]:
    """The source row's template options: ``tools`` and ``chat_template_kwargs``."""
    stated = template_fields(item)
    options = stated.pop("chat_template_kwargs", {})
    if not isinstance(options, Mapping):
        raise TurnError("template_refused", "chat_template_kwargs must be an object")
    return {**options, **stated}


def distinct_prompts(items: Iterable[Item], columns: Sequence[str] = ()) -> list[Item]:
    """The distinct prompts of items, as items without responses. Prompts with different template options are distinct.

    Args:
        columns: fields whose values also make prompts distinct, since a function receives them: one prompt with two
            answer keys is two questions.
    """
    distinct: dict[Any, Item] = {}
    for item in items:
        parts = [turns_to_json(item.prompt), template_fields(item), *({c: item.extra.get(c)} for c in columns)]
        key = json.dumps(parts, sort_keys=True, default=str)
        distinct.setdefault(key, replace(item, responses=(), votes=()))
    return list(distinct.values())


def mentions(item: Item, specials: re.Pattern[str]) -> bool:
    """Whether a text of the item spells a special token."""
    turns = [item.prompt, *(r.turns for r in item.responses)]
    texts = [t for t in turns if isinstance(t, str)]
    texts += [text for t in turns if not isinstance(t, str) for m in t for text in _typed(m)]
    return any(specials.search(text) for text in texts)


def _typed(message: Message) -> list[str]:
    """The texts of a message without an assistant's tags around its thoughts."""
    words = _words(message)
    return [THOUGHT_TAG.sub("", text) for text in words] if message.role == "assistant" else words


class _Shield:
    """Placeholders for special tokens that people spelled out, which keep them apart from those that the template
    writes.

    While a template runs, each such spelling is replaced by a private-use character that occurs nowhere else in the
    conversation.
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
        """The content with placeholders. Tags around an assistant's thoughts stay, since the model itself would write
        them."""
        hidden = self._hidden(message.content)
        if message.role != "assistant" or not isinstance(hidden, str):
            return hidden
        for mark, spelled in self.spelled.items():
            if THOUGHT_TAG.fullmatch(spelled):
                hidden = hidden.replace(mark, spelled)
        return hidden

    def hide_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options with placeholders in tools and documents, whose texts people wrote; other options are
        switches."""
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
        """The text with the original spellings restored, as chunks without special tokens."""
        if not self.spelled:
            return (Chunk(text, True),) if text else ()
        parts = re.split(f"([{''.join(self.spelled)}])", text)
        return tuple(_plain(self.spelled[p]) if p in self.spelled else Chunk(p, True) for p in parts if p)


def _words(message: Message) -> list[str]:
    return [message.reasoning, *texts_of(message.content)]


def _spoken(messages: Sequence[Message]) -> list[Message]:
    """Messages without media: one per text part."""
    return [replace(m, content=text) for m in messages for text in texts_of(m.content)]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings, without field names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _unread(talk: Conversation, before: str, renderer: Renderer) -> Iterator[str]:
    """Remarks on the row's options that the template does not use."""
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
        raise TurnError("media_in_response", "only prompts can contain images and sounds")
    answers = _answers(messages, 0)
    if not answers or answers[0] != 0:
        raise TurnError("no_assistant_turn", "a response must begin with an assistant turn")
    if not any(messages[k].content for k in answers):
        raise TurnError("empty_response")
    return messages[: answers[-1] + 1]


def _answers(messages: Sequence[Message], start: int) -> list[int]:
    """Indices of the assistant's messages from ``start`` on."""
    return [k for k, m in enumerate(messages) if m.role == "assistant" and k >= start]


def _chat_branch(
    talk: Conversation, before: str, response: Sequence[Message], renderer: Renderer
) -> tuple[tuple[Segment, ...], list[str]]:
    """Segments of one response, in which the assistant's turns (with their end markers) are scored, and remarks."""
    turns, first = talk.joined(response), len(talk.prompt)
    answers = _answers(turns, first)
    opened = {k: before if k == first else renderer.prompt(turns[:k], talk.options) for k in answers}
    text_so_far, pieces, remarks = before, [], []
    for k, following in zip(answers, [*answers[1:], None], strict=True):
        if not opened[k].startswith(text_so_far):
            raise TurnError("template_not_prefix", f"turn {k - first} is rendered differently when another follows it")
        message = response[0] if k == first else turns[k]  # without the part that the prompt begins
        if following is None:
            finished = renderer.full_text(turns, talk.options)
            turn = last_turn(opened[k], finished, message, renderer.ending, renderer.contains)
        else:
            turn = earlier_turn(opened[k], opened[following], message, renderer.ending)
        pieces += [(opened[k][len(text_so_far) :], False), *turn.pieces]
        remarks += turn.remarks
        text_so_far = opened[k] + turn.text
    remarks += left_out([m for m in turns[first + 1 :] if m.role != "assistant"], text_so_far[len(before) :])
    if not any(text.removesuffix(renderer.ending.text) for text, scored in pieces if scored):
        raise TurnError("empty_response")
    return tuple(Segment(talk.shield.chunks(text), scored) for text, scored in pieces if text), remarks


def _flat(turns: Turns) -> tuple[Message, ...]:
    """Messages with plain text, typed text parts joined. With media, the content is a tuple of texts and media."""
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
    """The text; refuses a lone surrogate, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TurnError("bad_unicode", f"a lone surrogate at character {error.start}") from error
    return text


def _caught(function: Any, *arguments: Any) -> Any:
    """The function's result, or the TurnError that it raises."""
    try:
        return function(*arguments)
    except TurnError as error:
        return error
