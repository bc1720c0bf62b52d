"""A sweep on real pairs: is its choice better than the default settings?

    python -m benchmarks.sweep_stories OUT            # base and 5 arms, 2 seeds, then 2 fresh seeds
    python -m benchmarks.sweep_stories OUT --quick    # 2 arms, 1 seed, a third of the examples

stories260k, a model with 260 thousand weights, is trained by DPO on pairs of its own stories ordered by the summed
valence of their words. The base uses the settings of ``benchmarks.stories_valence``: beta 0.1, lr 1e-4, batches of 16,
three epochs. Openings are split into three disjoint parts: training, choice and confirmation. Needs the folder
``shared/data`` next to the checkout, or AFZAL_SHARED.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.sentiment import valence

_PARTS = {"train": 80, "choice": 10, "confirmation": 10}  # shares of the openings, in hundredths


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    import torch

    from afzal import config
    from afzal.sweep import sweep

    torch.set_num_threads(1)  # operations this small are slower on several cores
    divided(options.out)
    settings = sweep_of(options.out, quick=options.quick)
    made = sweep(config.build(config.SweepConfig, [config.Setting(k, v) for k, v in settings.items()]))
    print(f"report: {made.page}")
    return made.page


def divided(out: Path) -> None:
    """Split the pairs into three files that share no opening; an opening's file depends only on its text."""
    rows = (valence.shared() / "derived" / "stories_valence_pairs.jsonl").read_text("utf-8").splitlines()
    parts: dict[str, list[str]] = {name: [] for name in _PARTS}
    for row in rows:
        place = int(hashlib.sha256(json.loads(row)["prompt"].encode()).hexdigest(), 16) % 100
        name = next(n for k, n in enumerate(_PARTS) if place < sum(list(_PARTS.values())[: k + 1]))
        parts[name].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def sweep_of(out: Path, *, quick: bool) -> dict[str, Any]:
    """The settings of the sweep."""
    base = {
        "method": "dpo",
        "model": str(valence.shared() / "models" / "stories260k"),
        "data": str(out / "train.jsonl"),
        "eval_fraction": 0.0,
        "sample_prompts": 0,
        "beta": 0.1,
        "lr": 1e-4,
        "lr_schedule": "constant",
        "warmup": 0,
        "batch_size": 16,
        "epochs": 1 if quick else 3,
        "device": "cpu",
    }
    return {
        "base": base,
        "space": {"beta": {"log": [0.02, 0.5]}, "lr": {"log": [3e-5, 1e-3]}, "batch_size": [8, 16, 32]},
        "search": "sobol",
        "arms": 2 if quick else 5,
        "seeds": [0] if quick else [0, 1],
        "confirm": 1 if quick else 2,
        "prompts": str(out / "choice.jsonl"),
        "confirm_prompts": str(out / "confirmation.jsonl"),
        "rewards": {
            "summed valence": "benchmarks.sentiment.valence:summed",
            "valence per word": "benchmarks.sentiment.valence:per_word",
        },
        "goal": {"maximize": "reward", "within": {"kl": 5.0}},
        "samples": 8,
        "sample_tokens": 48,
        "snapshots": 3,
        "out": str(out / "sweep"),
    }


if __name__ == "__main__":
    main()
