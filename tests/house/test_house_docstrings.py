"""Docstrings: what they name must exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from helpers_source import parsed

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_SECTION = re.compile(r"( *)(Args|Attributes|Raises|Returns|Yields):")
_ENTRY = re.compile(r"    \**(\w+): ")


def sections(docstring: str) -> Iterator[tuple[str, int, list[str]]]:
    """(heading, its indentation, the lines below it) of every section."""
    lines = docstring.splitlines()
    starts = [n for n, line in enumerate(lines) if _SECTION.fullmatch(line)]
    for start, end in pairwise([*starts, len(lines)]):
        heading = _SECTION.fullmatch(lines[start])
        assert heading is not None
        yield heading[2], len(heading[1]), lines[start + 1 : end]


def names_of(node: Documented) -> set[str]:
    """The parameters of a function; the fields, properties and constructor's parameters of a class."""
    if isinstance(node, ast.ClassDef):
        own = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        own |= {n.name for n in methods if n.decorator_list}
        assigned = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
        return own.union((n.attr for n in assigned), *(names_of(n) for n in methods if n.name == "__init__"))
    a = node.args
    return {p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p is not None}


def faults(source: str) -> list[str]:
    """Sections that are indented or hold a paragraph of their own, and entries that name nothing of their function."""
    bad = []
    for node in ast.walk(parsed(source)):
        if not isinstance(node, Documented) or not (docstring := ast.get_docstring(node)):
            continue
        bad += [f"{node.name}: two blank lines"] if "\n\n\n" in docstring else []
        for heading, indentation, lines in sections(docstring):
            if indentation:
                bad.append(f"{node.name}: the section {heading} is indented")
            if heading not in ("Args", "Attributes"):
                continue
            after_blank = [line for before, line in pairwise(lines) if not before.strip()]
            if any(line.startswith("    ") for line in after_blank):
                bad.append(f"{node.name}: a paragraph in the section {heading}")
            entries = [entry[1] for line in lines if (entry := _ENTRY.match(line))]
            bad += [f"{node.name}: {name} is none of its names" for name in entries if name not in names_of(node)]
    return bad


def test_sections_name_parameters_and_fields_that_exist() -> None:
    wrong = {str(path.relative_to(ROOT)): bad for path in SOURCES if (bad := faults(path.read_text("utf-8")))}
    assert not wrong


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('def f(a):\n    """F.\n\n    Args:\n        b: is gone.\n    """', "f: b is none of its names"),
        (
            'class C:\n    """C.\n\n    Attributes:\n        b: is gone.\n    """\n    a: int',
            "C: b is none of its names",
        ),
        (
            'def f(a):\n    """F.\n\n    Args:\n        a: one.\n\n        More.\n    """',
            "f: a paragraph in the section Args",
        ),
        (
            'def f(a):\n    """F.\n\n    More.\n        Raises:\n        E: never.\n    """',
            "f: the section Raises is indented",
        ),
    ],
)
def test_a_fault_of_a_docstring_is_found(source: str, fault: str) -> None:
    assert faults(source) == [fault]


def test_a_sound_docstring_has_no_fault() -> None:
    source = (
        'def f(a, **c):\n    """F.\n\n    Args:\n        a: one\n            more: text.\n        **c: all.\n    """'
    )
    assert faults(source) == []


def members(path: Path) -> dict[str, set[str]]:
    """The names of a module, each with the names in its body if it is a class."""
    known: dict[str, set[str]] = {}
    for node in ast.walk(parsed(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            known[node.name] = names_of(node) | {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            known.setdefault(node.name, set())
        elif isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(alias.asname or alias.name).split(".")[0]: set() for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.setdefault(node.id, set())
    return known


def test_references_of_docstrings_lead_somewhere() -> None:
    modules: dict[str, Path] = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = {name: members(path) for name, path in modules.items()}
    lost: list[str] = []
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for target in re.findall(r":(?:func|class|meth|mod|data):`~?([\w.]+)`", path.read_text("utf-8")):
            full = package + target if target.startswith(".") else target
            lost += [f"{module}: {target}"] if not _leads_somewhere(full, module, known) else []
    assert not lost


def _leads_somewhere(target: str, module: str, known: dict[str, dict[str, set[str]]]) -> bool:
    if target in known:
        return True
    owner, name = module, target
    if target.startswith("afzal."):
        owner = max((m for m in known if target.startswith(f"{m}.")), key=len)
        name = target.removeprefix(f"{owner}.")
    first, _, rest = name.partition(".")
    if owner == "afzal" and first != "fit":  # the package shows the functions of afzal.api on first access
        owner = "afzal.api"
    if first not in known[owner]:
        return first in __builtins__
    return not rest or rest in known[owner][first] or not known[owner][first]
