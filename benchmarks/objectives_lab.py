"""Five questions on objectives, answered on the enumerable language, where reward, KL and optimum are exact.

    python -m benchmarks.objectives_lab OUT [--quick]

Writes ``OUT/objectives-lab.json`` (all figures), ``.md`` (the table) and three plots as SVG. Runs go to ``OUT/runs``,
and finished ones are reused, so running the command again resumes. Three seeds, one thread; about half an hour, or
three minutes with ``--quick``. Figures are exact means over 32 held-out prompts.

1. Does the KL fall strictly with beta?
2. On labels that never err, does IPO stay bounded while DPO does not?
3. Do soft labels recover the reward? (gold reward per unit of implicit reward, and their correlation)
4. Do ties and rankings reach the same optimum as pairs? (KL to pi_ref e^(r / beta) / Z)
5. Does a Lagrange multiplier hold a constraint at its bound? (expected number of the token 5 in an answer)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from afzal import runs
from afzal.lab import exact, language
from afzal.report import svg
from benchmarks import lab_world
from benchmarks.lab_world import HELD_OUT, REWARDS, World, policy

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
BETA = 0.3
FIVES = np.broadcast_to((language.RESPONSES == 5).sum(1).astype(float), REWARDS.shape)
"""``[X, Y]`` number of 5 tokens in each response."""
NU = 3.0


@dataclass(frozen=True)
class Plan:
    """Updates of short and long runs and between two evaluations; pairs; updates of the supervised start; seeds."""

    steps: int
    long_steps: int
    every: int
    pairs: int
    sft_steps: int
    seeds: tuple[int, ...]


PROPER = Plan(steps=300, long_steps=600, every=50, pairs=6000, sft_steps=600, seeds=(0, 1, 2))
QUICK = Plan(steps=20, long_steps=40, every=10, pairs=1000, sft_steps=150, seeds=(0,))


@dataclass(frozen=True)
class Row:
    """One policy: its run, and its exact figures."""

    question: int
    label: str
    seed: int
    step: int
    reward: float
    kl: float
    share: float
    more: dict[str, float]


def row(world: World, question: int, label: str, seed: int, log_pi: np.ndarray, step: int = 0, **more: float) -> Row:
    result = exact.evaluate(log_pi, world.log_ref, REWARDS)
    print(f"{question} {label:30} seed {seed} step {step:4} R {result.reward:.3f} KL {result.kl:.3f}", more, flush=True)
    return Row(question, label, seed, step, result.reward, result.kl, result.share, more)


def prefer(
    world: World, objective: str, data: Path, name: str, *, seed: int, steps: int, rows: int, **settings: Any
) -> Path:
    return lab_world.train(
        world.out, "prefer", world.sft, data, name, steps=steps, rows=rows, objective=objective, seed=seed, **settings
    )


def plain_dpo(world: World, plan: Plan, seed: int) -> Path:
    """DPO on noisy pairs with checkpoints: the baseline of three of the questions."""
    data = lab_world.pairs(world, seed, plan.pairs, language.noisy, "noisy")
    settings = {"save_every_steps": plan.every, "keep_checkpoints": 99, "objective_arg": {"beta": BETA}}
    return prefer(
        world, "dpo", data, f"noisy-{seed}-run", seed=seed, steps=plan.long_steps, rows=plan.pairs, **settings
    )


def soft(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return language.graded(gaps)


def tied(gaps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return language.with_ties(gaps, rng, nu=NU)


def kl_and_beta(world: World, plan: Plan) -> list[Row]:
    rows = []
    for seed in plan.seeds:
        data = lab_world.pairs(world, seed, plan.pairs, language.noisy, "noisy")
        for beta in BETAS:
            common = {"seed": seed, "steps": plan.steps, "rows": plan.pairs, "objective_arg": {"beta": beta}}
            made = prefer(world, "dpo", data, f"beta-{beta:g}-{seed}", **common)
            rows.append(row(world, 1, "DPO", seed, policy(made), beta=beta))
    return rows


def certain_labels(world: World, plan: Plan) -> list[Row]:
    rows, every = [], 2 * plan.every
    for seed in plan.seeds:
        data = lab_world.pairs(world, seed, 300, language.deterministic, "certain")
        for objective in ("dpo", "ipo"):
            settings = {"save_every_steps": every, "keep_checkpoints": 99, "objective_arg": {"beta": 0.1}, "seed": seed}
            name = f"certain-{objective}-{seed}"
            made = prefer(world, objective, data, name, steps=plan.long_steps, rows=300, **settings)
            for step in range(every, plan.long_steps + 1, every):
                rows.append(row(world, 2, objective.upper(), seed, policy(made, step), step))
    return rows


def agreement(log_pi: np.ndarray, log_ref: np.ndarray, seed: int) -> dict[str, float]:
    """Compare implicit and gold reward differences over pairs of the reference's responses.

    ``slope``: implicit per gold; below 1 if the model has not learned all of it. ``worth``: gold per implicit; 1 if
    implicit rewards have the right size, below 1 if they exaggerate.
    """
    which, first, second = language.sample_pairs(np.exp(log_ref), 20_000, np.random.default_rng(300 + seed))
    implicit = BETA * (log_pi - log_ref)
    x = REWARDS[which, first] - REWARDS[which, second]
    y = implicit[which, first] - implicit[which, second]
    slope, worth = (float((x * y).sum() / (z * z).sum()) for z in (x, y))
    return {"slope": slope, "worth": worth, "correlation": float(np.corrcoef(x, y)[0, 1])}


KINDS = {"soft labels": soft, "one noisy vote": language.noisy, "certain labels": language.deterministic}


def soft_labels(world: World, plan: Plan) -> list[Row]:
    rows = []
    for seed in plan.seeds:
        for label, kind in KINDS.items():
            if kind is language.noisy:
                made = plain_dpo(world, plan, seed)
            else:
                name = label.replace(" ", "-")
                data = lab_world.pairs(world, seed, plan.pairs, kind, name)
                common = {"seed": seed, "steps": plan.long_steps, "rows": plan.pairs, "objective_arg": {"beta": BETA}}
                made = prefer(world, "dpo", data, f"{name}-{seed}-run", **common)
            log_pi = policy(made)
            rows.append(row(world, 3, label, seed, log_pi, **agreement(log_pi, world.log_ref, seed)))
    return rows


def ties_and_rankings(world: World, plan: Plan) -> list[Row]:
    rows, n = [], plan.pairs
    best = exact.optimum(world.log_ref, REWARDS, BETA)
    for seed in plan.seeds:
        ties = lab_world.pairs(world, seed, n, tied, "tied")
        sources = (
            ("ties, rao_kupper", "rao_kupper", ties, {"nu": NU}),
            ("ties, davidson (nu learned)", "davidson", ties, {"nu": 1.0}),
            ("rankings of 4, plackett_luce", "plackett_luce", lab_world.rankings(world, seed, n // 3, 4), {}),
        )
        made = {"pairs, dpo": plain_dpo(world, plan, seed)}
        for label, objective, data, extra in sources:
            learn = {"learn": ["nu"], "learned_lr": 0.02} if "learned" in label else {}
            settings = {"objective_arg": {"beta": BETA, **extra}, "seed": seed, **learn}
            made[label] = prefer(
                world, objective, data, f"{objective}-{seed}", steps=plan.long_steps, rows=n, **settings
            )
        for label, run in made.items():
            log_pi = policy(run)
            more = {"KL to the optimum": exact.kl(log_pi, best)} | agreement(log_pi, world.log_ref, seed)
            if "learned" in label:
                more["nu"] = runs.open_run(run).facts()["learned"]["davidson.nu"]
            rows.append(row(world, 4, label, seed, log_pi, **more))
    return rows


def constraint(world: World, plan: Plan) -> list[Row]:
    """DPO that would write more fives than the bound, with and without the constraint."""
    rows = []
    bound = round(0.5 * exact.expected(world.log_ref, FIVES), 2)
    constrained = {
        "constraint": "black_box",
        "constraint_score": "benchmarks.lab_world:fives",
        "constraint_bound": bound,
        "constraint_dual_lr": 0.05,
    }
    settings = {"save_every_steps": plan.every, "keep_checkpoints": 99, "objective_arg": {"beta": BETA}}
    for seed in plan.seeds:
        data = lab_world.pairs(world, seed, plan.pairs, language.noisy, "noisy")
        length = {"seed": seed, "steps": plan.long_steps, "rows": plan.pairs}
        made = {
            "free": plain_dpo(world, plan, seed),
            "held": prefer(world, "dpo", data, f"constraint-{seed}", **length, **settings, **constrained),
        }
        for label, run in made.items():
            for step in range(plan.every, plan.long_steps + 1, plan.every):
                log_pi = policy(run, step)
                cost = exact.expected(log_pi, FIVES)
                rows.append(row(world, 5, label, seed, log_pi, step, cost=cost, bound=bound))
    return rows


QUESTIONS = (kl_and_beta, certain_labels, soft_labels, ties_and_rankings, constraint)


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it held in every seed, and the figures."""

    claim: str
    held: bool
    figures: str


def beta_verdict(rows: Sequence[Row]) -> Verdict:
    one = {(r.seed, r.more["beta"]): r.kl for r in rows if r.question == 1}
    falls = all(one[s, a] > one[s, b] for s in _seeds(rows) for a, b in pairwise(BETAS))
    means = [np.mean([one[s, b] for s in _seeds(rows)]) for b in BETAS]
    return Verdict("the KL falls strictly with beta", falls, " / ".join(f"{m:.2f}" for m in means))


def rest_verdict(rows: Sequence[Row]) -> Verdict:
    """Judged from a third of the training onwards."""
    late = {label: [_courses(rows, label, s) for s in _seeds(rows)] for label in ("DPO", "IPO")}
    late = {label: [course[len(course) // 3 :] for course in courses] for label, courses in late.items()}
    rests = all(max(r.kl for r in c) - min(r.kl for r in c) < 0.6 for c in late["IPO"])
    passes = all(d[-1].kl > max(r.kl for r in i) + 1 for d, i in zip(late["DPO"], late["IPO"], strict=True))
    ranges = {k: [f"{c[0].kl:.2f} to {c[-1].kl:.2f}" for c in v] for k, v in late.items()}
    claim = "on certain labels IPO's KL stays within 0.6 from a third of training on, and DPO's ends 1 nat above it"
    return Verdict(claim, rests and passes, _listed(ranges, "{}"))


def growth_verdict(rows: Sequence[Row]) -> Verdict:
    grew = {label: [_growth(_courses(rows, label, s)) for s in _seeds(rows)] for label in ("DPO", "IPO")}
    apart = all(d > i + 0.3 for d, i in zip(grew["DPO"], grew["IPO"], strict=True))
    claim = "in the second half of training DPO's KL still gains 0.3 more than IPO's"
    return Verdict(claim, apart, _listed(grew, "{:+.2f}"))


def fall_verdict(rows: Sequence[Row]) -> Verdict:
    fell = {
        label: [max(r.reward for r in c) - c[-1].reward for c in (_courses(rows, label, s) for s in _seeds(rows))]
        for label in ("DPO", "IPO")
    }
    held = all(d > 0.3 and d > i + 0.2 for d, i in zip(fell["DPO"], fell["IPO"], strict=True))
    claim = "on certain labels DPO ends 0.3 or more below its best reward, and loses more than IPO"
    return Verdict(claim, held, _listed(fell, "-{:.2f}"))


def soft_verdict(rows: Sequence[Row]) -> Verdict:
    by_label = {x: [r.more for r in rows if r.question == 3 and r.label == x] for x in _labels(rows, 3)}
    best, certain = by_label["soft labels"], by_label["certain labels"]
    others = [v for k, v in by_label.items() if k != "soft labels"]
    held = (
        all(abs(m["worth"] - 1) < 0.2 and m["correlation"] > 0.85 for m in best)
        and all(a["worth"] > b["worth"] + 0.2 for a, b in zip(best, certain, strict=True))
        and all(a["correlation"] > b["correlation"] for v in others for a, b in zip(best, v, strict=True))
    )
    worths = {k: [f"{m['worth']:.2f} ({m['correlation']:.2f})" for m in v] for k, v in by_label.items()}
    claim = "soft labels recover the reward, certain ones exaggerate it (gold per implicit reward; correlation)"
    return Verdict(claim, held, _listed(worths, "{}"))


def optimum_verdict(rows: Sequence[Row]) -> Verdict:
    gaps = {
        x: [r.more["KL to the optimum"] for r in rows if r.question == 4 and r.label == x] for x in _labels(rows, 4)
    }
    same = all(np.mean(v) < np.mean(gaps["pairs, dpo"]) + 0.15 for v in gaps.values())
    claim = "ties and rankings come as near to pi_ref e^(r/beta)/Z as pairs (KL to it)"
    return Verdict(claim, same, _listed(gaps, "{:.2f}"))


def constraint_verdict(rows: Sequence[Row]) -> Verdict:
    five = [r for r in rows if r.question == 5]
    late = [r for r in five if r.step > max(r.step for r in five) / 2]
    cost = {
        x: [float(np.mean([r.more["cost"] for r in late if (r.label, r.seed) == (x, s)])) for s in _seeds(rows)]
        for x in _labels(rows, 5)
    }
    bound = five[0].more["bound"]
    holds = all(x <= bound * 1.15 for x in cost["held"]) and min(cost["free"]) > bound * 1.5
    claim = "a multiplier holds the expected number of fives at its bound (mean over the second half, within 15%)"
    return Verdict(claim, holds, f"bound {bound:.2f}; {_listed(cost, '{:.2f}')}")


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    on_certain = (rest_verdict, growth_verdict, fall_verdict)
    judges = (beta_verdict, *on_certain, soft_verdict, optimum_verdict, constraint_verdict)
    return [judge(rows) for judge in judges]


def _courses(rows: Sequence[Row], label: str, seed: int) -> list[Row]:
    return [r for r in rows if r.question == 2 and r.label == label and r.seed == seed]


def _growth(course: Sequence[Row]) -> float:
    return course[-1].kl - course[len(course) // 2 - 1].kl


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({r.seed for r in rows})


def _labels(rows: Sequence[Row], question: int) -> list[str]:
    return list(dict.fromkeys(r.label for r in rows if r.question == question))


def _listed(values: dict[str, list[Any]], form: str) -> str:
    return "; ".join(f"{k}: {', '.join(form.format(x) for x in v)}" for k, v in values.items())


def table(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """The page as Markdown: the claims, then every setting with means and ranges over the seeds."""
    lines = [
        "# Objectives on the enumerable language",
        "",
        lab_world.about_line(facts),
        f"Exact means over {len(HELD_OUT)} held-out prompts; seeds {', '.join(map(str, _seeds(rows)))}, in this order.",
        "",
        "| claim | holds in all seeds | figures |",
        "|---|---|---|",
        *(f"| {v.claim} | {'yes' if v.held else '**no**'} | {v.figures} |" for v in verdicts(rows)),
        "",
        "Mean (lowest to highest of the seeds) at the end; share is the fraction of the possible gain at that KL.",
        "",
        "| question | run | reward | KL, nats | share | further |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys(_key(r) for r in rows):
        same = [r for r in rows if _key(r) == key]
        same = [r for r in same if r.step == max(r.step for r in same)]
        figures = [_range([getattr(r, name) for r in same]) for name in ("reward", "kl", "share")]
        more = "; ".join(f"{k} {_range([r.more[k] for r in same])}" for k in same[0].more if k not in ("beta", "bound"))
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(figures)} | {more} |")
    return "\n".join(lines) + "\n"


def _key(r: Row) -> tuple[int, str]:
    return r.question, r.label + (f", beta {r.more['beta']:g}" if "beta" in r.more else "")


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def plots(rows: Sequence[Row], out: Path) -> None:
    """Plot KL against beta, KL during training on certain labels, and the cost under the constraint."""
    by_beta = [("DPO", [(b, [r.kl for r in rows if r.question == 1 and r.more["beta"] == b]) for b in BETAS])]
    lab_world.plot(by_beta, out / "objectives-lab-beta.svg", "KL at the end of training against beta", "beta", "nats")
    course = [(x, _course(rows, 2, x, lambda r: r.kl)) for x in _labels(rows, 2)]
    lab_world.plot(course, out / "objectives-lab-certain.svg", "KL on 300 certain pairs", "step", "nats")
    cost = [(x, _course(rows, 5, x, lambda r: r.more["cost"])) for x in _labels(rows, 5)]
    rules = [svg.Rule(next(r.more["bound"] for r in rows if r.question == 5), "bound")]
    title = "expected fives per answer"
    lab_world.plot(cost, out / "objectives-lab-constraint.svg", title, "step", "tokens", rules)


def _course(rows: Sequence[Row], question: int, label: str, value: Callable[[Row], float]) -> lab_world.Points:
    selected = [r for r in rows if r.question == question and r.label == label]
    return [
        (float(step), [value(r) for r in selected if r.step == step]) for step in sorted({r.step for r in selected})
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few steps, to see whether it runs; claims will not hold")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    plan, began = QUICK if options.quick else PROPER, time.perf_counter()
    world = lab_world.make_world(options.out, plan.sft_steps)
    rows = [one for question in QUESTIONS for one in question(world, plan)]
    command = "python -m benchmarks.objectives_lab OUT" + (" --quick" if options.quick else "")
    facts = lab_world.about(command, (time.perf_counter() - began) / 60)
    results = {"about": facts, "claims": [asdict(v) for v in verdicts(rows)], "rows": [asdict(r) for r in rows]}
    text = table(rows, facts)
    (options.out / "objectives-lab.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "objectives-lab.md").write_text(text, encoding="utf-8")
    plots(rows, options.out)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
