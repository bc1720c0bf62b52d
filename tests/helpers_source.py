"""The syntax trees of source files, used by many tests of the house."""

from __future__ import annotations

import ast
from functools import lru_cache


@lru_cache(maxsize=1024)  # the complete package, once per process; nobody changes a tree
def parsed(source: str) -> ast.Module:
    """The tree of a file's text."""
    return ast.parse(source)
