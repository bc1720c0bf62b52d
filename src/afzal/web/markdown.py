"""Markdown as a tree of known elements, which the page builds node by node: no HTML is ever generated or parsed.

Links show their address and are not clickable, images appear by name, and HTML stays plain text.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Node = str | list[Any]
"""Text, or ``[tag, *children]``."""

TAGS = frozenset(
    "p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td".split()  # noqa: SIM905
)
LONGEST = 50_000


def tree(text: str) -> list[Node] | None:
    """The nodes of a text; None for more than ``LONGEST`` characters, which are shown as plain text."""
    if len(text) > LONGEST:
        return None
    return _nodes(_parser().parse(text))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")


def _nodes(tokens: Sequence[Token]) -> list[Node]:
    root: list[Any] = []
    open_, hrefs = [root], []
    for token in tokens:
        if token.type == "link_open":
            hrefs.append(str(token.attrGet("href")))
        elif token.type == "link_close":
            open_[-1].append(f" ({hrefs.pop()})")
        elif token.nesting == 1:
            element = [token.tag] if token.tag in TAGS else []
            if element:
                open_[-1].append(element)
            open_.append(element or open_[-1])
        elif token.nesting == -1:
            open_.pop()
        else:
            open_[-1].extend(_leaf(token))
    return root


def _leaf(token: Token) -> list[Node]:
    match token.type:
        case "inline":
            return _nodes(token.children or [])
        case "softbreak":
            return ["\n"]
        case "hardbreak":
            return [["br"]]
        case "hr":
            return [["hr"]]
        case "code_inline":
            return [["code", token.content]]
        case "fence" | "code_block":
            return [["pre", token.content]]
        case "image":
            return [f"[image: {token.content}]"]
        case _:
            return [token.content]
