"""False alarms and misses of the health checks on simulated healthy and sick runs that learn from rewards.

    python -m benchmarks.health_rollouts --runs 1000 --out benchmarks/results/health/rollouts.json

A run is a sequence of rollouts, each with ``prompts`` prompts and ``n`` answers per prompt, and evaluations on the same
held-out prompts. Noise has the size that these counts imply: rewards vary between prompts and between answers to one
prompt, lengths and KLs are gamma distributed, endings and groups of equal rewards are binomial, gradient norms
log-normal. A healthy run is a false alarm if any check says ``watch`` or ``bad``. A sick run is detected if the check
meant for it raises an alarm whose text names the fault.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.health import Diagnosis, alarms, diagnose
from benchmarks.health_sim import run

Lines = list[dict[str, Any]]
Curve = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class World:
    """A kind of run. Curves are functions of the share of training done, 0 to 1.

    Attributes:
        updates: updates per iteration.
        n: answers to each of the ``prompts`` of an iteration; the ``held_out`` prompts get one each.
        reward: mean reward; its standard deviation is ``between`` over prompts and ``within`` over the answers to one.
            With ``binary`` it is the share of correct answers, whose log-odds spread by ``between`` over prompts.
        kl, length: means per answer, in nats and tokens; ``entropy`` in nats per token; ``ended``: share with EOS.
        same: share of the prompts whose answers all get the same reward.
        clipped, moved: clip fraction and KL(old || new) of an update.
    """

    iterations: int = 40
    updates: int = 4
    prompts: int = 32
    n: int = 4
    held_out: int = 256
    reward: Curve = lambda t: 1.5 * (1 - math.exp(-3 * t))
    between: float = 1.0
    within: float = 1.0
    binary: bool = False
    kl: Curve = lambda t: 6 * t
    length: Curve = lambda t: 60.0
    entropy: Curve = lambda t: 1.2 - 0.5 * t
    ended: Curve = lambda t: 0.9
    same: Curve = lambda t: 0.0
    clipped: Curve = lambda t: 0.1
    moved: Curve = lambda t: 0.01
    grad_spread: float = 0.5


def lines_of(world: World, seed: int) -> Lines:
    """``metrics.jsonl`` of one run."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, world.between, world.held_out)
    every = max(1, world.iterations // 10)
    lines: Lines = [_eval_line(world, rng, 0, 0.0, shift)]
    for k in range(world.iterations):
        t, first = k / (world.iterations - 1), k * world.updates
        lines.append({"kind": "rollout", "step": first, "iteration": k, **_rollout(world, rng, t)})
        lines += [_train_line(world, rng, first + u + 1, t) for u in range(world.updates)]
        if (k + 1) % every == 0:
            lines.append(_eval_line(world, rng, first + world.updates, t, shift))
    return lines


def _rewards(world: World, rng: np.random.Generator, t: float, shift: np.ndarray, n: int) -> np.ndarray:
    """Rewards ``[P, n]`` of the answers to prompts whose means differ from the overall mean by ``shift``."""
    if world.binary:
        odds = math.log(world.reward(t) / (1 - world.reward(t))) + shift
        return (rng.random((len(shift), n)) < (1 / (1 + np.exp(-odds)))[:, None]).astype(float)
    return world.reward(t) + shift[:, None] + rng.normal(0, world.within, (len(shift), n))


def _rollout(world: World, rng: np.random.Generator, t: float) -> dict[str, float]:
    rewards = _rewards(world, rng, t, rng.normal(0, world.between, world.prompts), world.n)
    answers = rewards.size
    lengths = rng.gamma(4.0, world.length(t) / 4, answers)
    metrics = {
        "objective/scores": float(rewards.mean()),
        "objective/scores_sd": float(rewards.std(ddof=1)),
        "objective/kl_exact": float(rng.gamma(2.0, world.kl(t) / 2, answers).mean()) if world.kl(t) else 0.0,
        "objective/entropy": float((lengths * world.entropy(t) * np.exp(rng.normal(0, 0.3, answers))).mean()),
        "rollout/length": float(lengths.mean()),
        "rollout/eos_rate": float(rng.binomial(answers, world.ended(t))) / answers,
    }
    if world.n == 1:
        return metrics
    equal = (rewards.std(1) == 0) | (rng.random(world.prompts) < world.same(t))
    return metrics | {"rollout/same_reward": float(equal.mean())}


def _train_line(world: World, rng: np.random.Generator, step: int, t: float) -> dict[str, Any]:
    # the first update of an iteration starts from the policy that wrote the answers, and clips nothing
    moving = (step - 1) % world.updates > 0 or world.updates == 1
    share = min(1.0, world.clipped(t) * math.exp(rng.normal(0, 0.4))) if moving else 0.0
    return {
        "kind": "train",
        "step": step,
        "loss": float(rng.normal(0, 0.1)),
        "grad_norm": math.exp(rng.normal(0, world.grad_spread)),
        "lr": 1e-6,
        "policy/clipfrac": share,
        "policy/approxkl": world.moved(t) * math.exp(rng.normal(0, 0.5)) if moving else 0.0,
    }


def _eval_line(world: World, rng: np.random.Generator, step: int, t: float, shift: np.ndarray) -> dict[str, Any]:
    size = len(shift)
    rewards = _rewards(world, rng, t, shift, 1)[:, 0]
    kls = rng.gamma(2.0, world.kl(t) / 2, size) if step else np.zeros(size)
    error = lambda values: float(values.std(ddof=1)) / math.sqrt(size)  # noqa: E731
    return {
        "kind": "eval",
        "step": step,
        "n": float(size),
        "reward": float(rewards.mean()),
        "reward_se": error(rewards),
        "kl": float(kls.mean()),
        "kl_se": error(kls),
        "samples/length": float(rng.gamma(4.0, world.length(t) / 4, size).mean()),
        "samples/eos_rate": float(rng.binomial(size, world.ended(t))) / size,
    }


def facts_of(world: World, lines: Lines) -> dict[str, Any]:
    """``run.json``, with the summary of the 8 samples that a run on rewards keeps."""
    ends = [m for m in lines if m["kind"] == "eval"]
    few = 8
    samples = {
        stage: {
            "n": few,
            "length": m["samples/length"],
            "length_se": m["samples/length"] / 2 / math.sqrt(few),
            "eos_rate": round(few * m["samples/eos_rate"]) / few,
            "eos_rate_se": math.sqrt((p := (few * m["samples/eos_rate"] + 1) / (few + 2)) * (1 - p) / few),
        }
        for stage, m in (("before", ends[0]), ("after", ends[-1]))
    }
    steps = world.iterations * world.updates
    facts = {"method": "ppo" if world.n == 1 else "grpo", "status": "finished", "stop_reason": "finished"}
    facts |= {"step": steps, "steps": steps, "samples": samples, "reference_is_start": True}
    return facts | {"config": {"method": facts["method"], "lr": 1e-6, "max_grad_norm": 10.0, "kl_coef": 0.05}}


def _odds(start: float, end: float) -> Curve:
    """A share that moves from ``start`` to ``end`` linearly in log-odds."""
    first, last = (math.log(p / (1 - p)) for p in (start, end))
    return lambda t: 1 / (1 + math.exp(-(first + (last - first) * t)))


HEALTHY: dict[str, World] = {
    "ppo": World(n=1, prompts=64),
    "ppo, small rollouts": World(n=1, prompts=16, iterations=100),
    "ppo, far but sound": World(n=1, prompts=64, kl=lambda t: 18 * t),
    "ppo, steady": World(n=1, prompts=64, reward=lambda t: 1.2 * t, held_out=128),
    "ppo, loud gradients": World(n=1, prompts=64, grad_spread=0.8),
    "grpo": World(updates=1),
    "grpo, 12 iterations": World(updates=1, iterations=12, reward=lambda t: 1.2 * t),
    "grpo, somewhat longer": World(updates=1, length=lambda t: 60 + 8 * t),
    "grpo, right or wrong": World(updates=1, n=8, binary=True, reward=_odds(0.2, 0.6), between=2.0),
    "grpo, solved": World(updates=1, n=8, binary=True, reward=_odds(0.4, 0.995), between=1.5),
    "grpo, sharper": World(updates=1, entropy=lambda t: 1.2 * math.exp(-1.5 * t)),
    "rloo, cut answers": World(n=2, ended=lambda t: 0.6 + 0.2 * t),
}

SICK: dict[str, tuple[set[str], str, World]] = {
    "runs away": ({"conduct", "kl_large"}, "KL|far", World(kl=lambda t: 120 * t * t)),
    "runs away in short answers": (
        {"conduct", "kl_large"},
        "KL|far",
        World(length=lambda t: 10.0, kl=lambda t: 16 * t),
    ),
    "hacks by length": ({"conduct"}, "hacking.*length", World(length=lambda t: 60 + 110 * t)),
    "writes longer for nothing": (
        {"conduct"},
        r"\A(?!.*hacking).*exploded",
        World(length=lambda t: 60 + 110 * t, reward=lambda t: 0.0),
    ),
    "hacks by one phrase": (
        {"conduct"},
        "hacking",
        World(entropy=lambda t: 1.2 * math.exp(-5 * t), kl=lambda t: 40 * t),
    ),
    "collapses": (
        {"conduct"},
        "the same",
        World(n=1, prompts=64, entropy=lambda t: 1.2 * math.exp(-4 * t), reward=lambda t: 0.0),
    ),
    "forgets to end": ({"conduct"}, "no longer end", World(ended=lambda t: 0.9 - 0.75 * t)),
    "writes ever less": ({"conduct"}, "collapsed", World(length=lambda t: 60 - 45 * t, entropy=lambda t: 1.0)),
    "no signal": (
        {"conduct"},
        "same reward",
        World(updates=1, same=lambda t: 0.95, reward=lambda t: 0.0, between=1.0, within=0.1),
    ),
    "all wrong": (
        {"conduct"},
        "same reward",
        World(updates=1, binary=True, reward=lambda t: 0.01, between=1.0, n=8),
    ),
    "does not rise": ({"reward_flat"}, "did not clearly rise", World(reward=lambda t: 0.0)),
    "falls": ({"reward_fell"}, "fell", World(reward=lambda t: -1.5 * t)),
    "updates too large": ({"large_updates"}, "large", World(n=1, clipped=lambda t: 0.7)),
    "updates go too far": ({"large_updates"}, "large", World(n=1, moved=lambda t: 0.5)),
}


def raised(world: World, runs: int, first: int) -> list[list[Diagnosis]]:
    """The alarms of each run."""
    every = []
    for seed in range(first, first + runs):
        lines = lines_of(world, seed)
        every.append(alarms(diagnose(lines, facts_of(world, lines))))
    return every


def names(diagnoses: Sequence[Diagnosis], codes: set[str], pattern: str) -> bool:
    """Whether one of the checks names the fault in its title or explanation."""
    return any(d.code in codes and re.search(pattern, f"{d.title} {d.explanation}", re.S) for d in diagnoses)


def rates(runs: int, first: int = 0) -> dict[str, Any]:
    """For every world, the share of ``runs`` runs with an alarm, and its codes."""
    result: dict[str, Any] = {"runs": runs, "healthy": {}, "sick": {}}
    for name, world in HEALTHY.items():
        said = raised(world, runs, first)
        codes = Counter(d.code for each in said for d in each)
        share = sum(map(bool, said)) / runs
        result["healthy"][name] = {"false_alarms": share, "codes": {k: v / runs for k, v in codes.items()}}
    for name, (wanted, pattern, world) in SICK.items():
        hits = [names(each, wanted, pattern) for each in raised(world, runs, first)]
        result["sick"][name] = {"found": sum(hits) / runs}
    return result


if __name__ == "__main__":
    run(rates, __doc__)
