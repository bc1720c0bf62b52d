"""Exact regret against the number of target labels, in one command: scratch, transfer with a fixed and an annealed
prior, meta-learning, prompt tuning, in context.

    python -m benchmarks.few_shot OUT            # five seeds
    python -m benchmarks.few_shot OUT --quick    # two small seeds: does it run?

Every seed leaves a file in ``OUT/seeds``, so that the same command resumes where it was stopped. The page is
``OUT/few-shot.html``, with the drawing and all figures beside it.
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
    world.make(given.out, sizes.sft_steps)
    if given.jobs == 1:
        results = [seeds.kept(given.out, sizes, seed) for seed in range(sizes.seeds)]
    else:
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(partial(seeds.kept, given.out, sizes), range(sizes.seeds)))
    command = f"python -m benchmarks.few_shot OUT{' --quick' if given.quick else ''}"
    facts = lab_world.about(command, (time.perf_counter() - began) / 60, given.jobs)
    made = page.write(given.out, results, sizes.labels, lab_world.about_line(facts))
    for line in page.findings(page.figures(results, sizes.labels), len(results)):
        print(line)
    print(f"page: {made}")
    return made


if __name__ == "__main__":
    main()
