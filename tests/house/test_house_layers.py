"""The layer table: which room may import which, and what may be heavy to import.

The source is parsed, not imported. For rooms of Afzal the table applies to every import (an upward import inside a
function is as wrong as one at the top); for heavy packages it applies where importing the room would load them: at
module level, including ``try`` and ``if`` but not ``if TYPE_CHECKING``. The table is the one in `docs/design.md`.
"""

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers_source import parsed

SOURCE = Path(__file__).resolve().parents[2] / "src" / "afzal"

DESIGN = SOURCE.parents[1] / "docs" / "design.md"
LIGHT = frozenset({"yaml", "pydantic", "pydantic_core", "rich"})  # tens of milliseconds
GROUPS = {"light": LIGHT, "typer": frozenset({"typer", "click"}), "nothing": frozenset()}
WITHOUT_ERRORS = {"errors", "objectives", "__init__", "__main__"}


class Room(NamedTuple):
    """The rooms of Afzal that this one may import, and the packages that it may load at module level."""

    rooms: frozenset[str]
    packages: frozenset[str]


def table(page: str) -> dict[str, Room]:
    """The rooms in the design's table, by name."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    rows = [row for row in rows if len(row) == 4]
    return {name.strip("`"): _room(name.strip("`"), rooms, packages) for name, _, rooms, packages in rows}


def _room(name: str, rooms: str, packages: str) -> Room:
    named = [re.sub(r"\(.*?\)", "", word).strip() for word in rooms.split(",")]
    allowed = {word for word in named if word != "nothing"} | (set() if name in WITHOUT_ERRORS else {"errors"})
    loaded = [GROUPS.get(word.strip(), frozenset({word.strip()})) for word in packages.split(",")]
    return Room(frozenset(allowed), frozenset().union(*loaded))


TABLE = table(DESIGN.read_text(encoding="utf-8"))
ANYWHERE_INSIDE_FUNCTIONS = {"api", "cli", "__init__"}  # lazily imports whatever a verb or a public name needs


class Import(NamedTuple):
    module: str
    line: int
    in_function: bool
    for_types_only: bool

    @property
    def deferred(self) -> bool:
        """Whether importing the file does not run it."""
        return self.in_function or self.for_types_only


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import below a node; ``from a import b`` counts as ``a.b``, relative ones are resolved in ``package``."""
    yield from _imports(tree, package, in_function=False, for_types_only=False)


def _imports(node: ast.AST, package: str, in_function: bool, for_types_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(a.name, node.lineno, in_function, for_types_only) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, package)
        yield from (Import(f"{base}.{a.name}", node.lineno, in_function, for_types_only) for a in node.names)
    inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
        yield from _imports(child, package, inside, for_types_only or typed)


def _base(node: ast.ImportFrom, package: str) -> str:
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def faults(room_name: str, package: str, source: str, where: str = "") -> list[str]:
    """Imports in a file that break the table."""
    allowed, strict = TABLE[room_name], room_name == "objectives"
    breaches = []
    for entry in imports(parsed(source), package):
        top, _, rest = entry.module.partition(".")
        if top == "afzal":
            target = rest.partition(".")[0]
            lazy = entry.in_function and room_name in ANYWHERE_INSIDE_FUNCTIONS
            if target in TABLE and target not in {room_name, *allowed.rooms} and not (lazy or entry.for_types_only):
                breaches.append(f"{where}:{entry.line}: {room_name} may not import the room {target}")
        elif top not in sys.stdlib_module_names and top not in allowed.packages and (strict or not entry.deferred):
            breaches.append(f"{where}:{entry.line}: {room_name} may not load {top} at module level")
    return breaches


def files() -> list[tuple[str, str, Path]]:
    """Room, package and path of every source file."""
    listed = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        listed.append((parts[0], ".".join(("afzal", *parts[:-1])), path))
    return listed


def test_every_file_belongs_to_a_room():
    strangers = sorted({name for name, _, _ in files()} - TABLE.keys())
    assert not strangers, f"give these rooms a row in the table of docs/design.md: {strangers}"


@pytest.mark.parametrize("name", [n for n in TABLE if n in {f[0] for f in files()}])
def test_rooms_keep_to_the_table(name):
    broken = [
        fault
        for owner, package, path in files()
        if owner == name
        for fault in faults(name, package, path.read_text(), str(path.relative_to(SOURCE)))
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_the_table_has_no_cycle():
    """The rooms can be sorted so that each comes after what it imports."""
    waiting = {name: set(entry.rooms) for name, entry in TABLE.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these rooms import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


def arrows(sources: Mapping[str, tuple[str, str]]) -> dict[str, set[str]]:
    """The modules that each module imports, including inside functions and for types.

    Args:
        sources: package and text of every module, by its name.
    """
    return {
        name: {_module(entry.module, sources) for entry in imports(parsed(text), package)} - {name, ""}
        for name, (package, text) in sources.items()
    }


def _module(imported: str, sources: Collection[str]) -> str:
    """The module of ``from a import b``: ``a.b`` or, if b is a name in a, ``a``; empty if it is not ours."""
    return next((name for name in (imported, imported.rpartition(".")[0]) if name in sources), "")


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules in an import cycle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_is_in_a_cycle():
    """An import inside a function, or for types only, closes a cycle too."""
    sources = {}
    for _, package, path in files():
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        sources[name] = (package, path.read_text(encoding="utf-8"))
    graph = arrows(sources)
    assert sum(map(len, graph.values())) > 1000
    assert not cycle(graph)


@pytest.mark.parametrize(
    ("first", "second", "circular"),
    [
        ("from afzal.b import f", "def g():\n    from afzal import a", True),
        ("from afzal import b", "if TYPE_CHECKING:\n    from afzal.a import T", True),
        ("from . import b", "import afzal.a", True),
        ("from afzal.b import f", "from afzal.c import g", False),
        ("from afzal.b import a", "import c", False),
    ],
)
def test_the_search_for_cycles_sees_one(first, second, circular):
    sources = {"afzal.a": ("afzal", first), "afzal.b": ("afzal", second), "afzal.c": ("afzal", "")}
    assert bool(cycle(arrows(sources))) is circular


def test_the_fixed_points_of_the_design():
    """Rules that must survive any edit of the table above."""
    assert TABLE["objectives"] == Room(frozenset(), frozenset({"torch"}))
    assert {"errors", "records", "tokens", "train", "cli"} <= TABLE.keys()
    assert "train" not in TABLE["model"].rooms
    assert not TABLE["train"].rooms & {"generate", "judge", "recipes"}
    for light in "errors text records stats folders plan config runs data quality judge health report web cli".split():  # noqa: SIM905
        assert not TABLE[light].packages & {"torch", "transformers", "datasets", "pyarrow", "safetensors"}, light


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("model", "from afzal.train.loop import fit", "room train"),
        ("model", "from afzal import train", "room train"),
        ("model", "import afzal.train as t", "room train"),
        ("model", "def f():\n    from afzal import train", "room train"),
        ("model", "from ..train import loop", "room train"),
        ("model", "class A:\n    from afzal import recipes", "room recipes"),
        ("data", "import torch", "load torch"),
        ("data", "try:\n    import pyarrow.parquet as pq\nexcept ImportError:\n    pq = None", "load pyarrow"),
        ("data", "if True:\n    from numpy import array", "load numpy"),
        ("data", "with open('x'):\n    import datasets", "load datasets"),
        ("objectives", "from afzal.errors import AfzalError", "room errors"),
        ("objectives", "def f():\n    import scipy", "load scipy"),
        ("cli", "from afzal import recipes", "room recipes"),
        ("runs", "import yaml", "load yaml"),
        ("runs", "if not TYPE_CHECKING:\n    x = 1\nelse:\n    y = 2\nimport torch", "load torch"),
        ("runs", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "load torch"),
    ],
)
def test_the_check_sees_a_breach(name, source, said):
    (breach,) = faults(name, f"afzal.{name}", source)
    assert said in breach


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data", "def f():\n    import pyarrow\n    import datasets"),
        ("data", "from __future__ import annotations\nimport json, os.path\nfrom afzal.records import Item"),
        ("data", "from . import dataset\nfrom .files import read\nfrom ..records import Item"),
        ("runs", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("cli", "def command():\n    from afzal import recipes, lab\n    import torch"),
        ("train", "import torch\nfrom afzal import runs, __version__\nfrom afzal.model import load"),
    ],
)
def test_the_check_accepts_correct_imports(name, source):
    assert faults(name, f"afzal.{name}", source) == []
