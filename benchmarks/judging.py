"""Check the figures of ``afzal judge``: coverage of win rates and of corrected win rates, judges with a known answer,
and the time for many verdicts.

    python -m benchmarks.judging --out benchmarks/results/judging/judging.json
    python -m benchmarks.judging --speed benchmarks/results/verdicts.json

Pairs of one prompt are dependent through a shared normal variable, as in ``benchmarks.coverage``. The first command
writes its figures as JSON and, next to it, as a table.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from afzal.judge import summary, validation
from afzal.judge.games import Ruling, games_of, pairs_of
from afzal.records import Item, Response
from afzal.stats import judging
from benchmarks.coverage import SIZES, Rng, Row, shared_normals, tables
from benchmarks.machine import about_run
from benchmarks.startup import cpu_seconds

TIES = 0.2  # share of pairs
RATE = 0.55  # win rate: an effect of five points


def outcomes(z: np.ndarray, rate: float) -> np.ndarray:
    """Points 1, 0.5 and 0 from standard normal numbers, with mean ``rate`` and a share ``TIES`` of ties."""
    won = ndtri(rate - TIES / 2)
    return np.where(z < won, 1.0, np.where(z < ndtri(rate + TIES / 2), 0.5, 0.0))


def win_rates(rng: Rng, runs: int, prompts: int, size: str, dependence: float) -> Row:
    """Coverage of the win rate's interval from resampled prompts, and from resampled pairs."""
    covered = naive = 0
    for _ in range(runs):
        sizes = SIZES[size](rng, prompts)
        points = outcomes(shared_normals(rng, sizes, dependence), RATE)
        keys, seed = np.repeat(np.arange(prompts), sizes), int(rng.integers(1 << 30))
        for k, of in enumerate((keys.tolist(), range(len(points)))):
            low, high = judging.column_means(points[:, None], of, resamples=500, seed=seed).interval(0).ends
            covered, naive = covered + (k == 0 and low <= RATE <= high), naive + (k == 1 and low <= RATE <= high)
    about = {"prompts": prompts, "pairs per prompt": size, "dependence": dependence}
    return about | {"coverage": covered / runs, "by pairs": naive / runs}


def corrected(rng: Rng, runs: int, labelled: int, size: str, right: float) -> Row:
    """Win rates from people's labels on ``labelled`` prompts and a judge on 1,000 prompts, who agrees with the people
    with probability ``right``."""
    covered, alone, widths, widths_alone = 0, 0, [], []
    for _ in range(runs):
        sizes = SIZES[size](rng, 1000)
        keys = np.repeat(np.arange(1000), sizes)
        human = outcomes(shared_normals(rng, sizes, 0.5), RATE)
        points = np.where(rng.random(len(human)) < right, human, 1 - human)
        known = np.isin(keys, rng.permutation(1000)[:labelled])
        estimates = validation.prediction_powered_win_rate(points, np.where(known, human, np.nan), keys.tolist())
        assert estimates is not None
        both = estimates["corrected"], estimates["people_alone"]
        covered, alone = (n + (i["low"] <= RATE <= i["high"]) for n, i in zip((covered, alone), both, strict=True))
        widths.append(both[0]["high"] - both[0]["low"])
        widths_alone.append(both[1]["high"] - both[1]["low"])
    width, width_alone = float(np.mean(widths)), float(np.mean(widths_alone))
    return {
        "labelled prompts": labelled,
        "pairs per prompt": size,
        "judge is right": right,
        "coverage": covered / runs,
        "people alone": alone / runs,
        "width": round(width, 4),
        "width alone": round(width_alone, 4),
        "labels saved": 1 - (width / width_alone) ** 2,
    }


def known_judges(rng: Rng, pairs: int) -> list[Row]:
    """Judges with a known answer: one that always names the first slot, and a model against itself."""
    items = []
    for k in range(pairs):
        texts = ["x" * int(n) for n in rng.integers(1, 100, 2)]
        items.append(Item(str(k), f"q{k}", (Response(texts[0], "a"), Response(texts[1], "b"))))
    compared = pairs_of(items)
    games = games_of(compared, "both")
    slot = [Ruling("second" if game.swapped else "first") for game in games]
    # a model against itself: both answers come from the same distribution, whichever is first
    gap = [len(p.answers[0]) - len(p.answers[1]) + rng.normal(0, 40) for p in compared]
    alike = {p: Ruling("first" if g > 0 else "second") for p, g in zip(compared, gap, strict=True)}
    mirrored = [
        Item(f"m{i.id}", i.prompt, tuple(Response(r.turns, s) for r, s in zip(i.responses[::-1], "ab", strict=True)))
        for i in items
    ]
    swapped = pairs_of([*items, *mirrored])
    turned = {"first": "second", "second": "first"}
    rulings = [alike[p] for p in compared] + [Ruling(turned[alike[p].outcome]) for p in compared]
    rows = []
    for name, known, played, said in (
        ("names the first slot", items, games, slot),
        ("a model against itself", [*items, *mirrored], games_of(swapped, "first"), rulings),
    ):
        report = summary.summary(name, known, pairs_of(known), played, said, resamples=200)
        models, orders = report["models"], report.get("orders")
        controlled = models.get("length_controlled")
        rows.append(
            {
                "judge": name,
                "win rate": models["win_rate"]["value"],
                "at equal lengths": None if controlled is None else controlled["value"],
                "contradictions": None if orders is None else orders["contradictions"] / orders["pairs"],
            }
        )
    return rows


def simulate(runs: int, seed: int = 0) -> dict[str, list[Row]]:
    """All tables."""
    rng = np.random.default_rng(seed)
    return {
        "win rate": [
            win_rates(rng, runs, n, size, d)
            for n in (50, 100, 200)
            for size, d in (("1", 0.0), ("4", 0.3), ("4", 0.8), ("1 to 10", 0.5))
        ],
        "win rate from a few labels and a judge": [
            corrected(rng, runs, n, size, right)
            for n in (50, 100, 200)
            for size in ("1", "1 to 10")
            for right in (0.6, 0.75, 0.9)
        ],
        "judges whose answer is known": known_judges(rng, 200),
    }


def table(figures: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "# Win rates, and judges with a known answer"
    yield ""
    yield f"`python -m benchmarks.judging --runs {figures['runs']}`: this many simulated data sets per row, with a win"
    yield f"rate of {RATE:.0%} and {TIES:.0%} ties. Coverage is the percentage of 95% intervals that contain the"
    yield "truth. `dependence` is the dependence between pairs of one prompt: 0 is independent, 1 identical."
    yield from tables(figures["tables"], _PERCENT)


_PERCENT = {
    *("coverage", "by pairs", "people alone", "labels saved", "win rate", "at equal lengths", "contradictions"),
}


def write_verdicts(path: Path, verdicts: int) -> None:
    """Write FastChat judgements of ten models by five judges, two verdicts per line."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for k in range(verdicts // 10):
            a, b = rng.sample(range(10), 2)
            for judge in range(5):
                won = ["model_1" if rng.random() < 1 / (1 + 1.3 ** (a - b)) else "model_2" for _ in range(2)]
                row = {"question_id": k // 20, "turn": k % 20, "model_1": f"m{a}", "model_2": f"m{b}"}
                row |= {"g1_winner": won[0], "g2_winner": won[1], "judge": f"j{judge}"}
                stream.write(json.dumps(row) + "\n")


def speed(verdicts: int, repeats: int) -> dict[str, Any]:
    """Processor seconds to rank the models and to aggregate the judges, including reading the file."""
    about, commands = about_run("benchmarks.judging", ["afzal", "numpy"], threads=1), {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "verdicts.jsonl")
        write_verdicts(source, verdicts)
        for words in (("leaderboard", str(source)), ("aggregate", str(source), "--resamples", "200")):
            command = [sys.executable, "-m", "afzal", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # a command that fails is not timed
            seconds = [cpu_seconds(command) for _ in range(repeats)]
            named = f"afzal {words[0]}, {verdicts:,} verdicts"
            commands[named] = {"median": statistics.median(seconds), "seconds": seconds}
    return {"about": about, "processor_seconds": commands}


def main() -> None:
    """Run the simulations, or measure the speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400, help="simulated data sets for each row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/judging/judging.json"))
    parser.add_argument(
        "--speed", type=Path, help="measure the time for many verdicts instead, and write it to this JSON file"
    )
    parser.add_argument("--verdicts", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.speed:
        options.speed.write_text(json.dumps(speed(options.verdicts, options.repeats), indent=2) + "\n")
        return
    figures = {"runs": options.runs, "tables": simulate(options.runs)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    options.out.with_suffix(".md").write_text("\n".join(table(figures)) + "\n")


if __name__ == "__main__":
    main()
