"""Imported settings as a file that says where each line comes from, and as lines for a terminal."""

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
    """The settings as YAML, every line with the key it comes from, below comments on what else became of the file."""
    lines = [f"# Settings of Afzal, made by afzal import from {imported.path} ({imported.peer})."]
    for fate in _IN_FILE:
        lines += [f"# {line}".rstrip() for line in _section(fate, imported.remarks)]
    lines.append("")
    for key, value in imported.settings.items():
        text, origin = f"{key}: {_shown(value, 10**6)}", _origin(key, imported)
        lines.append(f"{text:{_COMMENTS}}  # {origin}" if origin else text)
    return "\n".join(lines) + "\n"


def mixture_yaml(imported: Imported) -> str:
    """The file of sources as YAML; "" where there is a single data set."""
    if imported.mixture is None:
        return ""
    return yaml.safe_dump(dict(imported.mixture), sort_keys=False, allow_unicode=True)


def summary(imported: Imported) -> list[str]:
    """What became of the file, by groups; what was carried over is only counted."""
    counts: dict[Fate, int] = {
        fate: len({r.key for r in imported.remarks if r.fate == fate}) for fate in FATES if fate != "default"
    }
    told = "; ".join(f"{n} {FATES[fate]}" for fate, n in counts.items() if n)
    lines = [
        f"{imported.path}: a configuration of {imported.peer}, method {imported.settings['method']}",
        *textwrap.wrap(f"keys: {told}", _WIDTH, subsequent_indent="      "),
    ]
    for fate in _ON_TERMINAL:
        lines += _section(fate, imported.remarks)
    return lines


def _section(fate: Fate, remarks: Iterable[Remark]) -> list[str]:
    """A heading and a line per reason; keys of one reason stand together."""
    by_reason: dict[tuple[str, str], list[Remark]] = {}
    for remark in remarks:
        if remark.fate == fate:
            by_reason.setdefault((remark.into if fate != "idle" else "", remark.why), []).append(remark)
    if not by_reason:
        return []
    lines = ["", f"{FATES[fate][0].upper()}{FATES[fate][1:]}:"]
    for (into, why), group in by_reason.items():
        bare = [r.key if fate == "idle" or isinstance(r.value, list | dict) else "" for r in group]
        named = ", ".join(key or f"{r.key}: {_shown(r.value)}" for key, r in zip(bare, group, strict=True))
        if fate == "default":
            text = f"{into}: {_shown(group[0].value)}" + (f" ({why})" if why else "")
        else:
            arrow = f" -> {into}" if into and [into] != [r.key for r in group] else ""
            text = f"{named}{arrow}" + (f": {why}" if why and fate == "idle" else f". {why}" if why else "")
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
    """Which keys of the other trainer a setting comes from; of its defaults, also what Afzal's would be."""
    found = [r for r in imported.remarks if r.into == key]
    given = [r.key for r in found if r.fate in ("carried", "changed")]
    if given:
        return ", ".join(dict.fromkeys(given))
    if not any(r.fate == "default" for r in found):
        return ""
    others = {name: value for name, value in imported.settings.items() if name != key}
    usual = _usual(key, others)
    same = usual in (None, "", {}, imported.settings[key])
    own = "" if same else f"; Afzal's is {_shown(usual)}"
    return f"default of {imported.peer}{own}"


def _usual(key: str, others: Mapping[str, Any]) -> Any:
    """What a setting would be beside the others; None where they cannot be without it."""
    try:
        return getattr(config.make(**dict(others)), key)
    except AfzalError:
        return None


def _shown(value: Any, longest: int = 60) -> str:
    """A value on one line, as YAML has it; long ones are cut."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= longest else text[: longest - 3] + "..."
