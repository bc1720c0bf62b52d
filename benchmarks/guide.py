"""Run every command of docs/guide.md in order, and write the results back into the page.

    .venv/bin/python -m benchmarks.guide [--work FOLDER] [--page docs/guide.md]

A fenced block marked ``bash runnable`` or ``python runnable`` is run in the working folder. A block marked with a file
name (``yaml world.yaml``) is written to that file. The ``text result`` block after a runnable block contains its
output: all of it, or the lines that match ``show="REGEX"``.
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
    """A fenced block: its language, the rest of the opening fence, and its text."""

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
        """The expected exit code of the block."""
        stated = re.search(r"exit=(\d+)", self.words)
        return int(stated[1]) if stated else 0

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of every command in a bash block."""
        return [shlex.split(line, comments=True) for line in self.text.splitlines()]


def blocks(page: str) -> list[Block]:
    """The blocks of a page to run or to write, in order."""
    return [Block(*match.groups()) for match in _FENCE.finditer(page)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="an empty folder to run in, which is kept (default: a temporary folder)"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            sys.exit(f"{work} is not empty")
        renewed = renew(options.page.read_text(encoding="utf-8"), work.resolve())
    options.page.write_text(renewed, encoding="utf-8")


def renew(page: str, work: Path) -> str:
    """Run the page's blocks in ``work``, and return the page with their results."""

    def replace(match: re.Match[str]) -> str:
        block = Block(*match.groups()[:3])
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
    """Output of the block; if it fails, the program exits with the output."""
    environment = {
        **os.environ,
        "COLUMNS": "118",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    outputs = []
    for words in block.commands if block.language == "bash" else [["-c", block.text]]:
        command = [sys.executable, "-m", *words] if block.language == "bash" else [sys.executable, *words]
        done = subprocess.run(command, cwd=work, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)
        if done.returncode != block.code:
            sys.exit(f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}")
        outputs.append(done.stdout)
    return "".join(outputs)


def _shown(output: str, show: str | None) -> Iterator[str]:
    for line in _ESCAPES.sub("", output).splitlines():
        if line.strip() and not line.startswith("Loading weights:") and (show is None or re.search(show, line)):
            yield line.rstrip()


if __name__ == "__main__":
    main()
