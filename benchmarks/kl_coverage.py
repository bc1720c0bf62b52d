"""Accuracy of the KL that a run reports, compared with the exact KL on the enumerable language over many draws.

    python -m benchmarks.kl_coverage --out benchmarks/results/health/kl.json

For policies at several distances from their start: the standard deviation of the estimate, and how often its 95%
interval contains the exact KL. ``shown`` is what a run reports now (next-token KLs summed along one answer to each of
32 prompts, Student's t over prompts), ``log-ratios of 8`` what it reported before (mean log-ratio of 8 answers, ± 1.96
standard errors).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal.generate import Sampling, as_trees, sample
from afzal.lab import exact, language
from afzal.model.logprobs import score
from afzal.model.probe import choose_common_sharing
from afzal.model.reference import Frozen
from afzal.recipes.divergence import kl_along
from afzal.stats.intervals import Z95, t95
from afzal.tokens import Speaker
from afzal.train.feed import Layout

SHARPNESS = (6.0, 10.0, 14.0)
ANSWERS = 60


def figures(sharpness: float, repeats: int) -> dict[str, Any]:
    """Exact KL, and for both estimates the standard deviation and the share of intervals that contain it."""
    policy, start = language.new_model(1), language.new_model(2)
    with torch.no_grad():
        policy.lm_head.weight.mul_(sharpness)
    policy, start = policy.eval().requires_grad_(False), start.eval().requires_grad_(False)
    prompts = np.concatenate(language.prompts())
    truth = exact.kl(*(exact.log_policy(m, prompts) for m in (policy, start)))
    texts = [language.prompt_text(x) for x in prompts]
    ids = [t.tolist() for t in Speaker(language.tokenizer()).encode_prompts(texts, max_tokens=8)]
    layout = Layout(choose_common_sharing((policy, start)), 8192)
    drawn = sample(policy, ids, eos=[language.EOS], n=ANSWERS, sampling=Sampling(max_new_tokens=4), seed=0)
    along = np.reshape(kl_along(policy, Frozen(start), drawn, ids, layout), (-1, ANSWERS))
    ratios = []
    with torch.no_grad():
        for tree in as_trees(drawn, ids):
            (batch,) = Layout(layout.sharing, 10**6).batches([tree])
            ratios.append((score(policy, batch).logps - score(start, batch).logps).numpy())
    ways = {"shown": (along, 32, t95(31)), "log-ratios of 8": (np.array(ratios), 8, Z95)}
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {"exact": truth}
    for name, (values, n, width) in ways.items():
        picked = values[rng.integers(len(ids), size=(repeats, n)), rng.integers(ANSWERS, size=(repeats, n))]
        means, errors = picked.mean(1), picked.std(1, ddof=1) / np.sqrt(n)
        covered = float((np.abs(means - truth) <= width * errors).mean())
        result[name] = {"sd": float(means.std()), "coverage": covered, "below_zero": float((means < 0).mean())}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    options = parser.parse_args()
    results = {"repeats": options.repeats, "policies": [figures(s, options.repeats) for s in SHARPNESS]}
    for row in results["policies"]:
        print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
