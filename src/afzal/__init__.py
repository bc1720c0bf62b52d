"""Afzal: turn human preferences into a better language model, and prove that it did.

``afzal.fit`` trains; :mod:`afzal.api` has every other command as a function. Importing this loads neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from afzal._version import __version__

if TYPE_CHECKING:
    from afzal import api
    from afzal.api import fit

__all__ = ["__version__", "api", "fit"]


def __getattr__(name: str) -> Any:
    """Import ``afzal.fit`` and ``afzal.api`` on first access."""
    from importlib import import_module

    if name == "api":
        return import_module("afzal.api")
    if name == "fit":
        return import_module("afzal.api").fit
    raise AttributeError(f"module 'afzal' has no attribute {name!r}; the commands are functions of afzal.api")


def __dir__() -> list[str]:
    """Names for tab completion and ``help``, including those imported on first access."""
    return sorted({*globals(), *__all__})
