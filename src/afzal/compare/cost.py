"""The cost of a comparison's policies: seconds, tokens trained on, and tokens generated for training."""

from __future__ import annotations

import json
from pathlib import Path

from afzal import runs
from afzal.compare.summary import Cost
from afzal.compare.trainings import folder_of, ledger_of
from afzal.config import CompareConfig, Entry, entries


def required_cost(config: CompareConfig, entry: Entry, seed: int) -> Cost:
    """The total cost of the runs that an entry is built on, each counted once."""
    known = {e.name: e for e in entries(config)}
    names, queue = [], list(entry.needs)
    while queue:
        name = queue.pop()
        if name not in names:
            names.append(name)
            queue += known[name].needs
    return sum((cost_at(config, known[name], seed, None) for name in names), Cost())


def cost_at(config: CompareConfig, entry: Entry, seed: int, step: int | None) -> Cost:
    """The cost of a run up to a step or round (or its end), without the runs it is built on.

    A training's seconds come from its log and include evaluations. A run of rounds logs no seconds, so its total time
    here is spread evenly over its rounds.
    """
    run = folder_of(config, entry.name, seed)
    if not (run / "run.json").exists():
        return Cost()
    if (run / "rounds.json").exists():
        return _rounds_cost(run, ledger_of(config, entry.name, seed), step)
    records = [r for r in runs.open_run(run).metrics("train") if step is None or r["step"] <= step]
    last = records[-1] if records else {}
    return Cost(float(last.get("seconds", 0.0)), int(last.get("tokens", 0)), _rollout_tokens(run, step))


def _rollout_tokens(run: Path, step: int | None) -> int:
    """Answer tokens of all rollouts before a step; 0 for methods without rollouts."""
    run_folder = runs.open_run(run)
    settings = run_folder.facts().get("config", {})
    answers = settings.get("batch_size", 0) * settings.get("n", 0)
    rollouts = [r for r in run_folder.metrics("rollout") if step is None or r["step"] < step]
    return round(sum(r["rollout/length"] * answers for r in rollouts))


def _rounds_cost(run: Path, ledger: Path, last: int | None) -> Cost:
    trained_rounds = [r["number"] for r in runs.read_json(run / "rounds.json")["rounds"] if r["steps"]]
    cost = Cost()
    for k in (k for k in trained_rounds if last is None or k <= last):
        folder = run / "rounds" / f"{k:03d}"
        logged = runs.open_run(folder / "run").metrics("train")
        lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
        sampled_tokens = sum(json.loads(line)["tokens"] for line in lines)
        cost += Cost(0.0, int(logged[-1]["tokens"]) if logged else 0, sampled_tokens)
    seconds = float(runs.read_json(ledger).get("seconds", 0.0)) if ledger.exists() else 0.0
    share = 1.0 if last is None or not trained_rounds else sum(k <= last for k in trained_rounds) / len(trained_rounds)
    return cost + Cost(seconds=seconds * share)
