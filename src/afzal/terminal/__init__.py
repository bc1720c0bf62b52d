"""Print untrusted text (data, file names, model output) without letting the terminal obey it.

A terminal obeys every escape sequence written to it: they set its title, clear it, hide text. So every command writes
through :class:`VisibleStream`, and coloured output goes through :class:`afzal.terminal.console.VisibleConsole`.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

# Control characters except tab and line feed; marks that reorder or hide text; tags; halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff\ud800-\udfff]"
)
_BREAKS = re.compile("[\t\n]")


def visible(text: str) -> str:
    r"""Escape everything that a terminal would obey or hide as JSON does: ``\u001b``. Line feeds and tabs stay."""
    return _HIDDEN.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Like :func:`visible`, and escape line feeds and tabs as ``\u000a`` and ``\u0009``: a name cannot forge a
    line."""
    return _BREAKS.sub(_escaped, visible(text))


def _escaped(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k] << 8 | units[k + 1]:04x}" for k in range(0, len(units), 2))


class VisibleStream:
    """A text stream that writes :func:`visible` text, and escapes what its encoding cannot represent.

    ``rich_proxied_file`` is the wrapped stream, under the name that rich looks for; rich's own escape sequences pass.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str) -> int:
        """Write the text with hidden characters escaped; return its length."""
        stream, escaped = self.rich_proxied_file, visible(text)
        try:
            stream.write(escaped)
        except UnicodeEncodeError:
            stream.write(escaped.encode("ascii", "backslashreplace").decode())
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would bypass the escaping
            raise AttributeError(name)
        return getattr(self.rich_proxied_file, name)
