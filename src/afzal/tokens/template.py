"""Chat templates: choose one, render conversations with it, and find where an assistant's turn ends.

A template sees message texts only as data, so ``{{name}}`` in a message is plain text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.records import Message
from afzal.tokens.rendering import Refusal, check, render

PLAIN = (
    "{% set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'} %}"
    "{% for m in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ names.get(m['role'], m['role'] | capitalize) + ':\\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:\\n' }}{% endif %}"
)
"""A transcript with ``Human:`` and ``Assistant:`` on separate lines; no end marker, so encoding appends the EOS."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BUILT_IN: Mapping[str, str] = {"plain": PLAIN, "chatml": CHATML}

_PROBE = "probe"


class TurnError(Exception):
    """A conversation that cannot be encoded; ``reason`` is its drop code."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def resolve_template(tokenizer: Any, override: str | None = None) -> tuple[str, str | None]:
    """The template to use, and a notice if it is not the tokenizer's own.

    Args:
        override: a built-in name (``plain``, ``chatml``), the path of a ``.jinja`` file, or a template's text.

    Returns:
        ``(template, notice)``; ``notice`` is None for the tokenizer's own template.

    Raises:
        AfzalError: there is no such built-in or file, or the text is not a valid template.
    """
    own_template = _own_template(tokenizer)
    if own_template is not None and override in (None, own_template):
        return own_template, None
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
    """Whether the tokenizer itself puts its BOS before every text."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a template ends the last answer of a conversation.

    Attributes:
        marker: the token that ends an answer: the one right after its text or, if there is none, the one that opens the
            next turn (GLM's ``<|user|>``); None if there is neither.
        text: the text after an answer up to the end of that token; without one, everything that is not white space.
        closing: everything that the template writes after the last answer of a conversation.
    """

    marker: str | None = None
    text: str = ""
    closing: str = ""


Call = tuple[tuple[Message, ...], bool]
"""A rendering request: messages, and whether the generation prompt follows them."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders conversations with a tokenizer's template. Renderings are cached until :meth:`prepare`.

    ``typed``: the template reads every content as a list of typed parts, as templates of multimodal models may.
    """

    tokenizer: Any
    template: str
    ending: Ending = Ending()
    typed: bool = False
    _texts: dict[Any, str | TurnError] = field(default_factory=dict)

    def prepare(self, calls: Sequence[tuple[Call, Mapping[str, Any]]]) -> None:
        """Render these calls, each with its options, in one batch, which is much faster than one by one."""
        self._texts.clear()
        self._render({self._key(call, options): (call, options) for call, options in calls})

    def prompt(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The conversation so far, followed by the generation prompt."""
        return self.text((tuple(messages), True), options)

    def full_text(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The conversation with every turn closed."""
        return self.text((tuple(messages), False), options)

    def contains(self, token: str) -> bool:
        """Whether the template or the tokenizer's vocabulary contains this tag."""
        return token in self.template or token in self.tokenizer.get_vocab()

    def _key(self, call: Call, options: Mapping[str, Any]) -> Any:
        return call, json.dumps(options, sort_keys=True, default=str) if options else ""

    def text(self, call: Call, options: Mapping[str, Any]) -> str:
        """The rendered text of a call.

        Raises:
            TurnError: the template refuses it.
        """
        key = self._key(call, options)
        if key not in self._texts:
            self._render({key: (call, options)})
        text = self._texts[key]
        if isinstance(text, TurnError):
            raise text
        return text

    def _render(self, calls: Mapping[Any, tuple[Call, Mapping[str, Any]]]) -> None:
        jobs = {key: self._job(*call) for key, call in calls.items()}
        renderable = {key: job for key, job in jobs.items() if not isinstance(job, TurnError)}
        self._texts.update({key: job for key, job in jobs.items() if isinstance(job, TurnError)})
        for key, text in zip(renderable, render(self.template, list(renderable.values())), strict=True):
            self._texts[key] = TurnError("template_refused", text.words) if isinstance(text, Refusal) else _sound(text)

    def _job(self, call: Call, options: Mapping[str, Any]) -> dict[str, Any] | TurnError:
        """All variables of the template, as ``transformers`` passes them."""
        messages, generation = call
        if not messages:
            return TurnError("template_refused", "the conversation has no messages")
        for name in ("tools", "documents"):
            value = options.get(name)
            if value is not None and not (isinstance(value, list) and all(isinstance(x, Mapping) for x in value)):
                return TurnError("template_refused", f"{name} must be a list of objects")
        variables = {"tools": None, "documents": None, **self.tokenizer.special_tokens_map, **options}
        return {**variables, "messages": self._written(messages), "add_generation_prompt": generation}

    def _written(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template sees them, media as ``{"type": kind}``."""
        converted = []
        for m in messages:
            parts: Any = (m.content,) if isinstance(m.content, str) else m.content
            typed = [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.kind} for p in parts]
            content = typed if self.typed or not isinstance(m.content, str) else m.content
            converted.append({"role": m.role, "content": content})
            if m.reasoning:
                converted[-1]["reasoning_content"] = m.reasoning
        return converted


def _sound(text: str) -> str | TurnError:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return TurnError("bad_unicode", f"a lone surrogate at character {error.start} of the rendered conversation")
    return text


def renderer(tokenizer: Any, template: str) -> Renderer:
    """A renderer whose ``ending`` is determined by rendering short conversations."""
    plain = Renderer(tokenizer, template)
    if not _writes(plain) and _writes(typed := replace(plain, typed=True)):
        plain = typed
    markers = marker_pattern(tokenizer, special_only=False)
    question, answer = Message("user", "Hi"), Message("assistant", _PROBE)
    talk, closing = [question, answer], _after_probe(plain, [question, answer])
    if closing is None:  # some templates require a system message first
        talk = [Message("system", "Hi"), question, answer]
        closing = _after_probe(plain, talk)
    if closing is None:
        return plain
    marker = markers.search(closing) if markers else None
    if marker:
        return replace(plain, ending=Ending(marker.group(), closing[: marker.end()], closing))
    following = _after_probe(plain, [*talk, question]) or ""
    opens = markers.match(following, len(following) - len(following.lstrip())) if markers else None
    if opens and opens.group() != tokenizer.bos_token:
        return replace(plain, ending=Ending(opens.group(), following[: opens.end()], closing))
    return replace(plain, ending=Ending(None, closing.rstrip(), closing))


def _writes(plain: Renderer) -> bool:
    """Whether the template writes a user's text that is given in this form."""
    try:
        return _PROBE in plain.prompt([Message("user", _PROBE)], {})
    except TurnError:
        return False


def _after_probe(plain: Renderer, messages: Sequence[Message]) -> str | None:
    """The text that the template writes after the answer; None if it refuses the conversation or leaves the answer
    out."""
    try:
        text = plain.full_text(messages, {})
    except TurnError:
        return None
    position = text.rfind(_PROBE)
    return text[position + len(_PROBE) :] if position >= 0 else None


def eos_id(tokenizer: Any, token: str | None) -> int | None:
    """The id of a token that ends responses; None if no token is named.

    Raises:
        AfzalError: the tokenizer does not know it.
    """
    if token is None:
        return None
    id_ = tokenizer.convert_tokens_to_ids(token)
    if id_ is None or (id_ == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise AfzalError(f"eos_token {token!r} is not in the tokenizer's vocabulary", remedy="name one of its tokens")
    return id_


def marker_pattern(tokenizer: Any, *, special_only: bool) -> re.Pattern[str] | None:
    """A pattern for the tokens that a tokenizer recognises by their spelling, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {t.content for t in added if (t.special or not special_only) and t.content.strip()}
    names |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(names, key=lambda n: (-len(n), n))))) if names else None


def _own_template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        if "default" not in template:
            raise AfzalError(
                f"the tokenizer has several chat templates ({', '.join(sorted(template))}) and none is the default",
                where="chat_template",
                remedy="save the one to use in a .jinja file and name that file",
            )
        template = template["default"]
    if template and not isinstance(template, str):
        message = f"the tokenizer's chat template is not text but {type(template).__name__}"
        raise AfzalError(message, where="chat_template", remedy="give one with chat_template=FILE.jinja")
    return template or None


def _built_in(tokenizer: Any, name: str) -> str:
    """The built-in template, with the BOS first if the tokenizer puts one before every text."""
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + BUILT_IN[name]


def _unknown_markers(tokenizer: Any, template: str) -> str:
    vocabulary = set(tokenizer.get_vocab())
    unknown = [m for m in dict.fromkeys(re.findall(r"<\|\w+\|>", template)) if m not in vocabulary]
    return f" ({' and '.join(unknown)} are not single tokens of this tokenizer)" if unknown else ""


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
    check(template, where)
    return template
