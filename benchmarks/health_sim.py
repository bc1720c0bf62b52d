"""False alarms and misses of the health checks on simulated curves of healthy and sick runs.

    python -m benchmarks.health_sim --runs 1000 --out benchmarks/results/health/simulated.json

Every world draws noise typical of its kind of run: batches of 8 to 64 items, gradient norms whose logarithm has a
standard deviation of 0.3 to 0.8, the same held-out rows each time (so their loss is smooth), samples of 32 prompts. A
healthy run is a false alarm if any check says ``watch`` or ``bad``. A sick run is detected if the check meant for it
raises an alarm.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afzal.health import alarms, diagnose
from afzal.stats.intervals import wilson

LN2 = math.log(2)
Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class World:
    """A kind of run. Curves are functions of the share of training done, 0 to 1; ``None`` omits a metric.

    Attributes:
        loss, held_out: mean losses on training rows and on held-out rows (default: the same).
        spread: standard deviation of a batch's loss, as a share of the loss, at the first and at the last update.
        margin, accuracy: on held-out pairs; ``train_accuracy`` on training pairs (default: the same).
        fall, gap: nats lost by chosen responses, and further nats lost by rejected ones.
        kl, length, ended: KL, length and share with EOS of samples.
        grad, grad_spread: median gradient norm, and the standard deviation of its logarithm.
        pull: true correlation of margin and difference in length.
        facts: facts that differ from those of DPO.
    """

    steps: int = 100
    evaluations: int = 10
    rows: int = 200
    loss: Callable[[float], float] = lambda t: LN2 - 0.25 * (1 - math.exp(-4 * t))
    held_out: Callable[[float], float] | None = None
    spread: tuple[float, float] = (0.0, 0.2)
    margin: Callable[[float], float] | None = lambda t: 1.5 * (1 - math.exp(-3 * t))
    accuracy: Callable[[float], float] | None = lambda t: 0.5 + 0.3 * (1 - math.exp(-6 * t))
    train_accuracy: Callable[[float], float] | None = None
    fall: Callable[[float], float] = lambda t: 6 * t
    gap: Callable[[float], float] = lambda t: 15 * t
    kl: Callable[[float], float] | None = lambda t: 4 * t
    length: Callable[[float], float] = lambda t: 50.0
    ended: Callable[[float], float] = lambda t: 1.0
    grad: Callable[[float], float] = lambda t: 3.0
    grad_spread: float = 0.4
    spikes: int = 0
    pull: float = 0.2
    facts: tuple[tuple[str, Any], ...] = ()


def lines_of(world: World, seed: int) -> Lines:
    """``metrics.jsonl`` of one run."""
    rng = np.random.default_rng(seed)
    every = max(1, -(-world.steps // world.evaluations))
    held_out = world.held_out or world.loss
    answered = world.accuracy
    # the held-out rows are the same at every evaluation, so one draw decides how well they can be ranked
    luck = rng.normal() if answered is not None else 0.0
    spiked = set(rng.choice(np.arange(12, world.steps), world.spikes, replace=False).tolist() if world.spikes else ())
    lines: Lines = []
    for step in range(world.steps + 1):
        t = step / world.steps
        if step:
            lines.append(_train_line(world, rng, step, step in spiked))
        if step % every == 0 or step == world.steps:
            lines.append(_eval_line(world, rng, step, t, held_out(t), luck))
    return lines


def _train_line(world: World, rng: np.random.Generator, step: int, spiked: bool) -> dict[str, Any]:
    t = (step - 1) / world.steps
    share = world.spread[0] + (world.spread[1] - world.spread[0]) * min(1.0, 4 * t)
    mean = world.loss(t)
    # losses are never negative, and right-skewed
    loss = mean * math.exp(rng.normal(0, share) - share * share / 2)
    grad = world.grad(t) * math.exp(rng.normal(0, world.grad_spread)) * (60.0 if spiked else 1.0)
    line = {"kind": "train", "step": step, "loss": loss, "grad_norm": grad, "lr": 1e-6}
    if world.accuracy is not None:
        p = (world.train_accuracy or world.accuracy)(t)
        line["rewards/accuracies"] = float(rng.binomial(16, p)) / 16
    return line


def _eval_line(world: World, rng: np.random.Generator, step: int, t: float, loss: float, luck: float) -> dict[str, Any]:
    n = world.rows
    # the rows are the same each time; the noise comes from the last updates
    line: dict[str, Any] = {"kind": "eval", "step": step, "n": float(n)}
    line["loss"] = loss if step == 0 else loss * (1 + rng.normal(0, 0.004))
    if world.accuracy is not None and world.margin is not None:
        p = world.accuracy(t)
        seen = min(1.0, max(0.0, p + luck * math.sqrt(p * (1 - p) / n))) if t else 0.5
        low, high = wilson(seen * n, n)
        line |= {"rewards/accuracies": seen, "rewards/accuracies_low": low, "rewards/accuracies_high": high}
        line["rewards/margins"] = world.margin(t)
        line |= {"logps/chosen": -90 - world.fall(t), "logps/rejected": -92 - world.fall(t) - world.gap(t)}
        line |= {"lengths/chosen": 48.0, "lengths/rejected": 47.0}
        if t:
            half = 1.96 * (1 - world.pull**2) / math.sqrt(n)
            z = math.atanh(world.pull) + rng.normal() / math.sqrt(n)
            value = math.tanh(z)
            line |= {"rewards/length_correlation": value}
            line |= {"rewards/length_correlation_low": math.tanh(z - half / (1 - world.pull**2))}
            line |= {"rewards/length_correlation_high": math.tanh(z + half / (1 - world.pull**2))}
    elif world.accuracy is None:
        line |= {"logps/chosen": -48 * loss, "lengths/chosen": 48.0}
    lengths = rng.gamma(4.0, world.length(t) / 4.0, size=32)
    line |= {"samples/length": float(lengths.mean()), "samples/eos_rate": float(rng.binomial(32, world.ended(t))) / 32}
    if world.kl is not None:
        values = rng.gamma(2.0, world.kl(t) / 2.0, size=32) if t else np.zeros(32)
        se = float(values.std(ddof=1)) / math.sqrt(32)
        line |= {"kl": float(values.mean()), "kl_se": se, "kl_low": float(values.mean()) - 2.04 * se}
        line |= {"kl_high": float(values.mean()) + 2.04 * se, "kl_tokens": float(lengths.mean())}
        line["kl_cut"] = 1 - line["samples/eos_rate"]
    return line


def facts_of(world: World, lines: Lines, seed: int) -> dict[str, Any]:
    """``run.json`` with the report's summary of ``samples.jsonl``."""
    ends = [m for m in lines if m["kind"] == "eval"]
    ends = [ends[0], ends[-1]]
    samples = {
        stage: {
            "n": 32,
            "length": m["samples/length"],
            "length_se": m["samples/length"] / 2 / math.sqrt(32),
            "eos_rate": m["samples/eos_rate"],
            "eos_rate_se": math.sqrt((p := (32 * m["samples/eos_rate"] + 1) / 34) * (1 - p) / 32),
        }
        for stage, m in zip(("before", "after"), ends, strict=True)
    }
    dpo = {"objective": {"name": "dpo", "unit": "pair", "params": {"beta": 0.1}, "at_reference": LN2}}
    facts = {
        "method": "dpo",
        "status": "finished",
        "stop_reason": "finished",
        "step": world.steps,
        "steps": world.steps,
    }
    facts |= dpo | {"reference": "frozen copy of the starting weights", "starts_at_reference": True, "seed": seed}
    facts |= {"reference_is_start": True, "reference_moves": False, "samples": samples}
    return facts | {"config": {"method": "dpo", "lr": 1e-6, "max_grad_norm": 10.0}} | dict(world.facts)


SFT = (
    ("method", "sft"),
    ("objective", {"name": "sft", "unit": "token", "params": {}, "at_reference": None}),
    ("starts_at_reference", False),
    ("config", {"method": "sft", "lr": 2e-5, "max_grad_norm": 1.0}),
)


def sft(**changes: Any) -> World:
    """Supervised fine-tuning: batch losses vary by a quarter, no pairs."""
    settings = {"loss": lambda t: 2.0 - 0.5 * (1 - math.exp(-4 * t)), "spread": (0.25, 0.25), "margin": None}
    return World(**(settings | {"accuracy": None, "facts": SFT, "kl": lambda t: 3 * t} | changes))


HEALTHY: dict[str, World] = {
    "dpo": World(),
    "dpo, noisy": World(spread=(0.0, 0.35), grad_spread=0.7),
    "dpo, 400 updates": World(steps=400, spread=(0.0, 0.3), grad_spread=0.6),
    "dpo, 14 updates": World(steps=14, evaluations=7, loss=lambda t: LN2 - 0.1 * t, margin=lambda t: 0.3 * t),
    "dpo, weak": World(
        rows=600, loss=lambda t: LN2 - 0.03 * t, margin=lambda t: 0.15 * t, accuracy=lambda t: 0.5 + 0.1 * math.sqrt(t)
    ),
    "dpo, strong": World(
        loss=lambda t: LN2 * math.exp(-1.5 * t),
        margin=lambda t: 4 * t,
        accuracy=lambda t: 0.5 + 0.45 * (1 - math.exp(-6 * t)),
        spread=(0.0, 0.4),
    ),
    "dpo, three epochs": World(
        held_out=lambda t: LN2 - 0.19 * (1 - math.exp(-4 * t)), train_accuracy=lambda t: 0.5 + 0.36 * min(1.0, 3 * t)
    ),
    "dpo, clipped": World(grad=lambda t: 30.0),
    "dpo, long answers cut": World(ended=lambda t: 0.8),
    "sft": sft(),
    "sft, noisy": sft(spread=(0.4, 0.4), grad_spread=0.8, steps=300),
    "sft, near its floor": sft(loss=lambda t: 1.2 - 0.02 * (1 - math.exp(-6 * t)), spread=(0.3, 0.3)),
    "sft, short": sft(steps=12, evaluations=6, loss=lambda t: 2.0 - 0.1 * t),
}

SICK: dict[str, tuple[set[str], World]] = {
    "diverges late": ({"diverged"}, World(loss=lambda t: LN2 - 0.1 * t + (3 * (t - 0.6) if t > 0.6 else 0))),
    "diverges at once": ({"diverged"}, World(loss=lambda t: LN2 + 1.2 * min(1.0, 20 * t), spread=(0.0, 0.35))),
    "sft diverges": ({"diverged"}, sft(loss=lambda t: 2.0 + 1.5 * t, spread=(0.3, 0.3))),
    "sft diverges by half, noisy": ({"diverged"}, sft(loss=lambda t: 2.0 + 1.0 * t, spread=(0.4, 0.4), steps=200)),
    "nothing learned": (
        {"nothing_moved", "weights_unmoved"},
        World(
            steps=7,
            evaluations=7,
            loss=lambda t: LN2 - 6e-4 * t,
            margin=lambda t: 1.3e-3 * t,
            fall=lambda t: -0.01 * t,
            gap=lambda t: 0.01 * t,
            kl=lambda t: 1e-5 + 1e-4 * t,
        ),
    ),
    "nothing carries over": ({"not_learning"}, World(rows=800, accuracy=lambda t: 0.5, margin=lambda t: 0.1 * t)),
    "backwards": ({"backwards"}, World(accuracy=lambda t: 0.5 - 0.25 * t)),
    "over-optimised": (
        {"held_out_loss_rises"},
        World(loss=lambda t: LN2 * math.exp(-2 * t), held_out=lambda t: LN2 - 0.5 * t + 0.62 * t * t),
    ),
    "by heart": (
        {"overfit", "rows_fitted"},
        World(
            loss=lambda t: LN2 * math.exp(-4 * t),
            held_out=lambda t: LN2 - 0.3 * (1 - math.exp(-6 * t)),
            train_accuracy=lambda t: min(1.0, 0.5 + 2 * t),
        ),
    ),
    "sft by heart": ({"rows_fitted"}, sft(loss=lambda t: 2.0 * math.exp(-2 * t), held_out=lambda t: 2.0 - 0.3 * t)),
    "runs away": ({"kl_large"}, World(kl=lambda t: 80 * t)),
    "writes twice as long": ({"length_drift"}, World(length=lambda t: 50 + 50 * t)),
    "follows length": ({"length_drift"}, World(pull=0.75)),
    "forgets to stop": ({"eos_collapsed"}, World(ended=lambda t: 0.95 - 0.75 * t)),
    "spikes": ({"gradient_spikes"}, World(spikes=3)),
    "loses the chosen": ({"over_optimised"}, World(fall=lambda t: 120 * t, gap=lambda t: 60 * t)),
}


def rates(runs: int, first: int = 0) -> dict[str, Any]:
    """For every world, the share of ``runs`` runs with an alarm, and its codes."""
    result: dict[str, Any] = {"runs": runs, "healthy": {}, "sick": {}}
    for name, world in HEALTHY.items():
        codes = codes_of(world, runs, first)
        counts = Counter(c for each in codes for c in each)
        share = sum(bool(each) for each in codes) / runs
        result["healthy"][name] = {"false_alarms": share, "codes": {k: v / runs for k, v in counts.items()}}
    for name, (wanted, world) in SICK.items():
        codes = codes_of(world, runs, first)
        result["sick"][name] = {"found": sum(bool(wanted & set(each)) for each in codes) / runs}
    return result


def codes_of(world: World, runs: int, first: int) -> list[list[str]]:
    every = []
    for seed in range(first, first + runs):
        lines = lines_of(world, seed)
        every.append([d.code for d in alarms(diagnose(lines, facts_of(world, lines, seed)))])
    return every


def run(rates: Callable[[int], dict[str, Any]], about: str | None) -> None:
    """Command line: print and write the figures of every world."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="runs of every world")
    parser.add_argument("--out", type=Path, help="file to write the figures to, as JSON")
    options = parser.parse_args()
    figures = rates(options.runs)
    for name, row in figures["healthy"].items():
        print(f"healthy  {name:28} false alarms {row['false_alarms']:6.1%}  {row['codes'] or ''}")
    for name, row in figures["sick"].items():
        print(f"sick     {name:28} found        {row['found']:6.1%}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    run(rates, __doc__)
