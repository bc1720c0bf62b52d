"""The source never unpickles, evaluates text, uses a shell, or trusts code of a model folder: 0 findings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_source import parsed

SOURCE = Path(__file__).resolve().parents[2] / "src"

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "np.load",
    "numpy.load",
    "np.save",
    "numpy.save",
    "pd.read_pickle",
    "pandas.read_pickle",
}
MEMBERS = {(call.partition(".")[0], call.partition(".")[2]) for call in CALLS}
TRUE_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
FALSE_KEYWORDS = {"weights_only", "autoescape"}


def findings(source: str) -> Iterator[str]:
    """Forbidden code in a file. ``model.eval()`` is a method, not the builtin."""
    for node in ast.walk(parsed(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from (f"{line}: import {a.name}" for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            top = node.module.partition(".")[0]
            names = {a.name for a in node.names}
            if top in MODULES or any((top, name) in MEMBERS for name in names):
                yield f"{line}: from {node.module} import {', '.join(sorted(names))}"
        elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
            yield f"{line}: {node.id}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in CALLS:
            yield f"{line}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            yield from _keywords(node)
        elif isinstance(node, ast.Dict):
            yield from _settings(node)
        elif isinstance(node, ast.Assign) and _is(node.value, True):
            yield from (f"{line}: {ast.unparse(t)} = True" for t in node.targets if _last_name(t) in TRUE_KEYWORDS)


def _keywords(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        # anything but the literal False, since a variable could be true
        if keyword.arg in TRUE_KEYWORDS and not _is(keyword.value, False):
            yield f"{call.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"
        if keyword.arg in FALSE_KEYWORDS and not _is(keyword.value, True):
            yield f"{call.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


def _settings(literal: ast.Dict) -> Iterator[str]:
    for key, value in zip(literal.keys, literal.values, strict=True):
        if isinstance(key, ast.Constant) and key.value in TRUE_KEYWORDS and not _is(value, False):
            yield f"{literal.lineno}: {key.value!r}: {ast.unparse(value)}"


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _last_name(node: ast.expr) -> str:
    """The name that is assigned: a variable, a member, or a constant key."""
    if isinstance(node, ast.Subscript):
        node = node.slice
    name = getattr(node, "attr", getattr(node, "id", getattr(node, "value", "")))
    return name if isinstance(name, str) else ""


def test_the_source_has_none_of_it():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20
    forbidden = [f"{path.relative_to(SOURCE)}:{finding}" for path in files for finding in findings(path.read_text())]
    assert not forbidden, "\n" + "\n".join(forbidden)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import marshal",
        "torch.load(x)",
        "load = torch.load",
        "from torch import load",
        "torch.save(x, y)",
        "yaml.load(x)",
        "from yaml import load",
        "eval('1')",
        "f = eval",
        "exec('1')",
        "__import__('os')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "os.system('ls')",
        "from os import system",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=options.trust)",
        "kw = {'trust_remote_code': True}",
        "kw['trust_remote_code'] = True",
        "np.load(x, allow_pickle=True)",
        "f(x, weights_only=False)",
    ],
)
def test_the_scan_finds(source):
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(x)",
        "json.load(x)",
        "re.compile('x')",
        "f(trust_remote_code=False)",
        "kw = {'trust_remote_code': False}",
        "x = 'pickle'",
        "subprocess.run(['ls'])",
    ],
)
def test_the_scan_accepts(source):
    assert not list(findings(source))
