"""Chat templates: which one is used, how a conversation is rendered by it, and where an assistant's turn ends.

A template only ever sees message texts as data, so ``{{name}}`` in a message is five letters and four braces.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.records import Message, turns_to_json

PLAIN = (
    "{% set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'} %}"
    "{% for m in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ names.get(m['role'], m['role'] | capitalize) + ':\\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:\\n' }}{% endif %}"
)
"""A transcript, ``Human:`` and ``Assistant:`` on lines of their own; no end marker, so encoding appends the EOS."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BUILT_IN: Mapping[str, str] = {"plain": PLAIN, "chatml": CHATML}

_PROBE = "probe"


class TurnError(Exception):
    """A conversation that cannot become tokens; ``reason`` is the code it is counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def resolve_template(tokenizer: Any, override: str | None = None) -> tuple[str, str | None]:
    """The template to use, and a sentence that says so when it is not simply the tokenizer's own.

    Args:
        override: a built-in name (``plain``, ``chatml``), the path of a ``.jinja`` file, or a template's text.

    Returns:
        ``(template, notice)``; ``notice`` is None for the tokenizer's own template.

    Raises:
        AfzalError: no such built-in or file, or the text is no valid template.
    """
    own = _own_template(tokenizer)
    if own is not None and override in (None, own):
        return own, None
    if override is None:
        return _built_in(tokenizer, "plain"), "the tokenizer has no chat template: using the built-in 'plain'"
    if override in BUILT_IN:
        return _built_in(tokenizer, override), f"chat template: the built-in '{override}'" + _unknown_markers(
            tokenizer, BUILT_IN[override]
        )
    if "{{" in override or "{%" in override:
        return _checked(override, "chat_template"), "chat template: given as text"
    return _checked(_read(override), override), f"chat template: {override}"


def template_hash(template: str) -> str:
    """A short content hash (16 hex digits) of a template's text."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS before every text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


@dataclass(frozen=True, slots=True)
class Renderer:
    """A tokenizer's way to write conversations.

    Attributes:
        end_of_turn: the marker (one token) right after an assistant's text, or None where the template has none.
        padding: characters of white space that end a turn without a marker; no part of the answer.
    """

    tokenizer: Any
    template: str
    end_of_turn: str | None
    padding: int

    def prompt(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The conversation so far, ended by the generation prompt."""
        return self._render(messages, options, add_generation_prompt=True)

    def whole(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The conversation with every turn closed."""
        return self._render(messages, options, add_generation_prompt=False)

    def _render(self, messages: Sequence[Message], options: Mapping[str, Any], **flags: bool) -> str:
        from jinja2.exceptions import TemplateError

        turns = turns_to_json(tuple(messages))
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, **{**options, **flags}
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise TurnError("template_refused", str(error)) from error
        return str(text)


def renderer(tokenizer: Any, template: str) -> Renderer:
    """A renderer whose end of turn was read off the template by rendering one short conversation."""
    bare = Renderer(tokenizer, template, None, 0)
    try:
        text = bare.whole([Message("user", "Hi"), Message("assistant", _PROBE)], {})
    except TurnError:
        return bare
    tail = text[text.rfind(_PROBE) + len(_PROBE) :]
    markers = marker_pattern(tokenizer, special_only=False)
    found = markers.search(tail) if markers else None
    if found:
        return Renderer(tokenizer, template, found.group(), 0)
    return Renderer(tokenizer, template, None, len(tail) - len(tail.rstrip()))


def stop_token(tokenizer: Any, chat_template: str | None = None) -> int | None:
    """Id of the token that ends an assistant's turn: the template's own marker, or else the tokenizer's EOS.

    Args:
        chat_template: as for :func:`resolve_template`.
    """
    template, _ = resolve_template(tokenizer, chat_template)
    end = renderer(tokenizer, template).end_of_turn
    return tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end)


def marker_pattern(tokenizer: Any, *, special_only: bool) -> re.Pattern[str] | None:
    """A pattern for the tokens that a tokenizer finds in a text by their spelling, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {t.content for t in added if (t.special or not special_only) and t.content.strip()}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(names, key=lambda n: (-len(n), n))))) if names else None


def _own_template(tokenizer: Any) -> str | None:
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        if "default" not in own:
            raise AfzalError(
                f"the tokenizer has several chat templates ({', '.join(sorted(own))}) and none is the default",
                where="chat_template",
                remedy="save the one to use in a .jinja file and name that file",
            )
        own = own["default"]
    return own or None


def _built_in(tokenizer: Any, name: str) -> str:
    """The built-in template, opened by the BOS where the tokenizer puts one before every text."""
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + BUILT_IN[name]


def _unknown_markers(tokenizer: Any, template: str) -> str:
    known = set(tokenizer.get_vocab())
    unknown = [m for m in dict.fromkeys(re.findall(r"<\|\w+\|>", template)) if m not in known]
    return f" ({' and '.join(unknown)} are no single tokens of this tokenizer)" if unknown else ""


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AfzalError(
            f"no chat template {path!r}",
            where="chat_template",
            why=str(error),
            remedy=f"one of {', '.join(BUILT_IN)}, or the path of a .jinja file",
        ) from error


def _checked(template: str, where: str) -> str:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        )
    except TemplateSyntaxError as error:
        raise AfzalError(
            f"the chat template does not parse: {error.message}",
            where=f"{where}:{error.lineno}",
            remedy="mend that line of the template, or give another with chat_template",
        ) from error
    return template
