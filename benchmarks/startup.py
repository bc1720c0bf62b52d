"""How long a person waits before anything happens: ``afzal --help``, and ``afzal check`` of many rows.

.venv/bin/python -m benchmarks.startup --out benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import table
from benchmarks.machine import about_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    about, commands = about_run("benchmarks.startup", ["afzal"], threads=1), {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps(row(i)) + "\n" for i in range(given.rows)))
        for name, arguments in {"--help": ["--help"], f"check, {given.rows:,} rows": ["check", str(file)]}.items():
            seconds = [cpu_seconds([sys.executable, "-m", "afzal", *arguments]) for _ in range(given.repeats)]
            commands[f"afzal {name}"] = {"median": statistics.median(seconds), "seconds": seconds}
    found = {"about": about, "processor_seconds": commands}
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(table.startup(found))


def row(i: int) -> dict[str, str]:
    """A pair of about the length of HH-RLHF's."""
    rng = random.Random(i)
    words = lambda n: " ".join(rng.choice(("never", "is", "the", "a", "person", "who")) for _ in range(n))  # noqa: E731
    return {"prompt": f"{i} {words(60)}", "chosen": words(30), "rejected": words(32)}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
