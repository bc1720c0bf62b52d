"""Processor time of ``afzal ask --n 100`` on many pairs, with features from the rows or from the answers' words.

.venv/bin/python -m benchmarks.asking --out benchmarks/results/asking.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import table
from benchmarks.machine import about_run
from benchmarks.startup import cpu_seconds

VOTED = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    about, commands = about_run("benchmarks.asking", ["afzal"], threads=1), {}
    with tempfile.TemporaryDirectory() as folder:
        pool, out = Path(folder, "pool.jsonl"), Path(folder, "to_label.jsonl")
        write_pool(pool, options.pairs, options.features)
        size = f"{options.pairs:,} pairs, {VOTED} voted on"
        for rule in ("d_optimal", "bald", "entropy"):
            for source in ("rows", "words"):
                title = f"ask --n 100 --by {rule}, {size}, " + (
                    f"{options.features} numbers per answer" if source == "rows" else "words of the answers"
                )
                how = ["--by", rule, "--features", source, "--n", "100", "--out", str(out), "--force"]
                command = [sys.executable, "-m", "afzal", "ask", str(pool), *how]
                seconds = [cpu_seconds(command) for _ in range(options.repeats)]
                commands[f"afzal {title}"] = {"median": statistics.median(seconds), "seconds": seconds}
                assert len(out.read_text().splitlines()) == 100
                out.unlink()
    figures = {"about": about, "processor_seconds": commands}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table.startup(figures))


def write_pool(path: Path, pairs: int, features: int) -> None:
    """Pairs of 60-word answers with random features; the first ``VOTED`` have a vote."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{k}" for k in range(5000)])
    with path.open("w", encoding="utf-8") as stream:
        for k in range(pairs):
            texts = [" ".join(rng.choice(words, 60)) for _ in range(2)]
            numbers = rng.normal(size=(2, features)).round(4).tolist()
            row = {"afzal": 1, "id": str(k), "prompt": f"question {k}", "extra": {"features": numbers}}
            row["responses"] = [{"turns": text} for text in texts]
            if k < VOTED:
                row["votes"] = [{"vote": "comparison", "first": 0, "second": 1, "outcome": "first"}]
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
