"""Change the source in one place at a time, and see that a fast test fails.

    python tests/mutants/run.py                      # all mutants, in the order of the list
    python tests/mutants/run.py objectives/ kl.py    # those of files whose path contains one of the words
    python tests/mutants/run.py --jobs 2 --out results.json
    python tests/mutants/run.py --sample 25 --seed 3 # a part of them; all take about three hours

The list (``mutants.yaml``) holds, for each file of ``src/afzal``, the tests that look at it and pairs of texts: what
stands there once, and what takes its place. A mutant is *killed* when a fast test of its room fails, *survived* when
none does, and *broken* when the package no longer imports, which says nothing about the tests. The working tree is
never changed: a mutant lives in a folder of links to the source with one file of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "afzal"
LIST = Path(__file__).with_name("mutants.yaml")
KILLERS = Path(__file__).with_name("killed.json")
LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: ``old``, which stands in ``file`` exactly once, becomes ``new``; ``tests`` should notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """A line to print, and the key of the results."""
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant; ``test`` is the first that failed."""

    name: str
    outcome: str
    test: str
    seconds: float


def read(path: Path = LIST) -> list[Mutant]:
    """The mutants of the list, in order."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutant(entry["file"], old, new, tuple(entry["tests"])) for entry in entries for old, new in entry["mutants"]
    ]


def mutated(mutant: Mutant) -> str:
    """The source of the file after the change.

    Raises:
        ValueError: the text stands there not once, or the change changes nothing.
    """
    source = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    if source.count(mutant.old) != 1 or mutant.old == mutant.new:
        raise ValueError(f"{mutant.name}: the text stands there {source.count(mutant.old)} times, not once")
    return source.replace(mutant.old, mutant.new)


def overlay(mutant: Mutant, into: Path) -> Path:
    """A folder to import ``afzal`` from: links to the source, but for the changed file and the folders above it."""
    here, there = PACKAGE, into / "afzal"
    for part in Path(mutant.file).parts:
        there.mkdir(parents=True)
        for entry in here.iterdir():
            if entry.name not in (part, "__pycache__"):
                (there / entry.name).symlink_to(entry)
        here, there = here / part, there / part
    there.write_text(mutated(mutant), encoding="utf-8")
    return into


class _Watch:
    """A pytest plugin that remembers the first failure."""

    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid


def _child(folder: str, tests: Sequence[str], answer: Any) -> None:
    """Run the tests against the changed source; send pytest's exit code and the first failure."""
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and tests send it
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    watch = _Watch()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu"]
    code = pytest.main([*options, *tests], plugins=[watch])
    answer.send((int(code), watch.first))


def attempt(mutant: Mutant, known: str) -> Result:
    """Run what killed the mutant before, then the first of its tests, and then the others: reading many takes long.

    Args:
        known: the test that killed it in an earlier run; may be empty.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    code, first = 2, ""
    try:
        overlay(mutant, folder)
        for tests in ([known] if known else []), list(mutant.tests[:1]), list(mutant.tests[1:]):
            code, first = _asked(str(folder), tests) if tests else (0, "")
            if code not in (0, 4, 5):  # 4 and 5: the known test is no more
                break
    except ValueError as error:
        return Result(mutant.name, "stale", str(error), 0.0)
    finally:
        shutil.rmtree(folder)
    outcome = {0: "survived", 1: "killed", -1: "no end"}.get(code, "broken")
    return Result(mutant.name, outcome, first, round(time.monotonic() - began, 1))


def _asked(folder: str, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest (-1: it did not end) and the first failure, from a process of its own."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, tests, theirs))
    process.start()
    theirs.close()
    code, first = 2, ""
    if not ours.poll(LIMIT_S):
        code = -1
        process.kill()
    else:
        try:
            code, first = ours.recv()
        except EOFError:  # the process died, as a mutant may make it do
            code, first = 1, "the process died"
    process.join()
    return code, first


def _warm() -> None:
    """Import what takes seconds and is not ours, once, before the processes fork."""
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    if any(name == "afzal" or name.startswith("afzal.") for name in sys.modules):
        raise RuntimeError("afzal must not be imported before the mutants are")


def attempts(mutants: Sequence[Mutant], jobs: int, known: dict[str, str]) -> Iterator[Result]:
    """The results in the order of the list, ``jobs`` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda m: attempt(m, known.get(m.name, "")), mutants)


def main() -> int:
    """Run the mutants asked for; the exit code says whether 95% of them were killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants of files whose path contains one of these")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--new", action="store_true", help="only mutants that no earlier run killed")
    parser.add_argument("--sample", type=int, help="so many of them at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample; the same seed is the same sample")
    parser.add_argument("--out", type=Path, default=KILLERS, help="results, read again to ask the killers first")
    asked = parser.parse_args()
    before = json.loads(asked.out.read_text()) if asked.out.exists() else []
    results = {entry["name"]: Result(**entry) for entry in before}
    mutants = [m for m in read() if not asked.words or any(word in m.file for word in asked.words)]
    if asked.new:
        mutants = [m for m in mutants if m.name not in results or results[m.name].outcome != "killed"]
    if asked.sample is not None:
        mutants = random.Random(asked.seed).sample(mutants, min(asked.sample, len(mutants)))
    _warm()
    known = {name: r.test for name, r in results.items() if "::" in r.test}
    counts: Counter[str] = Counter()
    for result in attempts(mutants, asked.jobs, known):
        counts[result.outcome] += 1
        results[result.name] = result
        print(f"{result.outcome:9}{result.seconds:6.1f} s  {result.name}  [{result.test}]", flush=True)
        order = [asdict(results[m.name]) for m in read() if m.name in results]
        asked.out.write_text(json.dumps(order, indent=1, ensure_ascii=False) + "\n")
    share = counts["killed"] / max(1, counts["killed"] + counts["survived"] + counts["no end"])
    print(
        f"{len(mutants)} mutants: " + ", ".join(f"{n} {name}" for name, n in counts.items()) + f"; {share:.1%} killed"
    )
    return 0 if share >= 0.95 and not counts["broken"] and not counts["stale"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
