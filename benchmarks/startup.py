"""Processor time of ``afzal --help`` and of ``afzal check`` on many rows, also with its optional checks (``--against``,
``--deep``).

.venv/bin/python -m benchmarks.startup --out benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import table
from benchmarks.beside_others import install
from benchmarks.machine import about_run

LETTERS = random.Random(0)
WORDS = ["".join(LETTERS.choices("aaeeioutnsrlhd", k=LETTERS.randint(2, 9))) for _ in range(5000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    about, commands = about_run("benchmarks.startup", ["afzal"], threads=1), {}
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps(row(i)) + "\n" for i in range(options.rows)))
        few = options.rows // 10
        deep, test = Path(folder, "deep.jsonl"), Path(folder, "test.jsonl")
        deep.write_text("".join(json.dumps(varied(i)) + "\n" for i in range(few)))
        test.write_text("".join(json.dumps({"prompt": varied(i)["prompt"]}) + "\n" for i in range(few, few + 1000)))
        for name, arguments in {
            "--help": ["--help"],
            f"check, {options.rows:,} rows": ["check", str(file)],
            f"check --against 1,000 prompts, {options.rows:,} rows": ["check", str(file), "--against", str(test)],
            f"check, {few:,} rows": ["check", str(deep)],
            f"check --deep, {few:,} rows": ["check", str(deep), "--deep"],
        }.items():
            seconds = [cpu_seconds([sys.executable, "-m", "afzal", *arguments], folder) for _ in range(options.repeats)]
            commands[f"afzal {name}"] = {"median": statistics.median(seconds), "seconds": seconds}
    figures = {"about": about, "processor_seconds": commands}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table.startup(figures))


def row(i: int) -> dict[str, str]:
    """A pair about as long as those of HH-RLHF."""
    rng = random.Random(i)
    words = lambda n: " ".join(rng.choice(("never", "is", "the", "a", "person", "who")) for _ in range(n))  # noqa: E731
    return {"prompt": f"{i} {words(60)}", "chosen": words(30), "rejected": words(32)}


def varied(i: int) -> dict[str, str]:
    """A pair of the same length from 5,000 words, so no two texts are similar; every fiftieth is nearly a copy."""
    rng = random.Random(i - i % 50 if i % 50 == 49 else i)
    words = lambda n: " ".join(WORDS[rng.randrange(len(WORDS))] for _ in range(n))  # noqa: E731
    return {"prompt": f"{words(40)} {i}", "chosen": words(20), "rejected": words(21)}


def cpu_seconds(command: list[str], installed: str = "") -> float:
    """User and system time of a command, in seconds; Afzal is imported from ``installed`` if given."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, **({"PYTHONPATH": installed} if installed else {})}
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
