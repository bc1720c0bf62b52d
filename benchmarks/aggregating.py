"""How long 75,200 votes take: the words of a lexicon by ten people, as labels of pairs and as scores.

.venv/bin/python -m benchmarks.aggregating --out benchmarks/results/aggregating.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from afzal.judge import aggregate, annotators, labels, ratings
from afzal.records import Comparison, Item, Rating, Response
from benchmarks import table
from benchmarks.machine import about_run

WORDS, PEOPLE = 7520, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    scored, compared = rows()
    said, scores = labels.of_items(compared), ratings.of_items(scored)
    assert scores is not None
    assert len(said.said) == WORDS * PEOPLE
    work: dict[str, Callable[[], object]] = {
        "one table of 75,200 votes": lambda: labels.of_items(compared),
        "mean": lambda: aggregate.aggregate(said, "mean"),
        "Dawid-Skene": lambda: aggregate.aggregate(said, "dawid_skene"),
        "agreement, with 1,000 resamples": lambda: annotators.agreement_of(said),
        "means of 75,200 scores": lambda: ratings.as_items(scored, scores),
        "report on 75,200 scores, with 1,000 resamples": lambda: ratings.report(scores, "scores"),
    }
    seconds = {name: [processor_seconds(act) for _ in range(given.repeats)] for name, act in work.items()}
    told = {name: {"median": statistics.median(took), "seconds": took} for name, took in seconds.items()}
    found = {"about": about_run("benchmarks.aggregating", ["afzal"], threads=1), "processor_seconds": told}
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(table.startup(found))


def rows() -> tuple[list[Item], list[Item]]:
    """The words with scores from -4 to 4 by everybody, and with votes for the word against nothing by their sign."""
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1.7, size=(WORDS, 1))
    values = np.clip((truth + generator.normal(0, 1.0, size=(WORDS, PEOPLE))).round(), -4, 4).tolist()
    scored, compared = [], []
    for k, given in enumerate(values):
        word = Response(f"word {k}")
        scores = tuple(Rating(0, v, "score", annotator=f"r{n}") for n, v in enumerate(given))
        scored.append(Item(f"w{k}", f"prompt {k}", (word,), scores))
        outcomes = ["first" if v > 0 else "second" if v < 0 else "tie" for v in given]
        votes = tuple(Comparison(0, 1, o, annotator=f"r{n}") for n, o in enumerate(outcomes))  # pyright: ignore
        compared.append(Item(f"w{k}", f"prompt {k}", (word, Response("nothing")), votes))
    return scored, compared


def processor_seconds(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
