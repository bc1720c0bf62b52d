"""Load user functions named in settings: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from afzal.objectives.inline_functions import PLACE, recalled

# The content of each file that was read, and the resulting module; read again only if the content changes.
_READ: dict[Path, tuple[bytes, ModuleType]] = {}


def names_function(spec: str) -> bool:
    """Whether a text has the form ``module:function`` or ``file.py:function``, and no file or folder has that name."""
    path, _, name = spec.rpartition(":")
    return bool(path) and name.isidentifier() and not Path(spec).exists()


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``spec`` names.

    Args:
        spec: ``module:function``, where the module may be in the current folder; ``file.py:function`` with the file's
            path, which may import modules next to it; or ``in_memory:function_HASH``
            (:mod:`afzal.objectives.inline_functions`).

    Raises:
        ValueError: there is no such module, file or function, or importing the code fails.
    """
    path, _, name = spec.rpartition(":")
    if path == PLACE:
        return recalled(name)
    if path.endswith(".py") and not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    try:
        module = _of_file(Path(path)) if path.endswith(".py") else _of_module(path)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name!r} for {spec!r}") from error
    except Exception as error:
        raise ValueError(f"{path} fails while it is read: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r}")
    return function


def source_file(spec: str) -> Path | None:
    """The file that holds the function, located without running it; None if there is none."""
    path = spec.rpartition(":")[0]
    if path.endswith(".py"):
        return Path(path) if Path(path).is_file() else None
    try:
        with _importing_from(Path.cwd()):
            plan = importlib.util.find_spec(path)
    except (ImportError, ValueError):
        return None
    return Path(plan.origin) if plan is not None and plan.has_location and plan.origin else None


def _of_module(name: str) -> ModuleType:
    with _importing_from(Path.cwd()):
        return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    """The file as a module; the same object as long as the file's content stays the same."""
    where = path.resolve()
    code = path.read_bytes()
    if where in _READ and _READ[where][0] == code:
        return _READ[where][1]
    name = f"{path.stem}_{hashlib.sha256(str(where).encode()).hexdigest()[:12]}"
    loader = _FromSource(name, str(where))
    plan = importlib.util.spec_from_loader(name, loader)
    assert plan is not None
    module = importlib.util.module_from_spec(plan)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        with _importing_from(where.parent):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _READ[where] = code, module
    return module


class _FromSource(SourceFileLoader):
    """Neither reads nor writes bytecode, whose freshness is checked to whole seconds only."""

    def path_stats(self, path: str) -> Any:
        raise OSError


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    importlib.invalidate_caches()  # a file may have just been written
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
