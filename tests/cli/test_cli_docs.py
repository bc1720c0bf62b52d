"""docs/cli.md lists every verb and every setting. To update it: ``python tests/cli/test_cli_docs.py``."""

from __future__ import annotations

from pathlib import Path

from afzal import config
from afzal.cli import VERBS
from afzal.cli.flags import sentence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
START, END = "<!-- settings: generated -->\n", "<!-- end -->"
HEADINGS = ("Data", "Model", "Optimisation", "Rollouts", "Objective", "Constraint", "Evaluation", "Run")

ROUNDS, ROUNDS_END = "<!-- rounds: generated -->\n", "<!-- end of rounds -->"


def table() -> str:
    """The table of all methods' settings under their headings."""
    rows: dict[str, dict[str, list[str]]] = {heading: {} for heading in HEADINGS}
    for method in config.METHODS:
        kind = config.CONFIGS[method]
        for key, field in kind.model_fields.items():
            if key != "method":
                line = sentence(field).replace("|", "\\|")
                rows[config.section(kind, key)].setdefault(f"| `{key}` | {line} |", []).append(method)
    return "\n".join(_part(heading, rows[heading]) for heading in HEADINGS)


def rounds() -> str:
    """The settings of ``afzal iterate`` that training lacks or describes differently."""
    kind = config.IterateConfig
    known = {(key, field.description) for c in config.CONFIGS.values() for key, field in c.model_fields.items()}
    rows: dict[str, list[str]] = {}
    for key, field in kind.model_fields.items():
        if (key, field.description) not in known or config.section(kind, key) in ("Rounds", "Objective"):
            line = sentence(field).replace("|", "\\|")
            rows.setdefault(config.section(kind, key), []).append(f"| `{key}` | {line} |")
    order = ("Rounds", "Generation", "Pairs", "Cost", "Objective", "Stopping", "Run")
    parts = (["### " + h + "\n", "| setting | meaning |", "|---|---|", *rows.pop(h), ""] for h in order)
    text = "\n".join(line for part in parts for line in part)
    assert not rows, f"no place for {sorted(rows)}"
    return text


def _part(heading: str, rows: dict[str, list[str]]) -> str:
    lines = [f"{row} {_methods(methods)} |" for row, methods in rows.items()]
    return "\n".join([f"### {heading}\n", "| setting | meaning | methods |", "|---|---|---|", *lines, ""])


def _methods(methods: list[str]) -> str:
    return "all" if len(methods) == len(config.METHODS) else ", ".join(methods)


def test_the_settings_are_listed_as_they_are():
    assert PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0] == table()


def test_the_settings_of_iterate_are_listed_as_they_are():
    assert PAGE.read_text(encoding="utf-8").partition(ROUNDS)[2].partition(ROUNDS_END)[0] == rounds()


def test_every_verb_is_described():
    text = PAGE.read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"`afzal {verb}" not in text] == []


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    text = before + START + table() + END + rest.partition(END)[2]
    before, _, rest = text.partition(ROUNDS)
    text = before + ROUNDS + rounds() + ROUNDS_END + rest.partition(ROUNDS_END)[2]
    PAGE.write_text(text, encoding="utf-8")
