"""Time to aggregate 75,200 votes: ten people rate the words of a lexicon, as pair labels and as scores.

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
    options = parser.parse_args()
    scored, compared = rows()
    votes, scores = labels.of_items(compared), ratings.of_items(scored)
    assert scores is not None
    assert len(votes.entries) == WORDS * PEOPLE
    work: dict[str, Callable[[], object]] = {
        "one table of 75,200 votes": lambda: labels.of_items(compared),
        "mean": lambda: aggregate.aggregate(votes, "mean"),
        "Dawid-Skene": lambda: aggregate.aggregate(votes, "dawid_skene"),
        "agreement, with 1,000 resamples": lambda: annotators.overall_agreement(votes),
        "means of 75,200 scores": lambda: ratings.as_items(scored, scores),
        "report on 75,200 scores, with 1,000 resamples": lambda: ratings.report(scores, "scores"),
    }
    seconds = {name: [processor_seconds(act) for _ in range(options.repeats)] for name, act in work.items()}
    processor_times = {name: {"median": statistics.median(took), "seconds": took} for name, took in seconds.items()}
    figures = {"about": about_run("benchmarks.aggregating", ["afzal"], threads=1), "processor_seconds": processor_times}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table.startup(figures))


def rows() -> tuple[list[Item], list[Item]]:
    """Every word with everybody's score from -4 to 4, and with votes (word against nothing) by the score's sign."""
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1.7, size=(WORDS, 1))
    values = np.clip((truth + generator.normal(0, 1.0, size=(WORDS, PEOPLE))).round(), -4, 4).tolist()
    scored, compared = [], []
    for k, values_of_word in enumerate(values):
        word = Response(f"word {k}")
        scores = tuple(Rating(0, v, "score", annotator=f"r{n}") for n, v in enumerate(values_of_word))
        scored.append(Item(f"w{k}", f"prompt {k}", (word,), scores))
        outcomes = ["first" if v > 0 else "second" if v < 0 else "tie" for v in values_of_word]
        votes = tuple(Comparison(0, 1, o, annotator=f"r{n}") for n, o in enumerate(outcomes))  # pyright: ignore
        compared.append(Item(f"w{k}", f"prompt {k}", (word, Response("nothing")), votes))
    return scored, compared


def processor_seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


if __name__ == "__main__":
    main()
