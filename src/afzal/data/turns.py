"""Parse and compare texts and messages: roles, content parts, transcripts, and where a prompt ends."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field
from itertools import takewhile
from typing import Any

from afzal.data.fields import RowError, UnusableError, flag, kind, number
from afzal.media import media_in
from afzal.records import Message, Turns, turns_to_json, value_class

Messages = tuple[Message, ...]

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "developer",
    # A model's tool call is its own turn; the tool's answer is not.
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}

REASONING = ("reasoning_content", "thinking", "reasoning")
# Keys by which files mark whether a message is to be learned.
_LEARNED = ("loss_weight", "weight", "loss", "train", "trainable", "training", "loss_mask")
# Unsupported keys of a message that would change its content or what is learned.
_REFUSED = ("function_call", "tool_call_id", "train_detail", "mask", "masked", "ignore", "prefix", "partial")
_PLAIN_KEYS = frozenset({"role", "content", "from", "value"})
_KNOWN_KEYS = _PLAIN_KEYS | {*REASONING, *_LEARNED, *_REFUSED, "tool_calls"}

_TURN = re.compile(r"(?:^|\n\n)[ \t]*(Human|Assistant):")
# Scripts written without spaces between words: a boundary is possible at every character.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


@value_class
class WeightedMessage(Message):
    """A message whose file states how much it is to be learned (0: not at all).

    Parsers create these; reading replaces them with plain messages and drops answers that are not to be learned.
    """

    learned: float = field(default=1.0, compare=False)


def message(raw: Any, field: str) -> Message:
    """One message from ``{role, content}`` or ``{from, value}``, with its thoughts and learning marks."""
    if type(raw) is not dict and not isinstance(raw, Mapping):  # the exact type first: an abstract check is much slower
        raise RowError("wrong_type", field, f"holds {kind(raw)} instead of a message")
    raw_role = raw.get("role", raw.get("from"))
    role = _role(raw_role, field) if type(raw_role) is not str or raw_role not in ROLES else ROLES[raw_role]
    content = raw.get("content", raw.get("value"))
    if type(content) is not str:
        content = _content(content, field)
    if len(raw) == 2 or raw.keys() <= _PLAIN_KEYS:
        return Message(role, content)
    if raw.get("tool_calls"):
        raise UnusableError("tool_calls", "messages with tool calls are not supported yet")
    if unsupported := next((name for name in _REFUSED if raw.get(name)), None):
        raise UnusableError("message_field", f"messages with '{unsupported}' are not supported yet")
    thoughts = _reasoning(raw, field)
    learned = learned_share(raw)
    if learned is None:
        return Message(role, content, thoughts)
    return WeightedMessage(role, content, thoughts, learned)


def unmarked(turns: Messages) -> Messages:
    """The messages without learning marks."""
    return tuple(Message(m.role, m.content, m.reasoning) for m in turns)


def learned_share(raw: Mapping[str, Any]) -> float | None:
    """How much a message is to be learned, by its mark: 0 not at all, 1 as usual, None without a mark."""
    stated = [name for name in _LEARNED if raw.get(name) is not None]
    if not stated:
        return None
    shares = {_share(raw, name) for name in stated}
    if len(shares) > 1:
        raise RowError("bad_value", stated[0], f"contradicts '{stated[1]}' of the same message")
    return shares.pop()


def unread_keys(raw: Any) -> list[str]:
    """The keys of a message that :func:`message` ignores."""
    return [str(name) for name in raw if name not in _KNOWN_KEYS] if isinstance(raw, Mapping) else []


def _share(raw: Mapping[str, Any], name: str) -> float:
    if name in ("loss_weight", "weight") and not isinstance(raw[name], bool):
        share = number(raw, name)
        if share < 0:
            raise RowError("bad_value", name, f"is {share:g}, below 0")
        return share
    return float(flag(raw, name))


def _role(raw_role: Any, field: str) -> str:
    role = (
        ROLES.get(raw_role) or ROLES.get(re.sub("[ -]", "_", raw_role.strip().lower()))
        if isinstance(raw_role, str)
        else None
    )
    if role is None:
        roles = ", ".join(sorted(ROLES))
        raise RowError("bad_value", field, f"holds a message with role {raw_role!r} (known: {roles})")
    return role


def messages(raw: Any, field: str) -> Messages:
    """Messages from a list of them, or from a single one."""
    if type(raw) is not list and isinstance(raw, Mapping):
        raw = [raw]
    if not isinstance(raw, (list, tuple)):
        raise RowError("wrong_type", field, f"is {kind(raw)}, not a list of messages")
    return tuple([message(entry, field) for entry in raw])


def looks_like_messages(raw: Any) -> bool:
    """Whether a value is a message or a non-empty list that begins with one."""
    first = raw[0] if isinstance(raw, (list, tuple)) and raw else raw
    if type(first) is not dict and not isinstance(first, Mapping):
        return False
    return ("role" in first and "content" in first) or ("from" in first and "value" in first)


def chat_prompt(prompt: str, *, system: str = "", history: Sequence[Any] = ()) -> Messages:
    """A conversation that ends with the user's ``prompt``; ``history`` holds earlier [question, answer] pairs."""
    turns = [Message("system", system)] if system.strip() else []
    for exchange in history:
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise RowError("wrong_type", "history", "holds something other than [question, answer] pairs")
        turns += [Message("user", str(exchange[0])), Message("assistant", str(exchange[1]))]
    return (*turns, Message("user", prompt))


def assistant_turn(text: str) -> Messages:
    """One assistant message that continues a conversation."""
    return (Message("assistant", text),)


def answer_text(turns: Turns) -> str:
    """The text of an answer: a text unchanged, or the assistant's contents joined by blank lines."""
    if isinstance(turns, str):
        return turns
    return "\n\n".join([content_text(m.content) for m in turns if m.role == "assistant"])


def full_text(turns: Turns) -> str:
    """The text of all turns of a prompt or an answer."""
    return turns if isinstance(turns, str) else "\n\n".join([content_text(m.content) for m in turns])


def content_text(content: str | tuple[Mapping[str, Any], ...]) -> str:
    """A message's text; an image or a sound appears as ``<image>`` or ``<audio>``."""
    if isinstance(content, str):
        return content
    return "".join(str(part["text"]) if part.get("type") == "text" else f"<{part.get('type')}>" for part in content)


def content_key(content: str | tuple[Mapping[str, Any], ...]) -> str | tuple[str | tuple[str, str], ...]:
    """A message's content for keys: its text, or its texts and media as (kind, SHA-256), in order.

    The two forms have different types, so no text can equal an image or a sound.
    """
    if isinstance(content, str):
        return content.strip()
    if not any(media_in(content)):
        return content_text(content).strip()
    return tuple([_part_key(part) for part in content])


def _part_key(part: Mapping[str, Any]) -> str | tuple[str, str]:
    media = next(media_in((part,)), None)
    return content_text((part,)).strip() if media is None else (media.kind, media.sha256)


def exact_key(turns: Turns) -> Hashable:
    """A hashable key that is equal for equal turns: the turns themselves, or their JSON if they have unhashable
    parts."""
    if isinstance(turns, str) or all(isinstance(message.content, str) for message in turns):
        return turns
    return json.dumps(turns_to_json(turns), default=str)


def stripped_key(turns: Turns) -> Hashable:
    """A key of the texts, thoughts and media of turns, without white space at the ends."""
    if isinstance(turns, str):
        return turns.strip()
    return tuple([(m.role, _message_key(m)) for m in turns])


def _message_key(m: Message) -> Hashable:
    content = content_key(m.content)
    if not m.reasoning:
        return content
    thoughts = m.reasoning.strip()
    return f"{thoughts}\0{content}" if isinstance(content, str) else (thoughts, content)


def transcript(text: str) -> Messages | None:
    """The turns of a ``Human: ... Assistant: ...`` text; None if it does not begin with one."""
    segments = _TURN.split(text)
    if len(segments) < 3 or segments[0].strip():
        return None
    return tuple(
        Message(ROLES[speaker.lower()], content.strip())
        for speaker, content in zip(segments[1::2], segments[2::2], strict=True)
    )


def merge_same_role(turns: Messages) -> Messages:
    """Join neighbouring text messages of the same role: chat templates need alternating roles."""
    out: list[Message] = []
    for turn in turns:
        last = out[-1] if out else None
        if last and last.role == turn.role and isinstance(last.content, str) and isinstance(turn.content, str):
            thoughts = "\n\n".join(filter(None, (last.reasoning, turn.reasoning)))
            out[-1] = Message(turn.role, f"{last.content}\n\n{turn.content}", thoughts)
        else:
            out.append(turn)
    return tuple(out)


def split_dialogues(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """Two complete dialogues as (shared prompt, rest of the first, rest of the second).

    The prompt is the longest common beginning after which the assistant speaks in both.
    """
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))
    while shared and not (_assistant_at(first, shared) and _assistant_at(second, shared)):
        shared -= 1
    if not shared:
        raise UnusableError("prefix_differs", "the two dialogues share no beginning that an assistant's turn follows")
    return first[:shared], first[shared:], second[shared:]


def split_texts(first: str, second: str) -> tuple[str, str, str]:
    """Two texts as (common prompt, rest of the first, rest of the second), cut where a word begins.

    White space before the word belongs to the rest, as GPT-style tokenizers expect.
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    while shared and not _is_cut(first, second, shared):
        shared -= 1
    if not shared:
        reason = "identical_pair" if first.strip() == second.strip() else "no_common_prompt"
        raise UnusableError(reason, "chosen and rejected have no common beginning to serve as the prompt")
    return first[:shared], first[shared:], second[shared:]


def _assistant_at(turns: Messages, k: int) -> bool:
    return k < len(turns) and turns[k].role == "assistant"


def _is_cut(first: str, second: str, position: int) -> bool:
    if first[position - 1].isspace() or not first[position:].strip() or not second[position:].strip():
        return False
    return not (_joined(first, position) or _joined(second, position))


def _joined(text: str, position: int) -> bool:
    """Whether the characters before and after ``position`` belong to one grapheme or one word.

    Implements a small part of Unicode text segmentation (UAX #29): marks, joiners, modifiers and flags continue a
    grapheme; letters, digits, marks and "_" continue a word, and so do single apostrophes, dots and commas inside one.
    """
    before, after = text[position - 1], text[position]
    if before < "\x7f" and after < "\x7f" and not (before.isalnum() or after.isalnum()):
        return before == after == "_"
    if _continues(after) or before in _JOINERS or (_is_flag(before) and _is_flag(after) and _odd_flags(text, position)):
        return True
    if _in_word(before) and _in_word(after):
        return True
    return (before in _MIDDLE and position > 1 and _in_word(text[position - 2]) and _in_word(after)) or (
        after in _MIDDLE and position + 1 < len(text) and _in_word(before) and _in_word(text[position + 1])
    )


_JOINERS = "\u200c\u200d"
_MIDDLE = "'\u2019.,:\u00b7"


def _continues(char: str) -> bool:
    """Whether a character belongs to the grapheme before it."""
    if char < "\u0300":
        return False
    return (
        unicodedata.category(char) in ("Mn", "Mc", "Me")
        or char in _JOINERS
        or char in "\u0e33\u0eb3"  # Thai and Lao AM, letters by category
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= "\U000e007f"  # the tags of flags
    )


def _is_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _odd_flags(text: str, position: int) -> bool:
    """Whether ``position`` is between the two letters of one flag."""
    return len(list(takewhile(_is_flag, reversed(text[:position])))) % 2 == 1


def _in_word(char: str) -> bool:
    return (char.isalnum() or char == "_" or _continues(char)) and not _UNSPACED.match(char)


def _content(raw: Any, field: str) -> str | tuple[Mapping[str, Any], ...]:
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list | tuple):
        raise RowError("wrong_type", field, f"holds a message whose content is {kind(raw)}, not text or parts")
    parts = tuple(_part(part, field) for part in raw)
    # A typed text that spells a media mark stays typed until media are placed, so that it is never read as a mark.
    spells_mark = any("<image>" in part.get("text", "") or "<audio>" in part.get("text", "") for part in parts)
    return parts if spells_mark else joined_texts(parts)


def joined_texts(content: str | tuple[Mapping[str, Any], ...]) -> str | tuple[Mapping[str, Any], ...]:
    """Join parts into one text if all are texts; other content is unchanged."""
    if isinstance(content, str) or not all(part["type"] == "text" for part in content):
        return content
    return content_text(content)


def _reasoning(raw: Mapping[str, Any], field: str) -> str:
    """The thoughts of a message, under any name that chat templates and servers use."""
    for name in REASONING:
        thoughts = raw.get(name)
        if thoughts is not None and not isinstance(thoughts, str):
            raise RowError("wrong_type", field, f"holds a message whose {name} is {kind(thoughts)}, not text")
        if thoughts:
            return thoughts
    return ""


def _part(raw: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("type"), str):
        raise RowError("wrong_type", field, "holds a content part without a 'type'")
    if raw["type"] != "text":
        return {name: value for name, value in raw.items() if value is not None}
    words = raw.get("text", raw.get("value"))
    if not isinstance(words, str):
        raise RowError("wrong_type", field, f"holds a text part whose text is {kind(words)}")
    return {"type": "text", "text": words}
