"""From votes to a better model, in one command: people vote, the votes become rows, a model is trained and judged.

    make people
    python -m benchmarks.people OUT            # a few minutes on two cores, without a network
    python -m benchmarks.people OUT --quick    # a few pairs and updates: does it run?

Every stage writes a file or a folder that is complete or absent, so running the command again resumes a stopped run.
Needs the folder ``shared/data`` next to the checkout, or AFZAL_SHARED; without it, the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from afzal.errors import AfzalError
from benchmarks.people import data, judged, page, steps
from benchmarks.sentiment import valence
from benchmarks.stages import Stage, make_all


def stages(out: Path, size: data.Size) -> list[Stage]:
    """All stages in order. Each reads only the outputs of earlier stages in ``out``."""
    rows, clean = out / "aggregated.jsonl", out / "data" / "clean.jsonl"
    trained = [
        Stage("sft", lambda to: steps.train("sft", rows, to, size)),
        Stage("dpo", lambda to: steps.train("dpo", rows, to, size)),
        Stage("clean", lambda to: steps.train("dpo", clean, to, size)),
    ]
    answered = [
        Stage(f"answers-{name}.jsonl", lambda to, name=name: steps.answer(name, out, to, size))
        for name in ("start", "sft", "dpo", "clean")
    ]
    return [
        Stage("data", lambda to: data.write(to, size)),
        Stage("votes-1.jsonl", lambda to: steps.first_votes(out, to)),
        Stage("aggregated-1.jsonl", lambda to: steps.aggregate(out / "votes-1.jsonl", to)),
        Stage("to-label.jsonl", lambda to: steps.ask(out, to, size)),
        Stage("votes-2.jsonl", lambda to: steps.further_votes(out, to)),
        Stage("votes.jsonl", lambda to: steps.joined(out, to)),
        Stage("agreement", lambda to: steps.agreement(out / "votes.jsonl", to)),
        Stage("aggregated.jsonl", lambda to: steps.aggregate(out / "votes.jsonl", to)),
        *trained,
        *answered,
        Stage("games.jsonl", lambda to: judged.write_games(out, to)),
        Stage("judged", lambda to: judged.judge(out / "games.jsonl", to)),
        Stage("leaderboard", lambda to: judged.leaderboard(out / "judged" / "rows.jsonl", to)),
        Stage("page", lambda to: page.write(out, to)),
    ]


def run(out: Path, size: data.Size, say: Callable[[str], None] = print) -> Path:
    """Make the missing stages; returns the path of the page."""
    make_all(out, stages(out, size), say)
    return out / "page" / "people.html"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the votes, the runs and the page")
    parser.add_argument("--quick", action="store_true", help="a few pairs and updates")
    options = parser.parse_args(argv)
    if not (valence.shared() / "derived").is_dir():
        print(f"error: the stories are missing: {valence.shared()}", file=sys.stderr)
        print("  try: AFZAL_SHARED=FOLDER, the folder with derived/, models/, sft/ and annot/", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(1)  # operations this small are slower on several cores
    began = time.monotonic()
    try:
        made = run(options.out, data.QUICK if options.quick else data.PROPER)
    except AfzalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(page.findings(options.out)))
    print(f"page: {made}")
    print(f"time of this call: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
