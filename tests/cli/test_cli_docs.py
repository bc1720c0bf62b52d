"""docs/cli.md lists every verb and every setting as they are. To renew it: ``python tests/cli/test_cli_docs.py``."""

from __future__ import annotations

from pathlib import Path

from afzal import config
from afzal.cli import VERBS
from afzal.cli.flags import sentence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
START, END = "<!-- settings: generated -->\n", "<!-- end -->"
HEADINGS = ("Data", "Model", "Optimisation", "Rollouts", "Objective", "Constraint", "Evaluation", "Run")


def table() -> str:
    """The settings of all methods under their headings."""
    found: dict[str, dict[str, list[str]]] = {heading: {} for heading in HEADINGS}
    for method in config.METHODS:
        kind = config.CONFIGS[method]
        for key, field in kind.model_fields.items():
            if key != "method":
                line = sentence(field).replace("|", "\\|")
                found[config.section(kind, key)].setdefault(f"| `{key}` | {line} |", []).append(method)
    return "\n".join(_part(heading, found[heading]) for heading in HEADINGS)


def _part(heading: str, rows: dict[str, list[str]]) -> str:
    lines = [f"{row} {_methods(methods)} |" for row, methods in rows.items()]
    return "\n".join([f"### {heading}\n", "| setting | what it is | methods |", "|---|---|---|", *lines, ""])


def _methods(methods: list[str]) -> str:
    return "all" if len(methods) == len(config.METHODS) else ", ".join(methods)


def test_the_settings_are_listed_as_they_are():
    assert PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0] == table()


def test_every_verb_is_described():
    text = PAGE.read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"`afzal {verb}" not in text] == []


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2], encoding="utf-8")
