"""Train a reward model on 497 story pairs ordered by word valence; compare it with the labels and with valence.

    python -m benchmarks.reward_valence ../shared/data --seeds 0 1 2 --heads 1

Each seed trains stories260k (batch 16, lr 3e-4), holds out a fifth of the prompts, and scores every held-out response.
Valence is the summed VADER score of a response's words; it also ordered the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import stats

from afzal import config, data, recipes, runs
from afzal.rewards.score import score
from benchmarks.sentiment.valence import by_word, lexicon


def main() -> None:
    options = arguments()
    versions = "  ".join(f"{name} {version(name)}" for name in ("afzal", "torch", "transformers"))
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}  {versions}")
    print("| seed | pairs | held-out accuracy (95%) | ECE | Brier | rank correlation with valence | of differences |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        print("| " + " | ".join([str(seed), *measured(options, seed)]) + " |", flush=True)


def measured(options: argparse.Namespace, seed: int) -> list[str]:
    """Table cells of one reward model, measured on held-out prompts."""
    source = options.shared / "derived/stories_valence_pairs.jsonl"
    train, held_out = data.split(data.read(source).items, 0.2, seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, items in (("train", train), ("held_out", held_out)):
            data.write(items, work / f"{name}.jsonl", "trl")
        settings = {"batch_size": 16, "lr": 3e-4, "epochs": options.epochs, "heads": options.heads, "seed": seed}
        files = {"data": str(work / "train.jsonl"), "eval_data": str(work / "held_out.jsonl"), "out": str(work / "run")}
        made = config.make("reward", model=str(options.shared / "models/stories260k"), **files, **settings)
        facts = runs.open_run(recipes.train(made)).facts()["reward"]
        scoring = {"model": str(work / "run"), "data": files["eval_data"], "out": str(work / "scores.jsonl")}
        score(config.build(config.ScoreConfig, [config.Setting(k, v) for k, v in scoring.items()]))
        rows = [json.loads(line) for line in (work / "scores.jsonl").read_text().splitlines()]
    words = lexicon(options.shared / "annot/vader_lexicon.txt")
    scores = np.array([row["score"] for row in rows])
    truth = np.array([sum(by_word(row["response"], words)) for row in rows])
    gaps = [values[0::2] - values[1::2] for values in (scores, truth)]
    accuracy, calibration = facts["accuracy"], facts["calibration"]
    return [
        str(accuracy["n"]),
        f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})",
        f"{calibration['ece']:.3f}",
        f"{calibration['brier']:.3f}",
        f"{stats.spearmanr(scores, truth).statistic:.3f}",
        f"{stats.spearmanr(*gaps).statistic:.3f}",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with derived/, models/ and annot/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--heads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
