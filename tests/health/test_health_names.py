"""No health rule reads a name that nothing writes: every name that the checks read is in some real run's records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers_report as rr
import pytest
from helpers_runs import settings

from afzal import config, recipes, runs
from afzal.health import CHECKS, diagnose
from afzal.health.curves import Curves
from afzal.report.run_files import enriched_facts, load

ENDS = ("_low", "_high", "_se")


class Asked(dict[str, Any]):
    """A record that remembers which of its keys were asked for."""

    def __init__(self, values: dict[str, Any], kind: str, into: set[tuple[str, str]]) -> None:
        super().__init__(values)
        self.kind, self.into = kind, into

    def get(self, key: str, default: Any = None) -> Any:
        self.into.add((self.kind, key))
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.into.add((self.kind, key))
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.into.add((self.kind, str(key)))
        return super().__contains__(key)


def rollouts(n: int = 12) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(n):
        rollout = {
            "rollout/length": 40.0,
            "rollout/eos_rate": 1.0,
            "objective/kl_exact": 1.0,
            "objective/entropy": 40.0,
        }
        rollout |= {"objective/scores": step / n, "rollout/same_reward": 0.1}
        updated = {"loss": 0.1, "grad_norm": 1.0, "policy/clipfrac": 0.1, "policy/approxkl": 0.01}
        lines += [{"kind": "rollout", "step": step, **rollout}, {"kind": "train", "step": step + 1, **updated}]
        lines.append({"kind": "eval", "step": step, "n": 64.0, "reward": step / n, "reward_se": 0.01, "kl": 0.1})
    return lines


def asked_for() -> set[tuple[str, str]]:
    """Every (kind of record, name) that any check reads, from complete curves and from sparse ones."""
    into: set[tuple[str, str]] = set()
    quiet = [{k: v for k, v in m.items() if not k.startswith("samples")} for m in rr.dpo_metrics()]
    bare = [{k: m[k] for k in ("kind", "step", "loss") if k in m} for m in rr.dpo_metrics()]
    spiked = rr.dpo_metrics(grad=lambda t: 60.0 if abs(t - 0.5) < 0.001 else 3.0)
    for method, lines in (
        ("dpo", rr.dpo_metrics()),
        ("dpo", quiet),
        ("dpo", bare),
        ("dpo", spiked),
        ("kto", rr.kto_metrics()),
        ("sft", rr.sft_metrics()),
        ("ppo", rollouts()),
    ):
        told = rr.facts("dpo" if method == "ppo" else method) | {"config": rr.config("dpo"), "method": method}
        told.pop("samples", None)
        recorded = [Asked(m, m["kind"], into) for m in lines]
        by_kind = [[m for m in recorded if m.kind == kind] for kind in ("train", "eval", "rollout")]
        curves = Curves(by_kind[0], by_kind[1], told, by_kind[2])
        for check in CHECKS.values():
            check(curves)
    return {(kind, name) for kind, name in into if name not in ("kind", "step")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Every (kind of record, name) that small real runs write: one run per kind of method."""
    folder = tmp_path_factory.mktemp("names")
    base = {"max_steps": 2, "eval_every_steps": 1, "batch_size": 8}
    online = {"reward": "helpers_length:length", "iterations": 2, "sample_tokens": 4}
    names: set[tuple[str, str]] = set()
    for method in ("sft", "dpo", "kto", "reward", "ppo", "rloo"):
        given = settings(folder, folder / method, **base)
        if method == "reward":
            given = {k: v for k, v in given.items() if not k.startswith("sample_")}
        if method in ("ppo", "rloo"):
            given = (
                {k: v for k, v in given.items() if k not in ("max_steps", "epochs")}
                | online
                | ({"n": 2} if method == "rloo" else {})
            )
        run = runs.open_run(recipes.train(config.make(method, **given)))
        names |= set(_names(run))
    tasked = folder / "tasked.jsonl"
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    tasked.write_text("".join(json.dumps(row | {"task": "ab"[k % 2]}) + "\n" for k, row in enumerate(rows)))
    given = settings(folder, folder / "tasks", **base) | {"data": str(tasked)}
    return names | set(_names(runs.open_run(recipes.train(config.make("dpo", **given)))))


def _names(run: runs.Run) -> Iterator[tuple[str, str]]:
    for kind in ("train", "eval", "rollout"):
        for record in run.metrics(kind):
            yield from ((kind, name) for name in record)


def test_every_name_that_a_check_reads_is_written_by_some_run(written: set[tuple[str, str]]):
    plain = {(kind, _stem(name)) for kind, name in asked_for()}
    assert ("eval", "rewards/length_correlation") in plain
    assert ("train", "policy/clipfrac") in plain
    # the check for finite numbers also asks evaluations for a norm that only updates have
    assert plain - written == {("eval", "grad_norm")}


def _stem(name: str) -> str:
    """The figure that a bound or a standard error belongs to; other names stay as they are."""
    return next((name.removesuffix(end) for end in ENDS if name.endswith(end)), name)


def test_every_fact_that_decides_a_rule_is_written(tmp_path: Path):
    run = recipes.train(config.make("dpo", **settings(tmp_path, tmp_path / "run", max_steps=1)))
    facts = enriched_facts(load(run))
    for name in (
        "starts_at_reference",
        "reference_is_start",
        "reference_moves",
        "status",
        "step",
        "steps",
        "objective",
    ):
        assert name in facts, name
    assert {"length", "length_se", "eos_rate", "eos_rate_se"} <= set(facts["samples"]["after"])
    assert diagnose(runs.open_run(run).metrics("eval"), facts)
