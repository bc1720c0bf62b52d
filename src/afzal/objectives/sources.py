"""Find the source files of a user function: its own file and every user file that it imports, without running any.

Imports are read from the source text, including those inside functions. User files are neither in the standard library
nor in installed packages; installed packages are reported by name. Files that code reads as data, or imports by a name
built at run time, cannot be detected.
"""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from afzal.objectives.functions import source_file

_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_BY_NAME = ("import_module", "__import__")


def own_sources(spec: str) -> tuple[list[Path], list[str]]:
    """The file of the function that ``module:function`` or ``file.py:function`` names, then the files that it imports,
    by path; and the installed packages among its imports, by name. Empty if there is no such file."""
    first = source_file(spec)
    if first is None:
        return [], []
    by_path = spec.rpartition(":")[0].endswith(".py")
    roots = list(dict.fromkeys([first.resolve().parent if by_path else Path.cwd(), Path.cwd(), *_own_roots()]))
    queue, files, packages = [first.resolve()], {}, set()
    while queue:
        path = queue.pop()
        if path in files:
            continue
        files[path] = None
        for name in sorted(_imported(path)):
            located = _located(name, roots)
            queue += located
            top = name.partition(".")[0]
            if not located and not _located(top, roots) and top not in sys.stdlib_module_names and top != "afzal":
                packages.add(top)
    return [first, *sorted(path for path in files if path != first.resolve())], sorted(packages)


def _own_roots() -> list[Path]:
    """Folders of ``sys.path`` that hold neither the standard library nor installed packages nor Afzal."""
    installed = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    known = {Path(place).resolve() for place in installed} | {Path(__file__).resolve().parents[2]}
    standard = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]  # contain lib-dynload
    places = [Path(place or ".").resolve() for place in sys.path]
    candidates = [place for place in places if place.is_dir() and place not in known]
    return [place for place in candidates if not any(map(place.is_relative_to, standard))]


def _located(name: str, roots: list[Path]) -> list[Path]:
    """The files of a dotted name, parent packages first; empty if it is not a user module."""
    parts = name.split(".")
    if parts[0] == "afzal":  # another copy of it may be on the path
        return []
    for root in roots:
        candidates = []
        for k in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:k])
            files = [place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in _SUFFIXES)]
            candidates += [next((path.resolve() for path in files if path.is_file()), None)]
        if candidates[-1] is not None:
            return [path for path in candidates if path is not None]
    return []


def _imported(path: Path) -> set[str]:
    """Dotted names that a file imports, including ``from`` targets that may be modules; empty for other than source
    files."""
    if path.suffix != ".py":
        return set()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    return {name for node in ast.walk(tree) for name in _names(node, path)}


def _names(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(filter(None, [_package(path, node.level), node.module]))
        yield from filter(None, [base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)])
    elif isinstance(node, ast.Call) and node.args and isinstance(name := node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in _BY_NAME and isinstance(name.value, str):
            yield name.value


def _package(path: Path, level: int) -> str:
    """The dotted name of the package that ``level`` dots refer to in a file; empty for no dots."""
    if not level:
        return ""
    folder = path.parents[level - 1]
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names)
