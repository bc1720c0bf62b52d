"""The annotation page under load: a vote's way to the disk and back while many people vote, and how long a start takes.

.venv/bin/python -m benchmarks.annotate --out benchmarks/results/annotate/annotate.json

The people are threads of this process on the same machine, without time to think: each sends its next vote as soon as
the last one is acknowledged. Latencies are as they see them.
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

from afzal.web.client import Client, addresses_of
from afzal.web.replies import STATIC
from benchmarks.machine import about_run, refuse_if_busy

OVERLAP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--votes", type=int, default=100, help="of each person")
    parser.add_argument("--items", type=int, default=10_000, help="for the time of a start")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    if not given.force:
        refuse_if_busy()
    found: dict[str, Any] = {"about": about_run("benchmarks.annotate", ["afzal", "starlette", "uvicorn"], threads=1)}
    found["starts"] = [start(given.items) for _ in range(given.repeats)]
    found["votes"] = [load(given.people, given.votes) for _ in range(given.repeats)]
    found["page_bytes"] = sum((STATIC / name).stat().st_size for name in parts_of("page.html"))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def parts_of(page: str) -> set[str]:
    """A page's file with all that it loads, directly or through another."""
    found, waiting = set(), {page}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(re.findall(r'"(?:/static|\.)/([\w.-]+)"', (STATIC / name).read_text("utf-8"))) - found
    return found


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[list[str]]:
    """The addresses of a page in a process of its own."""
    command = [sys.executable, "-m", "afzal", "annotate", *arguments, "--headless"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield [address for _, address in addresses_of(iter(process.stdout.readline, ""))]
    finally:
        process.terminate()
        process.wait()


def start(items: int) -> dict[str, float]:
    """Seconds from the command to the first question: of a new page, of the same one again, and with 100 items."""
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
    while (asked := client.next())["state"] != "done":
        while asked["state"] == "ask":
            began = time.perf_counter()
            reply = client.vote(asked, outcome="first", seconds=1.0)
            seconds.append(time.perf_counter() - began)
            asked = reply["next"]
        time.sleep(0.02)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rows(path: Path, count: int) -> None:
    text = "What would you say to somebody who asks this? " * 4
    made = ({"prompt": f"{k} {text}", "chosen": f"{k} yes {text}", "rejected": f"{k} no {text}"} for k in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


if __name__ == "__main__":
    main()
