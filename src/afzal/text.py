"""Format numbers, durations and plurals for display, and make hidden characters of untrusted text visible."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

_MINUS = "\N{MINUS SIGN}"


def number(value: Any, digits: int = 4) -> str:
    """A number with about ``digits`` significant digits and a true minus sign; an em dash if it is not finite."""
    if not is_number(value):
        return "\N{EM DASH}"
    if isinstance(value, int):
        return f"{value:,}".replace("-", _MINUS)
    size = abs(value)
    if size >= 10 ** (digits - 1):
        text = f"{value:,.1f}" if size < 1e5 else f"{value:,.0f}"
    elif size and size < 1e-3:
        text = _exponent(f"{value:.{digits - 2}e}")
    else:
        power = math.floor(math.log10(size)) if size else 0
        decimals = digits - 1 - power if size >= 1 else max(digits, -power)
        text = f"{value:.{max(0, decimals)}f}"
    return "0" if text.strip("-0.") == "" and not size else text.replace("-", _MINUS)


def setting(value: float) -> str:
    """A setting as a user would type it: ``0.1``, ``3e-5``, ``16``."""
    return _exponent(f"{value:.2e}") if 0 < abs(value) < 1e-3 else f"{value:g}"


def signed(value: Any, digits: int = 4) -> str:
    """:func:`number` with an explicit plus sign."""
    text = number(value, digits)
    return f"+{text}" if is_number(value) and value > 0 else text


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """``[low, high]``; empty if an end is missing."""
    return f"[{number(low, digits)}, {number(high, digits)}]" if is_number(low) and is_number(high) else ""


def sign(gap: Mapping[str, Any]) -> int:
    """1 or -1 if the interval of a difference (``low``, ``high``) lies above or below 0; 0 if it contains 0 or is
    unknown."""
    if gap["low"] is None or gap["high"] is None:
        return 0
    return int(gap["low"] > 0) - int(gap["high"] < 0)


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite int or float (a bool is not a number)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: Any) -> str:
    """Seconds as ``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if not is_number(seconds):
        return "\N{EM DASH}"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def time_left(seconds: float) -> str:
    """``about 42 s left``, or ``less than a second left``."""
    return "less than a second left" if seconds < 1 else f"about {duration(seconds)} left"


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """``1 row``, ``1,492 rows``."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of cells as lines of aligned columns: the first column to the left, the others to the right. Hidden
    characters are made visible."""
    visible_rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*visible_rows, strict=True)]
    lines = []
    for first, *further in visible_rows:
        cells = [f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(further, widths[1:], strict=True))]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def visible(text: str) -> str:
    """Make control, direction-changing and unpaired surrogate characters visible.

    A model's output can hold characters that reorder or hide the text after them. Line breaks and tabs stay.
    """
    return "".join(char if char in "\n\t" or char.isprintable() else _shown(char) for char in text)


def _shown(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    if unicodedata.category(char) in ("Zs", "Co", "Cn") or char in "\u200c\u200d\ufe0f":
        return char
    return f"\u27e8U+{code:04X}\u27e9"


def _exponent(text: str) -> str:
    mantissa, power = text.split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(power)}"
