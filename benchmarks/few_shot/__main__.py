"""Exact regret against the number of target labels, in one command: scratch, transfer with a fixed and an annealed
prior, meta-learning, prompt tuning, in context.

    python -m benchmarks.few_shot OUT            # two families of tasks, five seeds each
    python -m benchmarks.few_shot OUT --quick    # two small seeds each: does it run?

One family has tasks that are alike and noisy votes, the other tasks that differ and sharp votes. Every seed leaves a
file in ``OUT/seeds``, so that the same command resumes where it stopped. The page is ``OUT/few-shot.html``, with the
drawings and all figures beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks import lab_world
from benchmarks.few_shot import learners, page, seeds, world


def main(argv: Sequence[str] | None = None) -> Path:
    """All seeds, side by side, and their page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="two small seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds side by side")
    given = parser.parse_args(argv)
    began = time.perf_counter()
    sizes = learners.QUICK if given.quick else learners.Sizes()
    world.one_thread()
    lab_world.make_world(given.out, sizes.sft_steps)  # before the processes that all use it
    every = [(family, seed) for family in world.FAMILIES for seed in range(sizes.seeds)]
    one = partial(seeds.kept, given.out, sizes)
    if given.jobs == 1:
        made = [one(each) for each in every]
    else:
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(one, every))
    results = {
        family: [r for (name, _), r in zip(every, made, strict=True) if name == family] for family in world.FAMILIES
    }
    command = f"python -m benchmarks.few_shot OUT{' --quick' if given.quick else ''}"
    facts = lab_world.about(command, (time.perf_counter() - began) / 60, given.jobs)
    written = page.write(given.out, results, sizes.labels, lab_world.about_line(facts))
    for name, each in results.items():
        print(f"{world.FAMILIES[name].words}:")
        for line in page.findings(page.figures(each, sizes.labels), len(each)):
            print(f"  {line}")
    print(f"page: {written}")
    return written


if __name__ == "__main__":
    main()
