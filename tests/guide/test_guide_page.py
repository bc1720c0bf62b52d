"""Every command and snippet of docs/guide.md runs, in order, at a small size, and its results come from runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from afzal.cli import main
from afzal.lab import demo, language
from benchmarks import guide

SMALL = demo.Plan(demonstrations=300, sft_steps=6, pairs=120, dpo_steps=4, betas=(0.3, 0.1))
SIZES = (
    (r"^max_steps(=|: )\d+", r"max_steps\g<1>2"),
    (r"^iterations=\d+", "iterations=1"),
    (r"^epochs=\d+", "epochs=1"),
    (r"^(seeds|batch_size): .*", {"seeds": "seeds: [0]", "batch_size": "batch_size: 32"}),
)


def small(text: str) -> str:
    """The text with few updates, so that it runs quickly."""
    for pattern, by in SIZES:
        put = by if isinstance(by, str) else lambda m, by=by: by[m[1]]
        text = re.sub(pattern, put, text, flags=re.MULTILINE)
    return text


def quick(words: list[str]) -> list[str]:
    """A command at its small size, including flags with their values."""
    said = [small(word) for word in words]
    for flag, value in (("--max-steps", "2"), ("--epochs", "1")):
        if flag in said:
            said[said.index(flag) + 1] = value
    return said


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PROPER", SMALL)
    monkeypatch.setattr(demo, "_N_HELD_OUT", 64)
    monkeypatch.setattr(language, "N_TRAIN", 40)
    monkeypatch.setattr(language, "N_HELD_OUT", 4)
    page = guide.blocks(guide.PAGE.read_text(encoding="utf-8"))
    assert sum(block.is_run for block in page) > 25
    for block in page:
        if not block.is_run:
            Path(block.words).write_text(small(block.text), encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, "docs/guide.md", "exec"), {})
        else:
            for words in block.commands:
                assert words[0] == "afzal"
                code = main([*quick(words)[1:], "--debug"])
                # a few pairs have fewer findings than the page's 8,000
                assert code in ({0, block.code} if words[1] == "check" else {block.code}), (words, capsys.readouterr())


def test_a_result_is_below_every_block_that_shows_something():
    """The output that `make guide` wrote is below its block."""
    text = guide.PAGE.read_text(encoding="utf-8")
    results = len(re.findall(r"^```text result$", text, flags=re.MULTILINE))
    silent = [b for b in guide.blocks(text) if b.is_run and not b.show and 'runpy.run_path("crowd.py")' in b.text]
    assert results == sum(b.is_run for b in guide.blocks(text)) - len(silent)


def test_a_renewed_page_keeps_its_prose_and_replaces_results(tmp_path):
    page = "Before.\n\n```python runnable\nprint(1 + 1)\n```\n\n```text result\n3\n```\n\nAfter.\n"
    renewed = guide.renew(page, tmp_path)
    assert renewed == page.replace("\n3\n", "\n2\n")
    assert guide.renew(renewed, tmp_path) == renewed
    named = "```python mine.py\nx = 1\n```\n"
    assert guide.renew(named, tmp_path) == named
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"
    failing = replace(guide.blocks(page)[0], text="raise SystemExit(3)\n")
    with pytest.raises(SystemExit, match="exit 3"):
        guide._output(failing, tmp_path)
