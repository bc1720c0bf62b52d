"""Run every command of docs/guide.md, in order, and write what came out back into the page.

    .venv/bin/python -m benchmarks.guide [--work FOLDER] [--page docs/guide.md]

A fenced block whose first line says ``bash runnable`` or ``python runnable`` is run in the working folder. A block with
a file name in that place (``yaml world.yaml``) is written there. The block ``text result`` that follows one that is run
holds its output: all of it, or the lines that match ``show="REGEX"``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide.md"
_FENCE = re.compile(r"```(\w+) (.*?)\n(.*?)```\n(?:\n```text result\n.*?```\n)?", flags=re.DOTALL)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what stands after it on the fence, and its text."""

    language: str
    words: str
    text: str

    @property
    def is_run(self) -> bool:
        return self.words.split()[0] == "runnable"

    @property
    def show(self) -> str | None:
        shown = re.search(r'show="(.*?)"', self.words)
        return shown[1] if shown else None

    @property
    def code(self) -> int:
        """The exit code that the block must end with."""
        stated = re.search(r"exit=(\d+)", self.words)
        return int(stated[1]) if stated else 0

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command of a bash block."""
        return [shlex.split(line, comments=True) for line in self.text.splitlines()]


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are run or written, in order."""
    return [Block(*found.groups()) for found in _FENCE.finditer(page)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="an empty folder to run in; kept (default: a temporary one)")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            sys.exit(f"{work} is not empty")
        renewed = renew(given.page.read_text(encoding="utf-8"), work.resolve())
    given.page.write_text(renewed, encoding="utf-8")


def renew(page: str, work: Path) -> str:
    """The page with the results of its blocks, which are run in ``work``."""

    def replace(found: re.Match[str]) -> str:
        block = Block(*found.groups()[:3])
        fence = f"```{block.language} {block.words}\n{block.text}```\n"
        if not block.is_run:
            (work / block.words).write_text(block.text, encoding="utf-8")
            return fence
        started = time.perf_counter()
        lines = list(_shown(_output(block, work), block.show))
        print(f"{time.perf_counter() - started:6.1f} s  {block.text.splitlines()[0][:100]}", flush=True)
        return fence + ("\n```text result\n" + "\n".join(lines) + "\n```\n" if lines else "")

    return _FENCE.sub(replace, page)


def _output(block: Block, work: Path) -> str:
    """What the block prints; a block that fails ends the program with its output."""
    environment = {
        **os.environ,
        "COLUMNS": "118",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    said = []
    for words in block.commands if block.language == "bash" else [["-c", block.text]]:
        command = [sys.executable, "-m", *words] if block.language == "bash" else [sys.executable, *words]
        done = subprocess.run(command, cwd=work, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)
        if done.returncode != block.code:
            sys.exit(f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}")
        said.append(done.stdout)
    return "".join(said)


def _shown(output: str, show: str | None) -> Iterator[str]:
    for line in _ESCAPES.sub("", output).splitlines():
        if line.strip() and not line.startswith("Loading weights:") and (show is None or re.search(show, line)):
            yield line.rstrip()


if __name__ == "__main__":
    main()
