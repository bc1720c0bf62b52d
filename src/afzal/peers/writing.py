"""Write imported settings as YAML with the origin of each line, and as a summary for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from afzal import config
from afzal.errors import AfzalError

from .reading import Imported
from .translation import FATES, Fate, Remark

_IN_FILE: tuple[Fate, ...] = ("changed", "lost", "unknown", "idle")
_ON_TERMINAL: tuple[Fate, ...] = ("changed", "default", "lost", "unknown")
_WIDTH = 110
_COMMENTS = 36  # column at which the origin of a setting begins


def as_yaml(imported: Imported) -> str:
    """The settings as YAML, each line with the key it comes from, below comments on the other keys."""
    lines = [f"# Afzal settings, written by afzal import from {imported.path} ({imported.peer})."]
    for fate in _IN_FILE:
        lines += [f"# {line}".rstrip() for line in _section(fate, imported.remarks)]
    lines.append("")
    for key, value in imported.settings.items():
        text, origin = f"{key}: {_shown(value, 10**6)}", _origin(key, imported)
        lines.append(f"{text:{_COMMENTS}}  # {origin}" if origin else text)
    return "\n".join(lines) + "\n"


def mixture_yaml(imported: Imported) -> str:
    """The file of sources as YAML; "" if there is a single data set."""
    if imported.mixture is None:
        return ""
    return yaml.safe_dump(dict(imported.mixture), sort_keys=False, allow_unicode=True)


def summary(imported: Imported) -> list[str]:
    """Summary lines of what became of the keys, by group; keys carried over are only counted."""
    counts: dict[Fate, int] = {
        fate: len({r.key for r in imported.remarks if r.fate == fate}) for fate in FATES if fate != "default"
    }
    counted = "; ".join(f"{n} {FATES[fate]}" for fate, n in counts.items() if n)
    lines = [
        f"{imported.path}: a configuration of {imported.peer}, method {imported.settings['method']}",
        *textwrap.wrap(f"keys: {counted}", _WIDTH, subsequent_indent="      "),
    ]
    for fate in _ON_TERMINAL:
        lines += _section(fate, imported.remarks)
    return lines


def _section(fate: Fate, remarks: Iterable[Remark]) -> list[str]:
    """A heading and a line per reason, with all keys of that reason."""
    by_reason: dict[tuple[str, str], list[Remark]] = {}
    for remark in remarks:
        if remark.fate == fate:
            by_reason.setdefault((remark.into if fate != "idle" else "", remark.why), []).append(remark)
    if not by_reason:
        return []
    lines = ["", f"{FATES[fate][0].upper()}{FATES[fate][1:]}:"]
    for (into, why), group in by_reason.items():
        bare_keys = [r.key if fate == "idle" or isinstance(r.value, list | dict) else "" for r in group]
        listed = ", ".join(key or f"{r.key}: {_shown(r.value)}" for key, r in zip(bare_keys, group, strict=True))
        if fate == "default":
            text = f"{into}: {_shown(group[0].value)}" + (f" ({why})" if why else "")
        else:
            arrow = f" -> {into}" if into and [into] != [r.key for r in group] else ""
            text = f"{listed}{arrow}" + (f": {why}" if why and fate == "idle" else f". {why}" if why else "")
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines


def _origin(key: str, imported: Imported) -> str:
    """The other trainer's keys that a setting comes from; for its defaults, also Afzal's default if it differs."""
    remarks = [r for r in imported.remarks if r.into == key]
    sources = [r.key for r in remarks if r.fate in ("carried", "changed")]
    if sources:
        return ", ".join(dict.fromkeys(sources))
    if not any(r.fate == "default" for r in remarks):
        return ""
    other_settings = {name: value for name, value in imported.settings.items() if name != key}
    default = _default_given(key, other_settings)
    is_default = default in (None, "", {}, imported.settings[key])
    note = "" if is_default else f"; Afzal's is {_shown(default)}"
    return f"default of {imported.peer}{note}"


def _default_given(key: str, settings: Mapping[str, Any]) -> Any:
    """The default of a setting given the others; None if they are invalid without it."""
    try:
        return getattr(config.make(**dict(settings)), key)
    except AfzalError:
        return None


def _shown(value: Any, longest: int = 60) -> str:
    """A value as one line of YAML, cut if it is long."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= longest else text[: longest - 3] + "..."
