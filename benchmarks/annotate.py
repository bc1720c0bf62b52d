"""The annotation page under load: latency of a stored vote while many people vote, and start-up time.

.venv/bin/python -m benchmarks.annotate --out benchmarks/results/annotate/annotate.json

The people are threads of this process on the same machine, without thinking time: each sends the next vote as soon as
the last one is acknowledged. Latencies are measured by these clients.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afzal.web.client import Client, parse_addresses
from afzal.web.replies import STATIC
from benchmarks.machine import about_run, refuse_if_busy

OVERLAP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--votes", type=int, default=100, help="votes per person")
    parser.add_argument("--items", type=int, default=10_000, help="rows for the start-up time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="measure even if the machine is busy")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if not options.force:
        refuse_if_busy()
    figures: dict[str, Any] = {"about": about_run("benchmarks.annotate", ["afzal", "starlette", "uvicorn"], threads=1)}
    figures["starts"] = [start(options.items) for _ in range(options.repeats)]
    figures["votes"] = [load(options.people, options.votes) for _ in range(options.repeats)]
    figures["page_bytes"] = sum((STATIC / name).stat().st_size for name in parts_of("page.html"))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def parts_of(page: str) -> set[str]:
    """A page's file and all files that it loads, directly or indirectly."""
    seen, waiting = set(), {page}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= set(re.findall(r'"(?:/static|\.)/([\w.-]+)"', (STATIC / name).read_text("utf-8"))) - seen
    return seen


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[list[str]]:
    """Serve an annotation page from a separate process; yields its addresses."""
    command = [sys.executable, "-m", "afzal", "annotate", *arguments, "--headless"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield [address for _, address in parse_addresses(iter(process.stdout.readline, ""))]
    finally:
        process.terminate()
        process.wait()


def start(items: int) -> dict[str, float]:
    """Seconds from the command to the first question of a new page, the same page again, and one with 100 items."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(folder / "many.jsonl", items)
        rows(folder / "few.jsonl", 100)
        return {
            f"new_{items}": first_question(folder, "many"),
            f"again_{items}": first_question(folder, "many"),
            "new_100": first_question(folder, "few"),
        }


def first_question(folder: Path, name: str) -> float:
    began = time.perf_counter()
    with served(folder, f"{name}.jsonl", "--annotators", "ann", "--out", name) as (address,):
        Client(address).next()
        return time.perf_counter() - began


def load(people: int, votes: int) -> dict[str, Any]:
    """Everybody votes at once: latencies in milliseconds, votes per second, and whether the overlap is exact."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(folder / "rows.jsonl", people * votes // OVERLAP)
        names = ",".join(f"p{k}" for k in range(people))
        seconds: list[float] = []
        with served(
            folder, "rows.jsonl", "--annotators", names, "--overlap", str(OVERLAP), "--out", "out"
        ) as addresses:
            threads = [threading.Thread(target=person, args=(address, seconds)) for address in addresses]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - began
        lines = [json.loads(line) for line in (folder / "out" / "votes.jsonl").read_text().splitlines()]
    counts = Counter(line["item"] for line in lines)
    return {
        "votes": len(lines),
        "overlap_is_exact": set(counts.values()) == {OVERLAP} and len(counts) == people * votes // OVERLAP,
        "per_second": len(lines) / took,
        **{f"p{share}_ms": 1000 * quantile(seconds, share / 100) for share in (50, 95, 99)},
    }


def person(address: str, seconds: list[float]) -> None:
    client = Client(address)
    while (question := client.next())["state"] != "done":
        while question["state"] == "ask":
            began = time.perf_counter()
            reply = client.vote(question, outcome="first", seconds=1.0)
            seconds.append(time.perf_counter() - began)
            question = reply["next"]
        time.sleep(0.02)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rows(path: Path, count: int) -> None:
    text = "What would you say to somebody who asks this? " * 4
    made = ({"prompt": f"{k} {text}", "chosen": f"{k} yes {text}", "rejected": f"{k} no {text}"} for k in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


if __name__ == "__main__":
    main()
