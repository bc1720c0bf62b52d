"""docs/sweep.md lists the settings as they are. To renew it: ``python tests/sweep/test_sweep_docs.py``."""

from __future__ import annotations

from pathlib import Path

from afzal import config
from afzal.cli.flags import sentence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sweep.md"
START, END = "<!-- settings of a sweep: generated -->\n", "<!-- end of settings -->"


def table() -> str:
    """The settings in the order of the class, those of measuring last."""
    fields = config.SweepConfig.model_fields
    own = [key for key in fields if key in config.SweepConfig.__annotations__]
    ordered = [*own, *(key for key in fields if key not in own)]
    lines = [f"| `{key}` | {sentence(fields[key]).replace('|', chr(92) + '|')} |" for key in ordered]
    return "\n".join(["| setting | meaning |", "|---|---|", *lines, ""])


def test_the_settings_are_listed_as_they_are():
    assert PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0] == table()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2], encoding="utf-8")
