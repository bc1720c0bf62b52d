"""Principles with exact figures: data, loss and multiplier methods compared with the constrained optimum.

    python -m benchmarks.principles_lab OUT [--quick]

On the enumerable language an answer is harmful if it contains a 5: its cost is 1, and that of any other answer 0. The
gold reward is independent of the cost. Every arm starts from the same supervised policy and learns from noisy votes on
the reward. It is compared with the best policy whose cost is within the bound, pi_ref e^((r - lambda c)/beta) / Z.
Each seed draws other votes and trains in another order. Writes OUT/principles-lab.json and OUT/principles-lab.md;
finished runs are reused.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from afzal import config, data, runs
from afzal.iterate import iterate
from afzal.lab import exact, language
from afzal.principles.run import revise
from afzal.records import Comparison, Item, Response
from benchmarks import lab_world
from benchmarks.lab_world import HELD_OUT, REWARDS, TRAIN, TRAIN_REWARDS, World, policy

BETA, BOUND = 1.0, 0.1
COSTS = (language.RESPONSES == 5).any(1).astype(float)
"""``[Y]`` whether each response contains a 5."""
PENALTY, DUAL_LR = 4.0, 0.1
C_DPO = {"rounds": 25, "dual_lr": 1.0, "n": 4, "held_out": 32, "accumulate": True, "lr": 1e-3}
"""C-DPO: each of 25 rounds has all pairs of four answers to 128 prompts, and the earlier rounds' pairs, relabelled."""


@dataclass(frozen=True)
class Plan:
    """Updates per run, pairs with votes, updates of the supervised start, revisions per prompt, seeds per arm."""

    steps: int
    pairs: int
    sft_steps: int
    revisions: int
    seeds: int


PROPER = Plan(steps=300, pairs=6000, sft_steps=400, revisions=8, seeds=3)
QUICK = Plan(steps=6, pairs=200, sft_steps=30, revisions=1, seeds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the figures")
    parser.add_argument("--quick", action="store_true", help="a few updates: only shows that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    results = measured(options.out, QUICK if options.quick else PROPER)
    command = f"python -m benchmarks.principles_lab OUT{' --quick' if options.quick else ''}"
    results["about"] = lab_world.about(command, (time.monotonic() - began) / 60)
    (options.out / "principles-lab.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "principles-lab.md").write_text(page(results))
    print(page(results))


def harm(prompt: str, answer: str) -> float:
    """The cost as a black-box function."""
    return float("5" in answer)


def measured(out: Path, plan: Plan) -> dict[str, Any]:
    """Reward, cost and KL of every arm and seed, exact means over held-out prompts."""
    world = lab_world.make_world(out, plan.sft_steps)
    costs = np.broadcast_to(COSTS, REWARDS.shape)
    best = exact.constrained_optimum(world.log_ref, REWARDS, costs, BETA, BOUND)
    # the multiplier is chosen before training, on the training prompts
    train_costs = np.broadcast_to(COSTS, TRAIN_REWARDS.shape)
    multiplier = exact.constrained_optimum(world.log_ref_train, TRAIN_REWARDS, train_costs, BETA, BOUND).multiplier
    results: dict[str, Any] = {
        "beta": BETA,
        "bound": BOUND,
        "multiplier": multiplier,
        "plan": plan.__dict__,
        "arms": {},
    }
    results["arms"]["start"] = [worth(world, world.log_ref, best.log_pi)]
    for name, arm in ARMS.items():
        runs_of = [arm(world, plan, multiplier, seed) for seed in range(plan.seeds)]
        results["arms"][name] = [worth(world, policy(run), best.log_pi) for run in runs_of]
        print(name, results["arms"][name], flush=True)
    results["multipliers"] = [_multipliers(out, seed) for seed in range(plan.seeds)]
    results["arms"]["constrained optimum"] = [worth(world, best.log_pi, best.log_pi)]
    free_of_it = exact.optimum(world.log_ref, REWARDS, BETA)
    results["arms"]["optimum without a bound"] = [worth(world, free_of_it, best.log_pi)]
    return results


def worth(world: World, log_pi: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """Reward, cost, KL to the start and to the constrained optimum in nats, the objective reward - beta KL, and its
    shortfall from the best policy with at most the same cost."""
    costs = np.broadcast_to(COSTS, REWARDS.shape)
    reward, cost, kl = exact.expected(log_pi, REWARDS), exact.expected(log_pi, costs), exact.kl(log_pi, world.log_ref)
    rival = exact.constrained_optimum(world.log_ref, REWARDS, costs, BETA, cost).log_pi
    ideal = exact.expected(rival, REWARDS) - BETA * exact.kl(rival, world.log_ref)
    value = reward - BETA * kl
    figures = {"reward": reward, "cost": cost, "kl": kl, "kl_to_optimum": exact.kl(log_pi, best), "objective": value}
    return figures | {"shortfall": ideal - value}


def prefer(
    world: World, plan: Plan, data: Path, name: str, seed: int, *, start: Path | None = None, **overrides: Any
) -> Path:
    model = start or world.sft
    length = {"steps": plan.steps, "rows": plan.pairs, "seed": seed}
    settings = {"objective": "dpo", "objective_arg": {"beta": BETA}, **overrides}
    return lab_world.train(world.out, "prefer", model, data, f"{name}-{seed}", **length, **settings)


def helpful(world: World, plan: Plan, seed: int) -> Path:
    return lab_world.pairs(world, seed, plan.pairs, language.noisy, "noisy")


def free(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """DPO on votes on the reward alone."""
    return prefer(world, plan, helpful(world, plan, seed), "free", seed)


def safety_votes(world: World, plan: Plan, seed: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Pairs of the reference's responses, and a Bradley-Terry judge's labels of harm: probabilities, not votes."""
    drawn = language.sample_pairs(np.exp(world.log_ref_train), plan.pairs, np.random.default_rng(7 + seed))
    gaps = COSTS[drawn[2]] - COSTS[drawn[1]]
    return drawn, 1 / (1 + np.exp(-gaps))


def revised_items(world: World, plan: Plan, seed: int) -> list[Item]:
    """Revisions of answers that contain a 5, by ``afzal revise`` with the supervised policy."""
    folder = world.out / "runs"
    prompts, principles = folder / "prompts.jsonl", folder / "principles.yaml"
    rows = [json.dumps({"prompt": language.prompt_text(x)}) + "\n" for x in TRAIN]
    runs.atomic_write(prompts, "".join(rows))
    principle = {"id": "no-five", "text": "No answer holds a 5.", "avoid": ["*5*"]}
    content = {"principles": [principle], "critique_prompt": "", "revision_prompt": "{{ prompt }}"}
    runs.atomic_write(principles, yaml.safe_dump(content))
    items = []
    for draw in range(seed * plan.revisions, (seed + 1) * plan.revisions):
        made = config.ReviseConfig(
            model=str(world.sft),
            prompts=str(prompts),
            principles=str(principles),
            out=str(folder / f"revise-{draw}"),
            candidates=4,
            max_new_tokens=language.MAX_LENGTH,
            seed=draw,
        )
        if revise(made)["pairs"]:
            items += data.read(f"{made.out}/pairs.jsonl").items
    return [
        replace(item, id=f"{item.id}-{k}", extra={}, responses=tuple(map(_closed, item.responses)))
        for k, item in enumerate(items)
    ]


def _closed(response: Response) -> Response:
    """The text with its final full stop, which generation omits."""
    text = str(response.turns)
    return Response(text if len(text) == language.MAX_LENGTH else text + language.VOCABULARY[language.EOS])


def revisions(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """Data method: votes on the reward and revisions, in one file of pairs."""
    items = [*data.read(helpful(world, plan, seed)).items, *revised_items(world, plan, seed)]
    return prefer(world, plan, lab_world.write(items, world.out, f"with-revisions-{seed}"), "revisions", seed)


def revisions_after(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """Data method in two steps: votes on the reward, then revisions with the first result as reference."""
    made = lab_world.write(revised_items(world, plan, seed), world.out, f"revisions-alone-{seed}")
    arguments = {"objective_arg": {"beta": BETA / multiplier}}
    return prefer(world, plan, made, "revisions-after", seed, start=free(world, plan, multiplier, seed), **arguments)


def sacpo(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """SACPO: votes on the reward, then labels of harm with the first result as reference, at beta / lambda."""
    drawn, p = safety_votes(world, plan, seed)
    items = language.pair_items(TRAIN, drawn, p)  # pyright: ignore[reportArgumentType]
    made = lab_world.write(items, world.out, f"safety-{seed}")
    arguments = {"objective_arg": {"beta": BETA / multiplier}}
    return prefer(world, plan, made, "sacpo", seed, start=free(world, plan, multiplier, seed), **arguments)


def modpo(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """MODPO: the same votes on the reward, with the weighted difference of costs as margin."""
    items = []
    for item in data.read(helpful(world, plan, seed)).items:
        (vote,) = item.votes
        assert isinstance(vote, Comparison)
        cost = [harm("", str(r.turns)) for r in item.responses]
        better, worse = (vote.first, vote.second) if vote.outcome == "first" else (vote.second, vote.first)
        items.append(replace(item, votes=(replace(vote, strength=-multiplier * (cost[better] - cost[worse])),)))
    made = lab_world.write(items, world.out, f"with-margins-{seed}")
    return prefer(world, plan, made, "modpo", seed, objective="modpo", objective_arg={"beta": BETA, "w": 1.0})


HELD = {
    "constraint": "black_box",
    "constraint_score": "benchmarks.principles_lab:harm",
    "constraint_bound": BOUND,
}


def penalty(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """Loss method: a penalty on the policy's own answers if their cost is above the bound."""
    return prefer(world, plan, helpful(world, plan, seed), "penalty", seed, **HELD, constraint_weight=PENALTY)


def lagrangian(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """A multiplier that follows the sampled cost of the policy's own answers."""
    return prefer(world, plan, helpful(world, plan, seed), "lagrangian", seed, **HELD, constraint_dual_lr=DUAL_LR)


def c_dpo(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """C-DPO: each round has votes on reward minus multiplier times cost, DPO, and a dual step from the sampled cost."""
    lab_world.CHANCE.seed(seed)
    folder, prompts = world.out / "runs" / f"c-dpo-{seed}", world.out / "runs" / "prompts.jsonl"
    runs.atomic_write(prompts, "".join(json.dumps({"prompt": language.prompt_text(x)}) + "\n" for x in TRAIN))
    settings: dict[str, Any] = {"model": str(world.sft), "prompts": str(prompts), "out": str(folder), "seed": seed}
    settings |= {"reward": "benchmarks.lab_world:vote", "cost": "benchmarks.principles_lab:harm", "cost_bound": BOUND}
    settings |= C_DPO
    settings |= {"prompts_per_round": len(TRAIN) - C_DPO["held_out"], "reuse_prompts": True, "held_out_samples": 32}
    settings |= {"max_new_tokens": language.MAX_LENGTH, "max_tokens": 8, "eos_token": ".", "require_eos": False}
    settings |= {
        "pairing": "all",
        "objective_arg": {"beta": BETA},
        "batch_size": 64,
        "max_steps": plan.steps // 25 or 1,
    }
    settings |= {"lr_schedule": "constant", "warmup": 3, "eval_fraction": 0.0, "device": "cpu"}
    settings["rounds"] = rounds = min(C_DPO["rounds"], plan.steps)
    if not (folder / "rounds.json").exists():
        iterate(config.build(config.IterateConfig, [config.Setting(k, v) for k, v in settings.items()]))
    return folder / "rounds" / f"{rounds:03d}" / "run"


def _multipliers(out: Path, seed: int) -> list[float]:
    """The multiplier of each round."""
    record = json.loads((out / "runs" / f"c-dpo-{seed}" / "rounds.json").read_text("utf-8"))
    return [r["multiplier"] for r in record["rounds"] if "multiplier" in r]


ARMS: Mapping[str, Callable[[World, Plan, float, int], Path]] = {
    "DPO on votes alone": free,
    "data: votes and revisions together": revisions,
    "data: revisions after votes": revisions_after,
    "SACPO": sacpo,
    "MODPO": modpo,
    "loss: penalty": penalty,
    "Lagrangian": lagrangian,
    "C-DPO in rounds": c_dpo,
}


def page(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    keys: Sequence[str] = ("reward", "cost", "kl", "kl_to_optimum", "objective", "shortfall")
    last = ", ".join(f"{values[-1]:.2f}" for values in results["multipliers"])
    lines = [
        "# Principles on the enumerable language",
        "",
        lab_world.about_line(results["about"]),
        f"Means over {results['plan']['seeds']} seeds, in brackets the lowest and the highest; "
        f"{results['plan']['steps']} updates of 64 pairs, beta {results['beta']:g}, bound {results['bound']:g} on the "
        f"share of answers with a 5, lambda {results['multiplier']:.2f} for arms that are given it. Exact means over "
        f"{len(HELD_OUT)} held-out prompts; KL in nats, to the start and to the constrained optimum. Objective is "
        "reward - beta KL; the shortfall is how far it is below that of the best policy with the same or a lower cost. "
        f"The multipliers of C-DPO ended at {last}.",
        "",
        "| policy | reward | cost | KL to the start | KL to the optimum | objective | shortfall |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = {name: [_cell([seed[key] for seed in arm]) for key in keys] for name, arm in results["arms"].items()}
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    """The mean, and the lowest and highest of several seeds."""
    ends = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{ends}"


if __name__ == "__main__":
    main()
