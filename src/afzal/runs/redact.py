"""Hide secrets in the command lines, configurations and texts that are written to files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

HIDDEN = "[hidden]"
_WORDS = {
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
    "apikey",
    "bearer",
    "auth",
}
_PAIRS = {("api", "key"), ("access", "key"), ("private", "key"), ("secret", "key")}
_VOCABULARY = {"eos", "bos", "pad", "unk", "mask", "sep", "cls", "stop", "end", "start", "special", "image", "per"}
_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"
)
_LOGIN = re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")
_QUERY = re.compile(r"(?i)(?<=[?&])((?:access_?|api_?)?(?:token|key|secret|password|signature|sig)=)[^&#\s]+")


def redact_arguments(arguments: Sequence[str]) -> str:
    """A command line as one shell-quoted string, with secrets hidden.

    Hidden are the values of flags and ``name=value`` arguments with a secret's name, anything shaped like an access
    token, credentials in URLs, and the values of environment variables with a secret's name.
    """
    words, hide_next = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            words.append(HIDDEN)
        elif equals and value and is_secret_name(name):
            words.append(f"{name}={HIDDEN}")
        else:
            words.append(redact_text(argument))
        hide_next = not equals and argument.startswith("-") and is_secret_name(argument)
    return shlex.join(words)


def redact_command(line: str) -> str:
    """:func:`redact_arguments` for a command line in one string."""
    try:
        return redact_arguments(shlex.split(line))
    except ValueError:  # an unclosed quote: written neither by a shell nor by shlex
        return redact_text(line)


def redact_config(value: Any, name: str = "") -> Any:
    """A nested configuration with texts under a secret's name, and texts shaped like a secret, hidden."""
    return _redact_named(value, name, _environment_secrets())


def _redact_named(value: Any, name: str, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _redact_named(v, name if is_secret_name(name) else str(k), secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact_named(v, name, secrets) for v in value]
    if not isinstance(value, str) or not value:
        return value
    return HIDDEN if is_secret_name(name) else _redact(value, secrets)


def redact_texts(value: Any) -> Any:
    """Nested data with anything shaped like a secret hidden in every text, including field names."""
    return _redact(value, _environment_secrets())


def redact_text(text: str) -> str:
    """The text with anything shaped like a token, credentials or a known secret hidden."""
    return _redact(text, _environment_secrets())


def _redact(value: Any, secrets: Sequence[str]) -> Any:
    """Hide secrets. ``secrets`` are collected once for all texts: reading the environment costs more than searching a
    text."""
    if isinstance(value, Mapping):
        return {_redact(k, secrets): _redact(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(v, secrets) for v in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _LOGIN.sub(HIDDEN, _SHAPES.sub(HIDDEN, value)))


@lru_cache(maxsize=1024)  # every text checks the same names of the environment
def is_secret_name(name: str) -> bool:
    """``hub_token``, ``--api-key``, ``HF_TOKEN``: yes; ``max_tokens``, ``eos_token``, ``tokenizer``: no."""
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.rpartition(".")[2])
    words = [w for w in re.split(r"[^A-Za-z0-9]+", separated.lower()) if w]
    if _VOCABULARY.intersection(words):
        return False
    return bool(_WORDS.intersection(words)) or any(pair in _PAIRS for pair in pairwise(words))


def _environment_secrets() -> list[str]:
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and is_secret_name(name)}
    return sorted(secrets, key=len, reverse=True)
