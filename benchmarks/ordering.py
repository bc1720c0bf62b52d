"""Compare methods by reward at equal KL on the enumerable language, where reward, KL and optimum are exact.

    python -m benchmarks.ordering OUT [--quick] [--seeds 3] [--jobs 2]

Every method gets the same start and the same 2,000 noisy votes on pairs (or, if stated, the true reward), with three
seeds. Runs are evaluated during training, and methods are compared at equal KL: the reward when a run first reaches
that KL, for the best of a few settings per method. Writes ``OUT/ordering.json``, ``.md`` and two plots; runs go to
``OUT/runs``, and finished ones are reused. Figures are exact means over 32 held-out prompts of the reward with the
parity term, which no method gets for free (docs/lab.md).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from afzal.lab import exact, language, matched_kl
from afzal.lab.matched_kl import Claim, Point, Trajectory
from afzal.report import svg
from benchmarks import lab_world
from benchmarks.lab_world import REWARDS, TRAIN, TRAIN_REWARDS, World, policy

GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
MATCHED = GRID[:5]
"""KLs at which claims are judged; above 2, most runs over-optimise."""
DRAWS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Plan:
    """Updates per run and between two evaluations; votes; updates of start and reward model; iterations of methods that
    sample their own answers; rounds; seeds; settings per method (all if None)."""

    steps: int
    every: int
    pairs: int
    sft_steps: int
    reward_steps: int
    iterations: int
    rounds: int
    seeds: tuple[int, ...]
    settings: int | None


PROPER = Plan(240, 40, 2000, 600, 300, 64, 3, (0, 1, 2), None)
QUICK = Plan(60, 15, 600, 150, 60, 8, 2, (0,), 1)

Policy = tuple[int, np.ndarray]
"""Number of updates (or draws), and the policy at that point: log-probs ``[X, Y]``."""


@dataclass(frozen=True)
class Trial:
    """A method, one of its settings, and a function that makes its policies from world, plan and seed."""

    method: str
    setting: str
    run: Callable[[World, Plan, int], list[Policy]]


def votes(world: World, plan: Plan, seed: int) -> Path:
    return lab_world.pairs(world, seed, plan.pairs, language.noisy, "votes")


def along(world: World, plan: Plan, seed: int, method: str, name: str, **settings: Any) -> list[Policy]:
    """Policies of a run on the votes, one every ``plan.every`` updates."""
    common = {"steps": plan.steps, "rows": plan.pairs, "seed": seed}
    saving = {"save_every_steps": plan.every, "keep_checkpoints": 99}
    data = votes(world, plan, seed)
    made = lab_world.train(world.out, method, world.sft, data, f"{name}-{seed}", **common, **saving, **settings)
    return [(step, policy(made, step)) for step in range(plan.every, plan.steps + 1, plan.every)]


def on_votes(method: str, setting: str, recipe: str, **settings: Any) -> Trial:
    name = f"{method} {setting}".lower().replace(" ", "-")
    return Trial(method, setting, lambda world, plan, seed: along(world, plan, seed, recipe, name, **settings))


def iterative(beta: float) -> Trial:
    """DPO in rounds: the same total of votes and updates, but each round's pairs come from the current policy.

    The reference stays the start, and the votes of earlier rounds are kept.
    """

    def run(world: World, plan: Plan, seed: int) -> list[Policy]:
        rng, model, drawn, policies = np.random.default_rng(400 + seed), world.sft, [], []
        for k in range(plan.rounds):
            present = world.log_ref_train if k == 0 else policy(model, prompts=TRAIN)
            pairs = language.sample_pairs(np.exp(present), plan.pairs // plan.rounds, rng)
            gaps = TRAIN_REWARDS[pairs[0], pairs[1]] - TRAIN_REWARDS[pairs[0], pairs[2]]
            drawn += language.pair_items(TRAIN, pairs, language.noisy(gaps, rng), prefix=f"round-{k}")
            name, steps = f"iterative-{beta:g}-{seed}-{k}", plan.steps // plan.rounds
            data = lab_world.write(drawn, world.out, name)
            settings = {"seed": seed, "beta": beta, "reference": str(world.sft), "save_every_steps": plan.every}
            settings["keep_checkpoints"] = 99
            model = lab_world.train(world.out, "dpo", model, data, name, steps=steps, rows=len(drawn), **settings)
            policies += [(k * steps + s, policy(model, s)) for s in range(plan.every, steps + 1, plan.every)]
        return policies

    return Trial("iterative DPO", f"beta {beta:g}", run)


def reward_model(world: World, plan: Plan, seed: int) -> Path:
    """A scalar head on the start's trunk, trained on nine tenths of the votes, with early stopping on the rest."""
    held_out = {"eval_fraction": 0.1, "eval_every_steps": plan.every, "early_stop_patience": 3}
    common = {"steps": plan.reward_steps, "rows": int(0.9 * plan.pairs), "seed": seed, "weight_decay": 0.01}
    data = votes(world, plan, seed)
    return lab_world.train(world.out, "reward", world.sft, data, f"reward-{seed}", **common, **held_out)


def learned_rewards(folder: Path, prompts: np.ndarray) -> np.ndarray:
    """A reward model's scores of all responses, ``[X, Y]``."""
    from afzal.rewards.source import reward_source

    ends = {"max_tokens": language.SETTINGS["max_tokens"], "eos_token": language.SETTINGS["eos_token"]}
    rewarder = reward_source(str(folder), **ends)
    texts = [language.response_text(y) for y in language.RESPONSES]
    prompt_texts = [language.prompt_text(x) for x in prompts]
    rewards = rewarder([x for x in prompt_texts for _ in texts], texts * len(prompt_texts))
    return np.asarray(rewards).reshape(len(prompt_texts), len(texts))


def online(method: str, recipe: str, beta: float, reward: Callable[[World, Plan, int], str], **settings: Any) -> Trial:
    """A policy that learns from rewards of its own answers: 128 per iteration, two passes of two minibatches."""

    def run(world: World, plan: Plan, seed: int) -> list[Policy]:
        each = 4  # updates of an iteration
        name = f"{method} {beta:g} {seed}".lower().replace(", ", "-").replace(" ", "-")
        saving = {"save_every_steps": each * plan.iterations // 8, "keep_checkpoints": 99, "seed": seed, "warmup": 10}
        size = {"iterations": plan.iterations, "ppo_epochs": 2, "minibatches": 2, "kl_coef": beta}
        spec = {"reward": reward(world, plan, seed), **saving, **size, **settings}
        made = lab_world.made(world.out, recipe, world.sft, votes(world, plan, seed), name, **spec)
        every = saving["save_every_steps"]
        return [(step, policy(made, step)) for step in range(every, each * plan.iterations + 1, every)]

    return Trial(method, f"beta {beta:g}", run)


def true_reward(world: World, plan: Plan, seed: int) -> str:
    return "afzal.lab.language:gold"


def learned_reward(world: World, plan: Plan, seed: int) -> str:
    return str(reward_model(world, plan, seed))


def ordered_rightly(world: World, plan: Plan, seed: int) -> float:
    """Share of pairs of the start's answers, without ties in gold, that a seed's reward model orders as gold does."""
    scores = learned_rewards(reward_model(world, plan, seed), lab_world.HELD_OUT)
    x, a, b = language.sample_pairs(np.exp(world.log_ref), 20_000, np.random.default_rng(500 + seed))
    gold, guess = REWARDS[x, a] - REWARDS[x, b], scores[x, a] - scores[x, b]
    return float(((gold > 0) == (guess > 0))[gold != 0].mean())


def best_of(world: World, scores: np.ndarray) -> list[Policy]:
    return [(n, exact.best_of(world.log_ref, scores, n)) for n in DRAWS]


def best_of_learned(world: World, plan: Plan, seed: int) -> list[Policy]:
    return best_of(world, learned_rewards(reward_model(world, plan, seed), lab_world.HELD_OUT))


PPO = {"batch_size": 128, "n": 1, "value_lr": 1e-3}
RLOO = {"batch_size": 32, "n": 4}

TRIALS = (
    on_votes("DPO", "beta 0.3", "dpo", beta=0.3),
    on_votes("DPO", "beta 0.1", "dpo", beta=0.1),
    on_votes("IPO", "beta 0.05", "ipo", beta=0.05),
    on_votes("KTO", "beta 0.1", "kto", beta=0.1, batch_size=128),
    on_votes("preferred-FT", "", "sft"),
    on_votes("unlikelihood", "alpha 0.5", "prefer", objective="unlikelihood", objective_arg={"alpha": 0.5}),
    iterative(0.3),
    iterative(0.1),
    online("PPO, true reward", "ppo", 0.1, true_reward, **PPO),
    online("PPO, learned reward", "ppo", 0.1, learned_reward, **PPO),
    online("RLOO, true reward", "rloo", 0.1, true_reward, **RLOO),
    Trial("best of n, learned reward", "", best_of_learned),
    Trial("best of n, true reward", "", lambda world, plan, seed: best_of(world, REWARDS)),
)
METHODS = tuple(dict.fromkeys(t.method for t in TRIALS))


def chosen(plan: Plan) -> list[int]:
    """Indices of a plan's trials: the first ``plan.settings`` settings of each method."""
    place = [sum(other.method == t.method for other in TRIALS[:k]) for k, t in enumerate(TRIALS)]
    return [k for k, n in enumerate(place) if plan.settings is None or n < plan.settings]


@cache
def world_of(out: Path, plan: Plan) -> World:
    import torch

    torch.set_num_threads(1)
    return lab_world.make_world(out, plan.sft_steps)


def shared(out: Path, plan: Plan, seed: int) -> None:
    """Make the run of a seed that several trials use."""
    reward_model(world_of(out, plan), plan, seed)


def trajectory(out: Path, plan: Plan, which: int, seed: int) -> Trajectory:
    """Make a trial's missing runs, and evaluate all of its runs."""
    world, trial = world_of(out, plan), TRIALS[which]
    points = [Point(0, 0.0, exact.expected(world.log_ref, REWARDS))]
    for step, log_pi in trial.run(world, plan, seed):
        result = exact.evaluate(log_pi, world.log_ref, REWARDS)
        points.append(Point(step, result.kl, result.reward))
    print(f"{trial.method} {trial.setting} seed {seed}: R {points[-1].reward:.2f} at {points[-1].kl:.2f}", flush=True)
    return Trajectory(trial.method, trial.setting, seed, tuple(points))


def run(out: Path, plan: Plan, jobs: int) -> list[Trajectory]:
    """All trajectories of a plan, ``jobs`` at a time, after the runs that they share."""
    for seed in plan.seeds:
        votes(world_of(out, plan), plan, seed)
    tasks = list(product(plan.seeds, chosen(plan)))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for made in [pool.submit(shared, out, plan, seed) for seed in plan.seeds]:
            made.result()
        waiting = [pool.submit(trajectory, out, plan, which, seed) for seed, which in tasks]
        return [w.result() for w in waiting]


def claims(measured: Sequence[Trajectory], seeds: Sequence[int], edge: exact.Frontier) -> list[Claim]:
    """Claims about these methods, and whether they hold here."""
    true, learned, best = "PPO, true reward", "PPO, learned reward", "best of n, learned reward"
    order = (
        ("PPO with the true reward is above DPO", true, "DPO"),
        ("RLOO with the true reward is above DPO", "RLOO, true reward", "DPO"),
        ("DPO is above PPO with the true reward (Rafailov et al. 2023)", "DPO", true),
        ("DPO is above PPO with a learned reward", "DPO", learned),
        ("PPO with a learned reward is above KTO", learned, "KTO"),
        ("DPO is above KTO", "DPO", "KTO"),
        ("DPO is above best of n by a learned reward", "DPO", best),
        ("iterative DPO is above DPO on as many votes", "iterative DPO", "DPO"),
    )
    made = [_below_the_optimum(measured, seeds, edge)]
    made += [matched_kl.claim_above(text, measured, (a, b), seeds, MATCHED) for text, a, b in order]
    for method in ("preferred-FT", "unlikelihood"):
        text = f"{method} stays below a KL of 0.5, and .5 below DPO"
        made.append(matched_kl.claim_stays_low(text, measured, method, "DPO", seeds, kl=0.5, by=0.5))
    return made


def _below_the_optimum(measured: Sequence[Trajectory], seeds: Sequence[int], edge: exact.Frontier) -> Claim:
    """Claim that no policy is above the optimum; interpolation between betas lowers the frontier by up to 1e-3."""
    regrets = {s: min(edge.regret(p.kl, p.reward) for c in measured if c.seed == s for p in c.points) for s in seeds}
    least = ", ".join(f"{r:.3f}" for r in regrets.values())
    return matched_kl.claim_from_seeds(
        "no policy is above the optimum", [r > -1e-3 for r in regrets.values()], f"least regret {least}"
    )


def markdown(
    measured: Sequence[Trajectory],
    made: Sequence[Claim],
    edge: exact.Frontier,
    facts: dict[str, Any],
    accuracies: Sequence[float],
) -> str:
    seeds = sorted({c.seed for c in measured})
    names = [m for m in METHODS if any(c.method == m for c in measured)]
    rows = matched_kl.table(measured, names, seeds, GRID, edge)
    settings = {m: ", ".join(dict.fromkeys(c.setting for c in measured if c.method == m and c.setting)) for m in names}
    lines = [
        "# Which method gains more reward at equal KL",
        "",
        lab_world.about_line(facts),
        f"Exact means over {len(lab_world.HELD_OUT)} held-out prompts, seeds {', '.join(map(str, seeds))}; the start "
        f"has {edge.reward[0]:.2f}. The learned rewards order {', '.join(f'{a:.0%}' for a in accuracies)} of its pairs "
        "as the true reward does. `benchmarks/ordering.py` describes the command.",
        "",
        "| claim | outcome | figures, one per seed |",
        "|---|---|---|",
        *(f"| {c.text} | {_outcome(c)} | {c.figures} |" for c in made),
        "",
        "Reward at a KL in nats: mean (lowest to highest of the seeds), then the mean regret to the optimum. Empty: no "
        "run reaches this KL. Linear between evaluations, so slightly too low before the first one.",
        "",
        f"| method | settings | {' | '.join(f'{k:g}' for k in GRID)} |",
        "|---|---|" + "---|" * len(GRID),
        f"| optimum | | {' | '.join(f'{edge.at(k):.2f}' for k in GRID)} |",
        *(f"| {row[0]} | {settings[row[0]]} | {' | '.join(row[1:])} |" for row in rows),
        "",
        "End of each run as reward@KL, one per seed:",
        "",
        "| method | setting | end |",
        "|---|---|---|",
        *(f"| {c.method} | {c.setting} | {_ends(measured, c)} |" for c in measured if c.seed == seeds[0]),
    ]
    return "\n".join(lines) + "\n"


def _outcome(c: Claim) -> str:
    return c.outcome if c.outcome == "not measured" else f"{c.outcome} ({c.held} of {c.n} seeds)"


def _ends(measured: Sequence[Trajectory], run: Trajectory) -> str:
    same = [c.points[-1] for c in measured if (c.method, c.setting) == (run.method, run.setting)]
    return ", ".join(f"{p.reward:.2f}@{p.kl:.2f}" for p in same)


PLOTS = {
    "votes": ("DPO", "iterative DPO", "IPO", "KTO", "PPO, learned reward", "best of n, learned reward"),
    "reward": (
        "DPO",
        "PPO, true reward",
        "RLOO, true reward",
        "best of n, true reward",
        "preferred-FT",
        "unlikelihood",
    ),
}


def plot(measured: Sequence[Trajectory], edge: exact.Frontier, names: Sequence[str], path: Path) -> None:
    """Plot reward at equal KL and the optimum: means over seeds with bands, up to the KL that every seed reaches."""
    seeds, fine = sorted({c.seed for c in measured}), np.linspace(0, 4, 81).tolist()
    lines = []
    for name in names:
        points = [(k, [matched_kl.best_at(measured, name, s, k) for s in seeds]) for k in fine]
        known = [(k, [v for v in values if v is not None]) for k, values in points if None not in values]
        if known:
            lines.append((name, known))
    optimum = svg.Series("optimum", tuple((k, edge.at(k)) for k in fine), colour=len(names), label="optimum")
    title = "expected reward at equal KL to the start"
    drawing = svg.line_chart(
        [*lab_world.bands(lines), optimum], title=title, x_label="KL, nats", y_label="reward", width=620, height=360
    )
    path.write_text(svg.standalone(drawing), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, one setting, few updates: does it run?")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, one thread each")
    options = parser.parse_args()
    plan = QUICK if options.quick else replace(PROPER, seeds=tuple(range(options.seeds)))
    began = time.perf_counter()
    measured = run(options.out, plan, options.jobs)
    edge = exact.frontier(world_of(options.out, plan).log_ref, REWARDS)
    made = claims(measured, plan.seeds, edge)
    command = "python -m benchmarks.ordering OUT" + (" --quick" if options.quick else "")
    facts = lab_world.about(command, (time.perf_counter() - began) / 60, options.jobs)
    accuracies = [ordered_rightly(world_of(options.out, plan), plan, seed) for seed in plan.seeds]
    text = markdown(measured, made, edge, facts, accuracies)
    figures = {"about": facts, "claims": [asdict(c) for c in made], "courses": [asdict(c) for c in measured]}
    figures["accuracies of the reward models"] = accuracies
    (options.out / "ordering.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (options.out / "ordering.md").write_text(text, encoding="utf-8")
    for name, methods in PLOTS.items():
        plot(measured, edge, methods, options.out / f"ordering-{name}.svg")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
