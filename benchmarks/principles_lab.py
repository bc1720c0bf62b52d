"""Principles where all is exact: the data side, the loss side and multipliers beside the constrained optimum.

    python -m benchmarks.principles_lab OUT [--quick]

On the enumerable language an answer is harmful when it holds a 5: its cost is 1, and that of any other answer 0. The
gold reward knows nothing of it. Every arm starts from the same supervised policy and learns from noisy votes on the
reward, and is set beside the best policy whose cost keeps the bound, pi_ref e^((r - lambda c)/beta) / Z. Each seed
draws other votes and trains in another order. Writes OUT/principles-lab.json and OUT/principles-lab.md; runs that are
there finished are not made again.
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
"""``[Y]`` whether 5 stands in each response."""
PENALTY, DUAL_LR = 4.0, 0.1
C_DPO = {"rounds": 25, "dual_lr": 1.0, "n": 4, "held_out": 32, "accumulate": True, "lr": 1e-3}
"""C-DPO: in each of 25 rounds all pairs of four answers to 128 prompts, and those of earlier rounds, labelled anew."""


@dataclass(frozen=True)
class Plan:
    """Updates of a run, pairs of votes, updates of the supervised start, revisions of each prompt, seeds of an arm."""

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
    parser.add_argument("--quick", action="store_true", help="a few updates: shows that it runs, and no more")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    found = measured(given.out, QUICK if given.quick else PROPER)
    command = f"python -m benchmarks.principles_lab OUT{' --quick' if given.quick else ''}"
    found["about"] = lab_world.about(command, (time.monotonic() - began) / 60)
    (given.out / "principles-lab.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "principles-lab.md").write_text(page(found))
    print(page(found))


def harm(prompt: str, answer: str) -> float:
    """The cost as a black box sees it."""
    return float("5" in answer)


def measured(out: Path, plan: Plan) -> dict[str, Any]:
    """Reward, cost and KL of every arm and seed, exact means over held-out prompts."""
    world = lab_world.make_world(out, plan.sft_steps)
    costs = np.broadcast_to(COSTS, REWARDS.shape)
    best = exact.constrained(world.log_ref, REWARDS, costs, BETA, BOUND)
    # what is chosen before training is chosen on the training prompts
    train_costs = np.broadcast_to(COSTS, TRAIN_REWARDS.shape)
    multiplier = exact.constrained(world.log_ref_train, TRAIN_REWARDS, train_costs, BETA, BOUND).multiplier
    found: dict[str, Any] = {"beta": BETA, "bound": BOUND, "multiplier": multiplier, "plan": plan.__dict__, "arms": {}}
    found["arms"]["start"] = [worth(world, world.log_ref, best.log_pi)]
    for name, arm in ARMS.items():
        runs_of = [arm(world, plan, multiplier, seed) for seed in range(plan.seeds)]
        found["arms"][name] = [worth(world, policy(run), best.log_pi) for run in runs_of]
        print(name, found["arms"][name], flush=True)
    found["multipliers"] = [_multipliers(out, seed) for seed in range(plan.seeds)]
    found["arms"]["constrained optimum"] = [worth(world, best.log_pi, best.log_pi)]
    free_of_it = exact.optimum(world.log_ref, REWARDS, BETA)
    found["arms"]["optimum without a bound"] = [worth(world, free_of_it, best.log_pi)]
    return found


def worth(world: World, log_pi: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """Reward, cost, KL to the start and to the constrained optimum in nats, the objective reward - beta KL, and how
    much more of it the best policy has that costs no more."""
    costs = np.broadcast_to(COSTS, REWARDS.shape)
    reward, cost, kl = exact.expected(log_pi, REWARDS), exact.expected(log_pi, costs), exact.kl(log_pi, world.log_ref)
    rival = exact.constrained(world.log_ref, REWARDS, costs, BETA, cost).log_pi
    ideal = exact.expected(rival, REWARDS) - BETA * exact.kl(rival, world.log_ref)
    value = reward - BETA * kl
    found = {"reward": reward, "cost": cost, "kl": kl, "kl_to_optimum": exact.kl(log_pi, best), "objective": value}
    return found | {"shortfall": ideal - value}


def prefer(
    world: World, plan: Plan, data: Path, name: str, seed: int, *, start: Path | None = None, **given: Any
) -> Path:
    model = start or world.sft
    length = {"steps": plan.steps, "rows": plan.pairs, "seed": seed}
    settings = {"objective": "dpo", "objective_arg": {"beta": BETA}, **given}
    return lab_world.train(world.out, "prefer", model, data, f"{name}-{seed}", **length, **settings)


def helpful(world: World, plan: Plan, seed: int) -> Path:
    return lab_world.pairs(world, seed, plan.pairs, language.noisy, "noisy")


def free(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """DPO on votes on the reward alone."""
    return prefer(world, plan, helpful(world, plan, seed), "free", seed)


def safety_votes(world: World, plan: Plan, seed: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Pairs of the reference, and the labels of a Bradley-Terry judge of harm: probabilities, not votes."""
    drawn = language.sample_pairs(np.exp(world.log_ref_train), plan.pairs, np.random.default_rng(7 + seed))
    gaps = COSTS[drawn[2]] - COSTS[drawn[1]]
    return drawn, 1 / (1 + np.exp(-gaps))


def revised_items(world: World, plan: Plan, seed: int) -> list[Item]:
    """Revisions over answers that hold a 5, by ``afzal revise`` with the supervised policy."""
    folder = world.out / "runs"
    prompts, principles = folder / "prompts.jsonl", folder / "principles.yaml"
    rows = [json.dumps({"prompt": language.prompt_text(x)}) + "\n" for x in TRAIN]
    runs.atomic_write(prompts, "".join(rows))
    kept = {"id": "no-five", "text": "No answer holds a 5.", "avoid": ["*5*"]}
    said = {"principles": [kept], "critique_prompt": "", "revision_prompt": "{{ prompt }}"}
    runs.atomic_write(principles, yaml.safe_dump(said))
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
    """The text with the full stop that ends it, which generation leaves out."""
    text = str(response.turns)
    return Response(text if len(text) == language.MAX_LENGTH else text + language.VOCABULARY[language.EOS])


def revisions(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """The data side: votes on the reward and revisions, in one file of pairs."""
    items = [*data.read(helpful(world, plan, seed)).items, *revised_items(world, plan, seed)]
    return prefer(world, plan, lab_world.write(items, world.out, f"with-revisions-{seed}"), "revisions", seed)


def revisions_after(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """The data side in two steps: votes on the reward, then revisions with the first result as reference."""
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
    """The loss side: a penalty on the policy's own answers where their cost is above the bound."""
    return prefer(world, plan, helpful(world, plan, seed), "penalty", seed, **HELD, constraint_weight=PENALTY)


def lagrangian(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """A multiplier that follows the sampled cost of the policy's own answers."""
    return prefer(world, plan, helpful(world, plan, seed), "lagrangian", seed, **HELD, constraint_dual_lr=DUAL_LR)


def c_dpo(world: World, plan: Plan, multiplier: float, seed: int) -> Path:
    """C-DPO: in every round votes on reward less multiplier times cost, DPO, and a dual step from the sampled cost."""
    lab_world.CHANCE.seed(seed)
    folder, prompts = world.out / "runs" / f"c-dpo-{seed}", world.out / "runs" / "prompts.jsonl"
    runs.atomic_write(prompts, "".join(json.dumps({"prompt": language.prompt_text(x)}) + "\n" for x in TRAIN))
    given: dict[str, Any] = {"model": str(world.sft), "prompts": str(prompts), "out": str(folder), "seed": seed}
    given |= {"reward": "benchmarks.lab_world:vote", "cost": "benchmarks.principles_lab:harm", "cost_bound": BOUND}
    given |= C_DPO
    given |= {"prompts_per_round": len(TRAIN) - C_DPO["held_out"], "reuse_prompts": True, "held_out_samples": 32}
    given |= {"max_new_tokens": language.MAX_LENGTH, "max_tokens": 8, "eos_token": ".", "require_eos": False}
    given |= {"pairing": "all", "objective_arg": {"beta": BETA}, "batch_size": 64, "max_steps": plan.steps // 25 or 1}
    given |= {"lr_schedule": "constant", "warmup": 3, "eval_fraction": 0.0, "device": "cpu"}
    given["rounds"] = rounds = min(C_DPO["rounds"], plan.steps)
    if not (folder / "rounds.json").exists():
        iterate(config.build(config.IterateConfig, [config.Setting(k, v) for k, v in given.items()]))
    return folder / "rounds" / f"{rounds:03d}" / "run"


def _multipliers(out: Path, seed: int) -> list[float]:
    """The multiplier of each round."""
    found = json.loads((out / "runs" / f"c-dpo-{seed}" / "rounds.json").read_text("utf-8"))
    return [r["multiplier"] for r in found["rounds"] if "multiplier" in r]


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


def page(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    keys: Sequence[str] = ("reward", "cost", "kl", "kl_to_optimum", "objective", "shortfall")
    last = ", ".join(f"{values[-1]:.2f}" for values in found["multipliers"])
    lines = [
        "# Principles on the enumerable language",
        "",
        lab_world.about_line(found["about"]),
        f"Means over {found['plan']['seeds']} seeds, in brackets the lowest and the highest; "
        f"{found['plan']['steps']} updates of 64 pairs, beta {found['beta']:g}, bound {found['bound']:g} on the share "
        f"of answers with a 5, lambda {found['multiplier']:.2f} for arms that are given it. Exact means over "
        f"{len(HELD_OUT)} held-out prompts; KL in nats, to the start and to the constrained optimum. Objective is "
        "reward - beta KL; the shortfall is how far it is below that of the best policy with the same or a lower cost. "
        f"The multipliers of C-DPO ended at {last}.",
        "",
        "| policy | reward | cost | KL to the start | KL to the optimum | objective | shortfall |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = {name: [_cell([seed[key] for seed in arm]) for key in keys] for name, arm in found["arms"].items()}
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    """The mean, with the lowest and the highest of several seeds."""
    ends = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{ends}"


if __name__ == "__main__":
    main()
