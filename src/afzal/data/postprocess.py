"""Finish parsed items of any format: add the row's system message, make messages plain, read template options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from afzal.data.fields import Row, RowError, UnusableError, alternatives, name_of, text
from afzal.data.format import SYSTEM
from afzal.data.turns import WeightedMessage, answer_text, assistant_turn, chat_prompt, content_text, unmarked
from afzal.records import Item, Message, Response, Turns

_SYSTEM = alternatives(SYSTEM)


def has_content(turns: Turns) -> bool:
    """Whether an answer contains words, thoughts or media."""
    if isinstance(turns, str):
        return not turns.isspace() and turns != ""
    return bool(answer_text(turns).strip()) or any(m.reasoning.strip() for m in turns)


def has_system(row: Row) -> bool:
    """Whether the row has a non-empty system message."""
    name = "" if row.keys().isdisjoint(_SYSTEM) else name_of(row, SYSTEM)
    return bool(name) and isinstance(row[name], str) and row[name].strip() != ""


def system_of(row: Row) -> str:
    """The row's system message; "" if it has none."""
    if row.keys().isdisjoint(_SYSTEM):
        return ""
    name = name_of(row, SYSTEM)
    return text(row, name) if name and row[name] != "" else ""


def with_system(item: Item, row: Row) -> Item:
    """The item as a conversation that begins with the row's system message.

    Raises:
        RowError: the conversation begins with a different one.
    """
    system = system_of(row)
    if isinstance(item.prompt, str):
        return as_conversation(item, system)
    if not system.strip():
        return item
    if item.prompt and item.prompt[0].role == "system":
        if content_text(item.prompt[0].content).strip() != system.strip():
            raise RowError("bad_value", name_of(row, SYSTEM), "differs from the system message of the conversation")
        return item
    return replace(item, prompt=(Message("system", system), *item.prompt))


def as_conversation(item: Item, system: str = "") -> Item:
    """The item as a conversation: a text prompt becomes the user's turn, and text answers the assistant's."""
    if not isinstance(item.prompt, str):
        return item
    answers = [
        Response(assistant_turn(r.turns) if isinstance(r.turns, str) else r.turns, r.source) for r in item.responses
    ]
    return replace(item, prompt=chat_prompt(item.prompt, system=system), responses=tuple(answers))


def without_marks(item: Item) -> Item:
    """The item with plain messages.

    Raises:
        UnusableError: an answer is marked as not to be learned, or only partly.
    """
    if isinstance(item.prompt, str):
        return item
    if not (_has_marks(item.prompt) or any(_has_marks(response.turns) for response in item.responses)):
        return item
    for response in item.responses:
        for turn in response.turns:
            if isinstance(turn, WeightedMessage) and turn.role == "assistant" and turn.learned != 1:
                raise UnusableError("not_learned", f"an answer is marked to be learned with weight {turn.learned:g}")
    answers = tuple(Response(_unmarked(response.turns), response.source) for response in item.responses)
    return replace(item, prompt=_unmarked(item.prompt), responses=answers)


def _has_marks(turns: Turns) -> bool:
    if isinstance(turns, str):
        return False
    return WeightedMessage in map(type, turns)


def _unmarked(turns: Turns) -> Turns:
    return turns if isinstance(turns, str) else unmarked(turns)


def template_option(row: Row, name: str) -> Any:
    """``tools`` or ``chat_template_kwargs`` as structures; text here means that it could not be parsed."""
    value = row[name]
    if isinstance(value, str):
        raise RowError("wrong_type", name, "is text, but neither JSON nor Python's repr of a list or an object")
    return value
