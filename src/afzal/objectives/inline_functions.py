"""Names for functions that exist only in memory, such as those of a notebook, so that settings can hold them.

The name contains a hash of the function: its source text, its default arguments, and the plain values and functions
that it refers to. So a changed function has another name, and a run is not resumed with it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

PLACE = "in_memory"
_GIVEN: dict[str, Callable[..., Any]] = {}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def spec_of(fn: Callable[..., Any]) -> str:
    """The name of a function in settings: ``module:function`` if importing gives this exact function, else
    ``in_memory:function_HASH``, which only this process can call."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    importable = module not in (None, "__main__", "builtins") and name.isidentifier()
    if importable and getattr(sys.modules.get(str(module)), name, None) is fn:
        return f"{module}:{name}"
    words = "".join(c if c.isalnum() else "_" for c in getattr(fn, "__name__", type(fn).__name__)).strip("_")
    name = f"{words if words.isidentifier() else 'function'}_{_hash(fn)}"
    _GIVEN[name] = fn
    return f"{PLACE}:{name}"


def recalled(name: str) -> Callable[..., Any]:
    """The function of ``in_memory:name``.

    Raises:
        ValueError: this process does not have it.
    """
    if name not in _GIVEN:
        raise ValueError(
            f"{name.rpartition('_')[0]!r} was a Python function in memory, and this process was not given it: call "
            "afzal.fit(..., resume=True) with the function, or write it into a file"
        )
    return _GIVEN[name]


def _hash(fn: Callable[..., Any]) -> str:
    return hashlib.sha256(_content(fn, ()).encode("utf-8", "replace")).hexdigest()[:12]


def _content(value: Any, seen: tuple[int, ...]) -> str:
    """A text of everything that determines what a value does, as far as it can be inspected."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in seen or len(seen) > 20:
        return "again"
    seen = (*seen, id(value))
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_content(element, seen) for element in value]
        return f"[{', '.join(parts if isinstance(value, list | tuple) else sorted(parts))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_content(element, seen)}" for key, element in value.items()) + "}"
    if inspect.isfunction(value):
        return _of_function(value, seen)
    if isinstance(value, partial):
        return f"partial {_content([value.func, value.args, value.keywords], seen)}"
    if inspect.ismethod(value):
        return _of_function(value.__func__, seen) + _content(value.__self__, seen)
    if inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{type(value).__module__}.{type(value).__qualname__} {_content(getattr(value, '__dict__', {}), seen)}"


def _of_function(fn: Any, seen: tuple[int, ...]) -> str:
    context = [
        fn.__defaults__,
        fn.__kwdefaults__,
        [cell.cell_contents for cell in fn.__closure__ or () if _is_set(cell)],
    ]
    if str(fn.__module__).partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return f"{fn.__module__}.{fn.__qualname__}"
    context.append({name: fn.__globals__[name] for name in _names(fn.__code__) if name in fn.__globals__})
    return _source(fn) + _content(context, seen)


def _source(fn: Any) -> str:
    try:
        return inspect.getsource(fn)
    except (OSError, TypeError):  # typed at an interactive prompt
        return repr(fn.__code__.co_code)


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> list[str]:
    """The global names that code uses, including those in nested functions."""
    inner = (name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part))
    return sorted({*code.co_names, *inner})
