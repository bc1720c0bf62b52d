"""Objectives on the enumerable language, where reward, KL and optimum are exact: five questions, three seeds each.

    python benchmarks/objectives_lab.py OUT [--quick]

Writes ``OUT/objectives-lab.json`` (all figures), ``.md`` (the table) and three plots as SVG; the runs themselves go to
``OUT/runs``. One thread; about a quarter of an hour. Figures are exact means over 32 held-out prompts.

1. Does the KL fall strictly with beta?
2. Does IPO stay bounded on labels that never err, where DPO does not?
3. Do soft labels recover the reward? (what a difference of implicit rewards is worth in gold, and their correlation)
4. Do ties and rankings reach the same optimum as pairs? (KL to pi_ref e^(r / beta) / Z)
5. Does a Lagrange multiplier hold a constraint at its bound? (expected number of the token 5 in an answer)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from afzal import config, recipes, runs
from afzal.data.native import to_row
from afzal.lab import exact, language
from afzal.records import Item, Rating, Response
from afzal.report import svg
from afzal.train import checkpoint

SEEDS = (0, 1, 2)
BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
BETA = 0.3
TRAIN, HELD_OUT = language.prompts()
REWARDS, TRAIN_REWARDS = language.reward(HELD_OUT), language.reward(TRAIN)
FIVES = (language.RESPONSES == 5).sum(1).astype(float)
"""``[Y]`` how often the token 5 stands in each response."""


Labels = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def fives(prompt: str, answer: str) -> float:
    """The black-box cost: occurrences of 5."""
    return float(answer.count("5"))


@dataclass(frozen=True)
class Plan:
    steps: int
    long_steps: int
    every: int
    pairs: int


PROPER = Plan(steps=300, long_steps=600, every=100, pairs=6000)
QUICK = Plan(steps=40, long_steps=80, every=20, pairs=1000)


@dataclass(frozen=True)
class Row:
    """One run: what it was, and what its policy is worth."""

    question: int
    label: str
    seed: int
    step: int
    reward: float
    kl: float
    share: float
    more: dict[str, float]


class World:
    """The reference policy, and runs from it."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        start = language.save_model(out / "runs" / "start")
        rows = language.sft_items(TRAIN, 20_000, np.random.default_rng(0))
        data = language.write_demonstrations(rows, out / "runs" / "demonstrations.jsonl")
        schedule = {"lr": 3e-3, "warmup": 50, "batch_size": 128, "lr_schedule": "linear"}
        steps = 600 if plan is PROPER else 150
        self.sft = self.train("sft", start, data, "sft", steps=steps, rows=20_000, **schedule)
        self.log_ref, self.log_ref_train = self.policy(self.sft), self.policy(self.sft, prompts=TRAIN)
        self.frontier = exact.frontier(self.log_ref, REWARDS)

    def train(self, method: str, model: Path, data: Path, name: str, *, steps: int, rows: int, **settings: Any) -> Path:
        common = {"batch_size": 64, "lr": 5e-4, "lr_schedule": "constant", "warmup": 30, "eval_fraction": 0.0}
        batch = settings.get("batch_size", 64)
        made = {**language.SETTINGS, **common, "max_steps": steps, "epochs": 1 + steps * batch / rows, **settings}
        where = {"model": str(model), "data": str(data), "out": str(self.out / "runs" / name)}
        return recipes.train(config.make(method, **made, **where, device="cpu"))

    def prefer(self, objective: str, data: Path, name: str, *, steps: int, rows: int, **settings: Any) -> Path:
        return self.train("prefer", self.sft, data, name, steps=steps, rows=rows, objective=objective, **settings)

    def policy(self, folder: Path, step: int | None = None, prompts: np.ndarray = HELD_OUT) -> np.ndarray:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        if step is not None:
            model.load_state_dict(checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")[0]["model"])
        return exact.log_policy(model, prompts)

    def pairs(
        self, seed: int, n: int, labels: Callable[[np.ndarray, np.random.Generator], np.ndarray], name: str
    ) -> Path:
        """``n`` pairs of the reference with labels from their reward gaps."""
        rng = np.random.default_rng(100 + seed)
        drawn = language.sample_pairs(np.exp(self.log_ref_train), n, rng)
        gaps = TRAIN_REWARDS[drawn[0], drawn[1]] - TRAIN_REWARDS[drawn[0], drawn[2]]
        return self.write(language.pair_items(TRAIN, drawn, labels(gaps, rng)), f"{name}-{seed}")

    def rankings(self, seed: int, n: int, k: int) -> Path:
        """``n`` prompts with ``k`` different responses in an order drawn from Plackett-Luce of the gold reward."""
        rng = np.random.default_rng(200 + seed)
        items = []
        while len(items) < n:
            x = int(rng.integers(len(TRAIN)))
            drawn = np.unique(language.sample(np.exp(self.log_ref_train), np.full(k, x), rng))
            if len(drawn) < k:
                continue
            order = np.argsort(-(TRAIN_REWARDS[x, drawn] + rng.gumbel(size=k)))
            votes = tuple(Rating(int(which), float(place), "rank") for place, which in enumerate(order))
            texts = tuple(Response(language.response_text(language.RESPONSES[y])) for y in drawn)
            items.append(Item(f"rank-{len(items)}", language.prompt_text(TRAIN[x]), texts, votes))
        return self.write(items, f"rankings-{seed}")

    def write(self, items: Sequence[Item], name: str) -> Path:
        path = self.out / "runs" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(to_row(item)) + "\n" for item in items), encoding="utf-8")
        return path

    def row(self, question: int, label: str, seed: int, log_pi: np.ndarray, step: int = 0, **more: float) -> Row:
        found = exact.evaluate(log_pi, self.log_ref, REWARDS)
        print(
            f"{question} {label:36} seed {seed} step {step:4} R {found.reward:.3f} KL {found.kl:.3f}", more, flush=True
        )
        return Row(question, label, seed, step, found.reward, found.kl, found.share, more)


def noisy(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return language.noisy(gaps, rng)


def soft(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return language.graded(gaps)


def tied(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return language.with_ties(gaps, rng, nu=3.0)


def kl_and_beta(world: World) -> list[Row]:
    rows = []
    for seed in SEEDS:
        data = world.pairs(seed, world.plan.pairs, noisy, "noisy")
        for beta in BETAS:
            args = {"objective_arg": {"beta": beta}, "seed": seed}
            made = world.prefer(
                "dpo", data, f"beta-{beta:g}-{seed}", steps=world.plan.steps, rows=world.plan.pairs, **args
            )
            rows.append(world.row(1, "DPO", seed, world.policy(made), beta=beta))
    return rows


def certain_labels(world: World) -> list[Row]:
    rows, plan = [], world.plan
    for seed in SEEDS:
        data = world.pairs(seed, 300, language.deterministic, "certain")
        for objective in ("dpo", "ipo"):
            kept = {
                "save_every_steps": plan.every,
                "keep_checkpoints": 99,
                "objective_arg": {"beta": 0.1},
                "seed": seed,
            }
            made = world.prefer(objective, data, f"certain-{objective}-{seed}", steps=plan.long_steps, rows=300, **kept)
            for step in range(plan.every, plan.long_steps + 1, plan.every):
                rows.append(world.row(2, objective.upper(), seed, world.policy(made, step), step))
    return rows


def agreement(log_pi: np.ndarray, log_ref: np.ndarray, seed: int) -> dict[str, float]:
    """Implicit against gold reward differences over pairs of the reference.

    ``slope``: implicit per gold, below 1 by what the model has not learned. ``worth``: gold per implicit, 1 where an
    implicit reward is worth its face value, below 1 where it exaggerates.
    """
    which, first, second = language.sample_pairs(np.exp(log_ref), 20_000, np.random.default_rng(300 + seed))
    implicit = BETA * (log_pi - log_ref)
    x = REWARDS[which, first] - REWARDS[which, second]
    y = implicit[which, first] - implicit[which, second]
    slope, worth = (float((x * y).sum() / (z * z).sum()) for z in (x, y))
    return {"slope": slope, "worth": worth, "correlation": float(np.corrcoef(x, y)[0, 1])}


KINDS = {"soft labels": soft, "one noisy vote": noisy, "certain labels": language.deterministic}


def soft_labels(world: World) -> list[Row]:
    rows = []
    for seed in SEEDS:
        for label, kind in KINDS.items():
            data = world.pairs(seed, world.plan.pairs, kind, label.replace(" ", "-"))
            args = {"objective_arg": {"beta": BETA}, "seed": seed}
            name = f"{label.replace(' ', '-')}-{seed}-run"
            made = world.prefer("dpo", data, name, steps=world.plan.long_steps, rows=world.plan.pairs, **args)
            log_pi = world.policy(made)
            rows.append(world.row(3, label, seed, log_pi, **agreement(log_pi, world.log_ref, seed)))
    return rows


def ties_and_rankings(world: World) -> list[Row]:
    rows, n = [], world.plan.pairs
    best = exact.optimum(world.log_ref, REWARDS, BETA)
    for seed in SEEDS:
        pairs, ties = world.pairs(seed, n, noisy, "votes"), world.pairs(seed, n, tied, "tied")
        sources = (
            ("pairs, dpo", "dpo", pairs, {}),
            ("ties, rao_kupper", "rao_kupper", ties, {"nu": 3.0}),
            ("ties, davidson (nu learned)", "davidson", ties, {"nu": 1.0}),
            ("rankings of 4, plackett_luce", "plackett_luce", world.rankings(seed, n // 3, 4), {}),
        )
        for label, objective, data, extra in sources:
            learn = {"learn": ["nu"], "learned_lr": 0.02} if "learned" in label else {}
            args = {"objective_arg": {"beta": BETA, **extra}, "seed": seed, **learn}
            made = world.prefer(objective, data, f"{objective}-{seed}", steps=world.plan.long_steps, rows=n, **args)
            log_pi = world.policy(made)
            more = {"KL to the optimum": exact.kl(log_pi, best)} | agreement(log_pi, world.log_ref, seed)
            if learn:
                more["nu"] = runs.open_run(made).facts()["learned"]["davidson.nu"]
            rows.append(world.row(4, label, seed, log_pi, **more))
    return rows


def constraint(world: World) -> list[Row]:
    """DPO that would write more fives than the bound, free and held."""
    rows, plan = [], world.plan
    bound = round(0.5 * exact.expected(world.log_ref, np.broadcast_to(FIVES, REWARDS.shape)), 2)
    for seed in SEEDS:
        data = world.pairs(seed, plan.pairs, noisy, "noisy")
        held = {
            "constraint": "black_box",
            "constraint_score": "objectives_lab:fives",
            "constraint_bound": bound,
            "constraint_dual_lr": 0.05,
        }
        for label, extra in (("free", {}), ("held", held)):
            kept = {
                "save_every_steps": plan.every,
                "keep_checkpoints": 99,
                "objective_arg": {"beta": BETA},
                "seed": seed,
            }
            name = f"constraint-{label.split()[0]}-{seed}"
            made = world.prefer("dpo", data, name, steps=2 * plan.steps, rows=plan.pairs, **kept, **extra)
            for step in range(plan.every, 2 * plan.steps + 1, plan.every):
                log_pi = world.policy(made, step)
                cost = exact.expected(log_pi, np.broadcast_to(FIVES, REWARDS.shape))
                rows.append(world.row(5, label, seed, log_pi, step, cost=cost, bound=bound))
    return rows


QUESTIONS = (kl_and_beta, certain_labels, soft_labels, ties_and_rankings, constraint)


def verdicts(rows: Sequence[Row]) -> list[tuple[str, bool, str]]:
    """Each claim, whether it held in every seed, and the figures."""
    one = {(r.seed, r.more["beta"]): r.kl for r in rows if r.question == 1}
    falls = all(one[s, a] > one[s, b] for s in SEEDS for a, b in pairwise(BETAS))
    means = [np.mean([one[s, b] for s in SEEDS]) for b in BETAS]
    found = [("KL falls strictly with beta", falls, " / ".join(f"{m:.2f}" for m in means))]
    grew = {label: [_growth(rows, label, s) for s in SEEDS] for label in ("DPO", "IPO")}
    bounded = all(d > i + 0.3 for d, i in zip(grew["DPO"], grew["IPO"], strict=True)) and max(grew["IPO"]) < 0.6
    said = "; ".join(f"{k}: {', '.join(f'{x:+.2f}' for x in v)}" for k, v in grew.items())
    found.append(
        ("on certain labels IPO's KL comes to rest and DPO's does not (KL, second half of training)", bounded, said)
    )
    three = {x: [r.more for r in rows if r.question == 3 and r.label == x] for x in _labels(rows, 3)}
    soft_ones, certain = three["soft labels"], three["certain labels"]
    near = all(abs(m["worth"] - 1) < 0.2 and m["correlation"] > 0.85 for m in soft_ones)
    near = near and all(a["worth"] > b["worth"] + 0.2 for a, b in zip(soft_ones, certain, strict=True))
    near = near and all(
        a["correlation"] > b["correlation"]
        for k in KINDS
        if k != "soft labels"
        for a, b in zip(soft_ones, three[k], strict=True)
    )
    said = "; ".join(
        f"{k}: " + ", ".join(f"{m['worth']:.2f} ({m['correlation']:.2f})" for m in v) for k, v in three.items()
    )
    claim = "soft labels recover the reward, certain ones exaggerate it (gold per implicit reward; correlation)"
    found.append((claim, near, said))
    four = {x: [r for r in rows if r.question == 4 and r.label == x] for x in _labels(rows, 4)}
    gaps = {x: [r.more["KL to the optimum"] for r in v] for x, v in four.items()}
    same = all(np.mean(v) < np.mean(gaps["pairs, dpo"]) + 0.15 for v in gaps.values())
    said = "; ".join(f"{k}: {', '.join(f'{x:.2f}' for x in v)}" for k, v in gaps.items())
    found.append(("ties and rankings come as near to pi_ref e^(r/beta)/Z as pairs (KL to it)", same, said))
    five = [r for r in rows if r.question == 5]
    late = [r for r in five if r.step > max(r.step for r in five) / 2]
    cost = {
        x: [float(np.mean([r.more["cost"] for r in late if (r.label, r.seed) == (x, s)])) for s in SEEDS]
        for x in _labels(rows, 5)
    }
    bound = five[0].more["bound"]
    holds = all(x <= bound * 1.15 for x in cost["held"]) and min(cost["free"]) > bound * 1.5
    said = f"bound {bound:.2f}; " + "; ".join(f"{k}: {', '.join(f'{x:.2f}' for x in v)}" for k, v in cost.items())
    claim = "a multiplier holds the expected number of fives at its bound (mean over the second half, within 15 %)"
    return [*found, (claim, holds, said)]


def _growth(rows: Sequence[Row], label: str, seed: int) -> float:
    course = [r.kl for r in rows if r.question == 2 and r.label == label and r.seed == seed]
    return course[-1] - course[len(course) // 2 - 1]


def _labels(rows: Sequence[Row], question: int) -> list[str]:
    return list(dict.fromkeys(r.label for r in rows if r.question == question))


def table(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Markdown: the claims, then every setting with means and ranges over the seeds."""
    lines = [
        "# Objectives on the enumerable language",
        "",
        f"{about['date']}, {about['machine']}, {about['threads']} thread, Python {about['python']}, "
        f"torch {about['torch']}, transformers {about['transformers']}; {about['minutes']:.0f} minutes. "
        f"Exact means over {len(HELD_OUT)} held-out prompts, seeds {', '.join(map(str, SEEDS))}.",
        "",
        "Made by `python benchmarks/objectives_lab.py OUT`.",
        "",
        "| claim | holds in all seeds | figures |",
        "|---|---|---|",
        *(f"| {claim} | {'yes' if held else '**no**'} | {said} |" for claim, held, said in verdicts(rows)),
        "",
        "Mean (lowest to highest of the seeds) at the end; share is the part of the gain that is possible at that KL.",
        "",
        "| question | run | reward | KL, nats | share | further |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys(_key(r) for r in rows):
        same = [r for r in rows if _key(r) == key]
        end = max(r.step for r in same)
        same = [r for r in same if r.step == end]
        figures = [_range([getattr(r, name) for r in same]) for name in ("reward", "kl", "share")]
        more = "; ".join(f"{k} {_range([r.more[k] for r in same])}" for k in same[0].more if k not in ("beta", "bound"))
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(figures)} | {more} |")
    return "\n".join(lines) + "\n"


def _key(r: Row) -> tuple[int, str]:
    return r.question, r.label + (f", beta {r.more['beta']:g}" if "beta" in r.more else "")


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def plots(rows: Sequence[Row], out: Path) -> None:
    """KL against beta, KL in the course of training on certain labels, and the cost of the constraint."""
    by_beta = [("DPO", [(b, [r.kl for r in rows if r.question == 1 and r.more["beta"] == b]) for b in BETAS])]
    _plot(by_beta, out / "objectives-lab-beta.svg", "KL at the end of training against beta", "beta", "nats")
    course = [(x, _course(rows, 2, x, lambda r: r.kl)) for x in _labels(rows, 2)]
    _plot(course, out / "objectives-lab-certain.svg", "KL to the reference on 300 certain pairs", "step", "nats")
    cost = [(x, _course(rows, 5, x, lambda r: r.more["cost"])) for x in _labels(rows, 5)]
    rules = [svg.Rule(next(r.more["bound"] for r in rows if r.question == 5), "bound")]
    _plot(cost, out / "objectives-lab-constraint.svg", "Expected fives per answer", "step", "tokens", rules)


Points = list[tuple[float, list[float]]]
"""For each x the values of all seeds."""


def _course(rows: Sequence[Row], question: int, label: str, value: Callable[[Row], float]) -> Points:
    of = [r for r in rows if r.question == question and r.label == label]
    return [(float(step), [value(r) for r in of if r.step == step]) for step in sorted({r.step for r in of})]


def _plot(
    lines: Sequence[tuple[str, Points]],
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    rules: Sequence[svg.Rule] = (),
) -> None:
    """Means over the seeds with a band from the lowest to the highest."""
    series = [
        svg.Series(
            name,
            tuple((x, float(np.mean(v))) for x, v in points),
            colour=k,
            low=tuple(min(v) for _, v in points),
            high=tuple(max(v) for _, v in points),
            label=name if len(lines) > 1 else "",
        )
        for k, (name, points) in enumerate(lines)
    ]
    drawing = svg.line_chart(series, title=title, x_label=x_label, y_label=y_label, rules=rules)
    path.write_text(svg.standalone(drawing), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few steps: does it run?")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    (given.out / "runs").mkdir(parents=True, exist_ok=False)
    began = time.perf_counter()
    world = World(given.out, QUICK if given.quick else PROPER)
    rows = [row for question in QUESTIONS for row in question(world)]
    about = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "minutes": (time.perf_counter() - began) / 60,
    }
    (given.out / "objectives-lab.json").write_text(
        json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1)
    )
    (given.out / "objectives-lab.md").write_text(table(rows, about), encoding="utf-8")
    plots(rows, given.out)
    print(table(rows, about))
    return 0 if all(held for _, held, _ in verdicts(rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
