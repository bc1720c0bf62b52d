"""``from_pretrained`` is called in one file only, and always with arguments that run no code from the folder.

A missing argument is not safe: transformers asks on the terminal whether to trust a folder's code if
``trust_remote_code`` is unset, accepts pickles if ``use_safetensors`` is, and contacts the hub if
``local_files_only`` is.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_source import parsed

SOURCE = Path(__file__).resolve().parents[2] / "src"
LOADER = "afzal/folders/load.py"
LOCAL = {"local_files_only": True}
AUTO = {**LOCAL, "trust_remote_code": False}
NEEDED = {
    "AutoTokenizer": AUTO,
    "AutoConfig": AUTO,
    "AutoFeatureExtractor": AUTO,
    "AutoProcessor": AUTO,
    "images_alone": AUTO,
    "kind": {**AUTO, "use_safetensors": True},
    "GenerationConfig": LOCAL,
    "PeftModel": LOCAL,
}


def findings(source: str, *, is_loader: bool) -> Iterator[str]:
    """Every ``from_pretrained`` outside the loader, not called directly there, or called without an argument."""
    tree = parsed(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "from_pretrained":
            yield f"{node.lineno}: the name as text"
        if not isinstance(node, ast.Attribute) or node.attr != "from_pretrained":
            continue
        if not is_loader:
            yield f"{node.lineno}: {ast.unparse(node)} outside {LOADER}"
        elif id(node) not in called:
            yield f"{node.lineno}: {ast.unparse(node)} is passed on, so that its arguments are not seen"
        else:
            yield from (f"{node.lineno}: {fault}" for fault in _arguments(ast.unparse(node.value), called[id(node)]))


def _arguments(owner: str, call: ast.Call) -> Iterator[str]:
    given = {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}
    if owner not in NEEDED:
        yield f"{owner} is not known to be safe"
    for name, value in NEEDED.get(owner, {}).items():
        if given.get(name) is not value:
            yield f"{owner} without {name}={value}"


def test_models_and_tokenizers_are_opened_in_one_file_and_safely():
    files = sorted(SOURCE.rglob("*.py"))
    assert SOURCE / LOADER in files
    faults = [
        f"{path.relative_to(SOURCE)}:{fault}"
        for path in files
        for fault in findings(path.read_text(), is_loader=path == SOURCE / LOADER)
    ]
    assert not faults, "\n" + "\n".join(faults)


def test_the_loader_opens_all_that_the_table_names():
    """The control: the scan sees the existing calls."""
    tree = ast.parse((SOURCE / LOADER).read_text())
    owners = {
        ast.unparse(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "from_pretrained"
    }
    assert owners == NEEDED.keys()


SAFE = "AutoTokenizer.from_pretrained(x, trust_remote_code=False, local_files_only=True)"


@pytest.mark.parametrize(
    ("source", "is_loader"),
    [
        (SAFE, False),
        ("getattr(AutoTokenizer, 'from_pretrained')(x)", True),
        ("AutoTokenizer.from_pretrained(x)", True),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=False)", True),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=None, local_files_only=True)", True),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=trust, local_files_only=True)", True),
        ("kind.from_pretrained(x, trust_remote_code=False, local_files_only=True)", True),
        ("AutoTokenizer.from_pretrained(x, **safe)", True),
        ("partial(AutoTokenizer.from_pretrained, trust_remote_code=False, local_files_only=True)", True),
        ("AutoImageProcessor.from_pretrained(x, trust_remote_code=False, local_files_only=True)", True),
    ],
)
def test_the_scan_finds(source, is_loader):
    assert list(findings(source, is_loader=is_loader))


def test_the_scan_accepts():
    assert not list(findings(SAFE, is_loader=True))
