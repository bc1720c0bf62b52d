"""Exact regret against the number of target labels, in one command: learning from scratch, transfer with a fixed and an
annealed prior, meta-learning, prompt tuning, and in-context learning.

    python -m benchmarks.few_shot OUT            # two families of tasks, five seeds each
    python -m benchmarks.few_shot OUT --quick    # two small seeds each: does it run?

One family has similar tasks and noisy votes, the other has different tasks and sharp votes. Every seed writes a file to
``OUT/seeds``, so running the command again resumes a stopped run. The page is ``OUT/few-shot.html``, with the drawings
and all figures next to it.
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
    """Run all seeds in parallel, and write their page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="two small seeds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds to run in parallel")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    sizes = learners.QUICK if options.quick else learners.Sizes()
    world.one_thread()
    lab_world.make_world(options.out, sizes.sft_steps)  # before starting the processes, which all use it
    every = [(family, seed) for family in world.FAMILIES for seed in range(sizes.seeds)]
    one = partial(seeds.cached, options.out, sizes)
    if options.jobs == 1:
        made = [one(each) for each in every]
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(one, every))
    results = {
        family: [r for (name, _), r in zip(every, made, strict=True) if name == family] for family in world.FAMILIES
    }
    command = f"python -m benchmarks.few_shot OUT{' --quick' if options.quick else ''}"
    facts = lab_world.about(command, (time.perf_counter() - began) / 60, options.jobs)
    written = page.write(options.out, results, sizes.labels, lab_world.about_line(facts))
    for name, each in results.items():
        print(f"{world.FAMILIES[name].words}:")
        for line in page.findings(page.figures(each, sizes.labels), len(each)):
            print(f"  {line}")
    print(f"page: {written}")
    return written


if __name__ == "__main__":
    main()
