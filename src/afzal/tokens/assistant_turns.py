"""Locate an assistant's turn in a rendered conversation: its content, its end, and the text that the template adds.

A turn follows the text that prompts the model. The message's content and the end marker are scored; with thoughts
(``Message.reasoning``), so are the tags that the template writes around them, since the model must write these itself.
If the template would render an answer differently, it is trained on as written, and a remark says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from afzal.records import Message
from afzal.tokens.template import Ending, TurnError

Pieces = tuple[tuple[str, bool], ...]
"""Consecutive texts, each scored or not."""

_OPEN_TAG = re.compile(r"(?:<([A-Za-z][\w:.-]*)>|\[([A-Z][A-Z_]*)\])(\s*)\Z")
THOUGHT_TAG = re.compile(r"</?(?:think|thinking|thought|seed:think)>|\[/?THINK\]")
_THOUGHTS_END = re.compile(r"</(?:think|thinking|thought|seed:think)>|\[/THINK\]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the assistant as text; ``remarks`` are keys of :data:`REMARKS`."""

    pieces: Pieces
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


_HISTORY_THOUGHTS = "history_thoughts"
SPELLED = "special_token_spelled"
REMARKS = {
    "white_space": "the template strips white space around an answer of {}",
    "rewritten": "the template would write an answer of {} differently: trained on as it was written",
    "thoughts_left_out": "the template leaves out the thoughts of an answer of {}",
    "thoughts_closed": "the prompt opens thoughts that an answer of {} does not have: closed before it, not scored",
    _HISTORY_THOUGHTS: "the template leaves out the thoughts of earlier turns of {}",
    "message_left_out": "the template leaves out the {role} message of {}",
    "message_rewritten": "the template rewrites the {role} message of {}",
    "tools_left_out": "the template leaves out the tools of {}",
    "option_unread": "the template does not read the option {role} of {}",
    SPELLED: "a special token is spelled out in the text of {}: read as plain characters",
}
"""Messages about changes to texts during encoding, by name; ``{}`` is the number of items, ``{role}`` the part of the
remark after a colon."""


def remark_texts(remarks: Counter[str]) -> tuple[str, ...]:
    """One sentence per remark with its number of items, most frequent first; ``message_left_out:system`` names the
    role."""
    return tuple(_remark_text(remark, n) for remark, n in remarks.most_common())


def _remark_text(remark: str, n: int) -> str:
    name, _, role = remark.partition(":")
    return REMARKS[name].format(f"{n} item{'s' if n != 1 else ''}", role=role)


def last_turn(opened: str, finished: str, message: Message, ending: Ending, has_tag: Callable[[str], bool]) -> Turn:
    """The last turn of a response.

    Args:
        opened: the text that prompts the model, including the generation prompt.
        finished: the rendered conversation with this turn closed.
        has_tag: whether the template or the tokenizer contains a tag.

    Raises:
        TurnError: ``template_not_prefix``: the finished conversation does not begin with ``opened``, for another reason
            than thoughts that ``opened`` begins.
    """
    begun = _begun_thoughts(opened, has_tag)
    if finished.startswith(opened):
        body = _body(finished[len(opened) :], ending)
        start = _start_of(message.content, body, begun)
        if start is not None:
            return _as_rendered(body, start, message, ending)
    elif begun is None:
        raise TurnError("template_not_prefix", _difference(opened, finished))
    return _as_written(message, ending, begun)


def earlier_turn(opened: str, later: str, message: Message, ending: Ending) -> Turn:
    """A turn that others follow, as rendered in ``later``, the text that prompts the model for its next turn.

    Raises:
        TurnError: ``template_not_prefix``: the template renders the turn differently once another follows.
    """
    if not later.startswith(opened):
        raise TurnError("template_not_prefix", _difference(opened, later))
    rendered, content = later[len(opened) :], str(message.content)
    for text in dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip())):
        position = rendered.find(text)
        if position < 0:
            continue
        before = rendered[:position]
        if message.reasoning and _squeezed(message.reasoning) not in _squeezed(before):
            return Turn((), (_HISTORY_THOUGHTS,))
        rest = rendered[position + len(text) :]
        end = ending.text if ending.text and rest.startswith(ending.text) else ""
        pieces = ((before + text + end, True),) if message.reasoning else ((before, False), (text + end, True))
        return Turn(_filled(pieces))
    remaining = _THOUGHTS_END.split(content)[-1].strip()
    if _THOUGHTS_END.search(content) and remaining in rendered:
        return Turn((), (_HISTORY_THOUGHTS,))
    raise TurnError("template_not_prefix", "an earlier turn is rendered differently once another follows it")


def opening_of(begun: Message, rendered: str, ending: Ending) -> str:
    """The rendered text up to the end of the assistant's begun turn, so that an answer continues it.

    Raises:
        TurnError: the template does not write the begun turn verbatim.
    """
    body, content = _body(rendered, ending), str(begun.content)
    start = _exact_start(content, body)
    if start is None:
        raise TurnError("template_not_prefix", "the template rewrites the begun turn that the answer continues")
    return body[:start] + (content if body[start:].startswith(content.rstrip()) else content.lstrip())


def left_out(messages: Sequence[Message], text: str) -> list[str]:
    """Remarks on the messages whose content is not in the rendered conversation.

    Each occurrence matches one message only. Longer messages match first; among equal ones, user and assistant turns.
    """
    if _in_order(messages, text):
        return []
    remarks = []
    for message in sorted(messages, key=_length_and_role):
        content = str(message.content).strip()
        if content and content in text:
            text = text.replace(content, "\0", 1)
        elif content:
            remarks.append(_missing_message_reason(message.role, content, text))
    return list(dict.fromkeys(remarks))


def _length_and_role(message: Message) -> tuple[int, bool]:
    return -len(str(message.content)), message.role not in ("user", "assistant")


def _in_order(messages: Sequence[Message], text: str) -> bool:
    position = 0
    for message in messages:
        content = str(message.content).strip()
        position = text.find(content, position)
        if position < 0:
            return False
        position += len(content)
    return True


def _missing_message_reason(role: str, content: str, text: str) -> str:
    if role == "assistant" and _THOUGHTS_END.search(content) and _THOUGHTS_END.split(content)[-1].strip() in text:
        return _HISTORY_THOUGHTS
    squeezed, rendered = _squeezed(content).casefold(), _squeezed(text).casefold()
    if squeezed in rendered or squeezed.replace('"', '\\"') in rendered:  # other white space or case, or as JSON
        return f"message_rewritten:{role}"
    return f"message_left_out:{role}"


def _as_rendered(body: str, start: int, message: Message, ending: Ending) -> Turn:
    before, rendered = body[:start], body[start:]
    remarks = (
        ()
        if rendered == message.content or _squeezed(rendered) != _squeezed(str(message.content))
        else ("white_space",)
    )
    if message.reasoning:
        if _squeezed(message.reasoning) in _squeezed(before):
            return Turn(_filled(((body + ending.text, True),)), remarks)
        remarks = (*remarks, "thoughts_left_out")
    return Turn(_filled(((before, False), (rendered + ending.text, True))), remarks)


def _as_written(message: Message, ending: Ending, begun: _Thoughts | None) -> Turn:
    content = str(message.content)
    if begun is None:
        remarks = ("rewritten", "thoughts_left_out") if message.reasoning else ("rewritten",)
        return Turn(_filled(((content + ending.text, True),)), remarks)
    if message.reasoning:
        thoughts = message.reasoning.strip() + begun.closing
        return Turn(((thoughts + content.lstrip() + ending.text, True),), ("rewritten",))
    if begun.end in content:
        return Turn(((begun.without_opening(content) + ending.text, True),), ("rewritten",))
    return Turn(((begun.closing, False), (content.lstrip() + ending.text, True)), ("thoughts_closed",))


@dataclass(frozen=True, slots=True)
class _Thoughts:
    """Thoughts that a generation prompt has opened: the two tags, and the white space after the first."""

    start: str
    end: str
    space: str

    @property
    def closing(self) -> str:
        return self.space + self.end + 2 * self.space

    def without_opening(self, content: str) -> str:
        """The content without the tag that is already in the prompt."""
        stripped = content.lstrip()
        return stripped.removeprefix(self.start).lstrip() if stripped.startswith(self.start) else content


def _begun_thoughts(opened: str, has_tag: Callable[[str], bool]) -> _Thoughts | None:
    match = _OPEN_TAG.search(opened[-64:])
    if match is None:
        return None
    start = match.group().rstrip()
    end = f"{start[0]}/{start[1:]}"
    return _Thoughts(start, end, match[3]) if has_tag(end) else None


def _body(tail: str, ending: Ending) -> str:
    """The text without the template's closing after the last answer."""
    if tail.endswith(ending.closing):
        return tail[: len(tail) - len(ending.closing)]
    if ending.marker is not None and ending.marker in tail:
        lead = ending.text.removesuffix(ending.marker)
        return tail[: tail.rindex(ending.marker)].removesuffix(lead)
    return tail


def _start_of(content: object, body: str, begun: _Thoughts | None) -> int | None:
    """The index at which ``body``'s final content begins; white space may differ. None if ``body`` does not end with
    it."""
    text = str(content)
    start = _exact_start(text, body)
    if start is None and begun is not None:
        start = _exact_start(begun.without_opening(text), body)
    return _loose_start(text, body) if start is None else start


def _exact_start(content: str, body: str) -> int | None:
    for text in (content, content.rstrip(), content.lstrip(), content.strip()):
        if body.endswith(text):
            return len(body) - len(text)
    return None


def _loose_start(content: str, body: str) -> int | None:
    target = _squeezed(content)
    if not target or not _squeezed(body).endswith(target):
        return None
    remaining, position = len(target), len(body)
    while remaining:
        position -= 1
        remaining -= not body[position].isspace()
    return position


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _filled(pieces: Pieces) -> Pieces:
    return tuple(piece for piece in pieces if piece[0])


def _difference(opened: str, finished: str) -> str:
    shorter = min(len(opened), len(finished))
    k = next((i for i in range(shorter) if opened[i] != finished[i]), shorter)
    return f"the prompt has {opened[k : k + 40]!r} where the finished conversation has {finished[k : k + 40]!r}"
