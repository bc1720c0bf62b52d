"""Write an Ollama Modelfile: the chat template in Ollama's language, and the stop texts.

The template is not looked up by model family. The model's own template is rendered for short conversations, and the
pieces between the messages are extracted. A Modelfile is written only if these pieces reproduce the exact text of
further conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afzal.errors import AfzalError
from afzal.records import Message
from afzal.tokens.speaker import Speaker
from afzal.tokens.template import Renderer, TurnError, adds_bos

CONVERTER = "python convert_hf_to_gguf.py {folder} --outfile {gguf}"
"""The command of llama.cpp's converter, which turns a model folder into a GGUF file."""

_USER, _ANSWER, _NEXT, _SYSTEM = "one apple", "two pears", "three plums", "four figs"
_CHECKED = ("Why?\nSay it.", "Because.", "And then?", "Nothing.", "Tell me 2 + 2.")
_REMEDY = "write the Modelfile by hand, or train and serve with chat_template: chatml"


@dataclass(frozen=True, slots=True)
class Turns:
    """The texts that a template writes around the messages of a conversation.

    Attributes:
        begin: before everything.
        system: before and after a system message; None if the template refuses one.
        default: the system message that is used if none is given; "" for none.
        user: before and after a user's message.
        assistant: before and after an answer.
        generation: after the last user message, before the model's answer.
    """

    begin: str
    system: tuple[str, str] | None
    default: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt that Ollama writes for a conversation."""
        turns = [(m.role, str(m.content)) for m in messages]
        if self.default and turns[0][0] != "system":
            turns.insert(0, ("system", self.default))
        around = {"system": self.system or ("", ""), "user": self.user, "assistant": self.assistant}
        parts = [around[role][0] + content + around[role][1] for role, content in turns]
        return self.begin + "".join(parts) + self.generation

    def template(self) -> str:
        """The pieces as an Ollama template, which is a Go template."""
        system = f'{{{{ if eq .Role "system" }}}}{self._between(self.system)}{{{{ else }}}}' if self.system else ""
        user = f'{{{{ if eq .Role "user" }}}}{self._between(self.user)}{{{{ end }}}}'
        answer = f'{{{{ if eq .Role "assistant" }}}}{self._between(self.assistant)}{{{{ end }}}}'
        end = "{{ end }}" if self.system else ""
        return f"{self.begin}{{{{ range .Messages }}}}{system}{user}{answer}{end}{{{{ end }}}}{self.generation}"

    @staticmethod
    def _between(around: tuple[str, str] | None) -> str:
        before, after = around or ("", "")
        return f"{before}{{{{ .Content }}}}{after}"


def modelfile(speaker: Speaker, gguf: str) -> str:
    """The Modelfile of a model.

    Args:
        speaker: the model's tokenizer, template and ends.
        gguf: the GGUF file that the Modelfile names.

    Raises:
        AfzalError: the template cannot be reproduced exactly; says where it differs.
    """
    turns = turns_of(speaker)
    template, stops = turns.template(), speaker.end_texts(chat=True)
    pieces = (turns.begin, turns.default, turns.generation, *turns.user, *turns.assistant, *(turns.system or ()))
    if any('"""' in piece or "{{" in piece for piece in pieces):
        raise _refused("it writes braces or quotes that have a meaning in a Modelfile")
    lines = [f"FROM {gguf}", f'TEMPLATE """{template}"""']
    lines += [f'SYSTEM """{turns.default}"""'] if turns.default else []
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    if turns.system is None:
        lines.insert(0, "# The model's template has no system message: Ollama leaves out any that is given.")
    return "\n".join(lines) + "\n"


def turns_of(speaker: Speaker) -> Turns:
    """The pieces of a speaker's template.

    Raises:
        AfzalError: they do not reproduce its renderings.
    """
    renderer = speaker.renderer
    if "strftime_now" in renderer.template:
        raise _refused("it writes the current date, which a Modelfile would freeze")
    user, answer, following = (Message("user", _USER), Message("assistant", _ANSWER), Message("user", _NEXT))
    system = Message("system", _SYSTEM)
    try:
        talk = renderer.prompt([user, answer, following], {})
    except TurnError as error:
        raise _refused(f"it refuses an ordinary conversation ({error.detail})") from None
    before, between, closing, generation = _split(talk, _USER, _ANSWER, _NEXT)
    opening = _common_end(before, closing)
    begin, close = before.removesuffix(opening), closing.removesuffix(opening)
    around, default = _system_of(renderer, [system, user], begin, opening), ""
    if around is not None and around[0] and around[0] in begin and begin.endswith(around[1]):
        begin, _, default = begin.removesuffix(around[1]).rpartition(around[0])
    bos = speaker.tokenizer.bos_token or ""
    if bos and adds_bos(speaker.tokenizer):
        if opening.startswith(bos) and not begin:
            raise _refused(f"it begins every turn with {bos}, which the runtime adds again at the start")
        begin = begin.removeprefix(bos)
    turns = _closed(Turns(begin, around, default, (opening, ""), (between, close), generation), renderer.ending.closing)
    _check(turns, renderer, bos if adds_bos(speaker.tokenizer) else "")
    return turns


def _system_of(renderer: Renderer, messages: Sequence[Message], begin: str, opening: str) -> tuple[str, str] | None:
    """The texts before and after a system message; None if the template refuses one."""
    try:
        text = renderer.prompt(messages, {})
    except TurnError:
        return None
    if _SYSTEM not in text:
        return None
    head, middle, _ = _split(text, _SYSTEM, _USER)
    if not middle.endswith(opening):
        raise _refused(
            "it puts the system message inside the first user turn, which a TEMPLATE cannot reproduce exactly"
        )
    shared = _common_prefix(head, begin)
    start = begin if head.startswith(begin) else ""
    after = middle.removesuffix(opening)
    if not start and shared and not begin.endswith(after):
        raise _refused("its beginning depends on whether there is a system message")
    return head.removeprefix(start), after


def _closed(turns: Turns, closing: str) -> Turns:
    """The same pieces, with the end of a turn after its message instead of before the next one."""
    (user, after), (answer, end) = turns.user, turns.assistant
    if not closing or not (answer.startswith(closing) and turns.generation.startswith(closing)):
        return turns
    answer, generation, after = answer.removeprefix(closing), turns.generation.removeprefix(closing), closing
    system = turns.system
    if user.startswith(closing) and system is not None and turns.default:
        user, end, system = user.removeprefix(closing), end + closing, (system[0], system[1] + closing)
    return replace(turns, system=system, user=(user, after), assistant=(answer, end), generation=generation)


def _check(turns: Turns, renderer: Renderer, bos: str) -> None:
    """Check the pieces with conversations from which they were not extracted."""
    roles = ("user", "assistant", "user", "assistant", "user")
    talk = [Message(role, text) for role, text in zip(roles, _CHECKED, strict=True)]
    talks: list[list[Message]] = [talk[:1], talk[:3], talk]
    if turns.system is not None:
        talks += [[Message("system", "Be brief."), *messages] for messages in list(talks)]
    for messages in talks:
        try:
            rendered = renderer.prompt(messages, {}).removeprefix(bos)
        except TurnError as error:
            raise _refused(error.detail) from None
        text = turns.text(messages)
        if text != rendered:
            k = len(_common_prefix(text, rendered))
            why = f"for {len(messages)} messages it writes {rendered[k : k + 40]!r}, the pieces {text[k : k + 40]!r}"
            raise _refused(why)


def _split(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        before, separator, text = text.partition(mark)
        if not separator:
            raise _refused(f"it does not write the message {mark!r} as it is")
        parts.append(before)
    return [*parts, text]


def _common_prefix(a: str, b: str) -> str:
    """The common prefix of two texts."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def _common_end(a: str, b: str) -> str:
    return _common_prefix(a[::-1], b[::-1])[::-1]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _refused(why: str) -> AfzalError:
    return AfzalError("the chat template cannot be reproduced exactly in Ollama", why=why, remedy=_REMEDY)
