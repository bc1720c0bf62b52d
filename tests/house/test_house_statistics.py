"""One implementation of every interval: no quantile, no Wilson and no standard error outside ``stats``.

Votes and rows that share a prompt are not independent: every interval is over prompts, computed in one place.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_source import parsed

SOURCE = Path(__file__).resolve().parents[2] / "src" / "afzal"

QUANTILES = (1.644854, 1.959964, 2.575829)  # of the normal distribution, at 90, 95 and 99%
CALLS = {"ppf", "isf", "NormalDist", "ndtri", "stdtrit", "sem", "t_interval", "proportion_confint"}
NAMES = ("wilson", "standard_error", "confidence_interval")


def findings(source: str) -> Iterator[str]:
    """Code that belongs in ``stats``."""
    for node in ast.walk(parsed(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            yield from (f"{line}: {node.value!r}" for _ in range(_is_quantile(node.value)))
        elif isinstance(node, ast.FunctionDef):
            yield from (f"{line}: def {node.name}" for name in NAMES if name in node.name)
        elif isinstance(node, ast.Attribute | ast.Name):
            yield from (f"{line}: {call}" for call in CALLS if call == getattr(node, "attr", getattr(node, "id", "")))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_spread(node.left):
            yield f"{line}: {ast.unparse(node)}"


def _is_quantile(value: object) -> bool:
    if isinstance(value, str):
        return "1.96" in value
    return isinstance(value, float) and any(abs(value - q) < 2e-3 for q in QUANTILES)


def _is_spread(node: ast.expr) -> bool:
    """A standard deviation, which is divided only to get a standard error."""
    called = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return any(getattr(f, "attr", getattr(f, "id", "")) in ("std", "stdev") for f in called)


def test_statistics_are_only_in_their_room():
    broken = [
        f"{path.relative_to(SOURCE)}:{finding}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] != "stats"
        for finding in findings(path.read_text())
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    "source",
    [
        "half = 1.96 * se",
        "z = 1.959963984540054",
        "from scipy.stats import t\nhalf = t.ppf(0.975, 3)",
        "from statistics import NormalDist\nz = NormalDist().inv_cdf(0.975)",
        "def wilson_interval(k, n): ...",
        "se = values.std(ddof=1) / math.sqrt(len(values))",
        "se = float(np.std(values)) / root",
        "words = f'± 1.96 standard errors'",
    ],
)
def test_the_scan_sees_each_of_them(source):
    assert len(list(findings(source))) >= 1


@pytest.mark.parametrize(
    "source", ["x = (r - r.mean()) / (r.std() + 1e-4)", "spread = row.std(ddof=1)", "x = 1.95 * y"]
)
def test_the_scan_accepts_what_is_no_interval(source):
    assert list(findings(source)) == []
