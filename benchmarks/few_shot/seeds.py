"""One seed of the comparison: its source tasks, its target task, and the regret of every learner."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afzal.lab import tasks
from afzal.runs import atomic_write
from afzal.tokens.tree import Tree
from benchmarks.few_shot import learners as ln
from benchmarks.few_shot import world as w

METHODS = {
    "scratch": "LoRA from scratch",
    "fixed": "transfer, fixed prior",
    "annealed": "transfer, annealed prior",
    "meta": "meta-learned",
    "prompt": "prompt tuning",
    "context": "in context",
}


def run(world: w.World, sizes: ln.Sizes, seed: int, only: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Figures of one seed: exact regrets by learner and number of labels, and processor seconds by stage."""
    w.one_thread()
    clock, spent = time.process_time(), {}

    def stage(name: str) -> None:
        nonlocal clock
        spent[name] = round(spent.get(name, 0.0) + time.process_time() - clock, 2)
        clock = time.process_time()

    every = w.drawn_tasks(sizes.sources + 1, w.seeded(seed, 1), world.family)
    sources = {t.name: w.draw(t, world, sizes.source_pairs, w.seeded(seed, 2, k)) for k, t in enumerate(every[1:])}
    target = every[0]
    labelled = w.draw(target, world, max(sizes.labels), w.seeded(seed, 3))
    general: Any = None
    policy, prompted = ln.Policy(world, ln.LORA, seed), ln.Policy(world, ln.PROMPT, seed)
    meta = reader = None
    if {"fixed", "annealed", "meta"} & set(only):
        general = ln.transferred(policy, sources, sizes.transfer_steps, seed)
        stage("source adapter")
    if "meta" in only:
        meta = ln.meta_learned(policy, sources, general, sizes.meta_steps, seed)
        stage("meta-learning")
    if "context" in only:
        reader = ln.in_context(world, sources, sizes.context_steps, seed)
        stage("in-context training")
    regrets: dict[str, list[float]] = {name: [] for name in only}
    for k in (0, *sizes.labels):
        for name in only:
            if name == "context" and k > ln.MOST_IN_CONTEXT:
                regrets[name].append(regrets[name][-1])  # no room for further labels
            elif name == "context":
                regrets[name].append(ln.regret_in_context(reader, labelled[:k], target, world))
            else:
                chosen = prompted if name == "prompt" else policy
                start = {"fixed": general, "annealed": general, "meta": meta}.get(name) or chosen.fresh
                regrets[name].append(_adapted(chosen, name, start, labelled[:k], target, world, seed))
            stage(f"adapting: {name}")
    return {"seed": seed, "regret": regrets, "start": w.start_regret(target, world), "processor_seconds": spent}


def _adapted(
    policy: ln.Policy,
    name: str,
    start: ln.Weights,
    trees: Sequence[Tree],
    target: tasks.Task,
    world: w.World,
    seed: int,
) -> float:
    policy.become(start)
    if trees:
        how = ln.PROMPT_ADAPT if name == "prompt" else ln.ADAPT
        strength = ln.PROMPT_PRIOR if name == "prompt" else ln.PRIOR
        strength *= 1.0 if name == "fixed" else ln.PRIOR_LABELS / len(trees)
        policy.learn(trees, how, seed, policy.near(start, strength))
    return w.regret(policy.model, target, world)


def cached(out: Path, sizes: ln.Sizes, one: tuple[str, int]) -> dict[str, Any]:
    """The figures of one family and seed: computed, or read from their file if it has the same sizes."""
    family, seed = one
    path = out / "seeds" / f"{family}-{seed}.json"
    if path.exists() and (saved := json.loads(path.read_text("utf-8")))["sizes"] == json.loads(
        json.dumps(asdict(sizes))
    ):
        return saved
    made = run(w.make(out, sizes.sft_steps, w.FAMILIES[family]), sizes, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({**made, "sizes": asdict(sizes)}, indent=1) + "\n")
    return json.loads(path.read_text("utf-8"))
