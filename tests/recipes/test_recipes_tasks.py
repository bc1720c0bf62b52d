"""Runs on several tasks: shares of an epoch, accuracy by task, and their place on the page and in the checks."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import interrupt_after, model_folder

from afzal import config, health, recipes, runs
from afzal.errors import AfzalError
from afzal.health.tasks import tasks
from afzal.objectives import Pairs
from afzal.prepare import prepare
from afzal.report.task_section import sections
from afzal.train import task_metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    model_folder(path / "model")
    for name, n in (("large", 24), ("small", 8)):
        rows = [{"prompt": f"{name[0]}{k}", "chosen": f" y{k}", "rejected": f" no{k}"} for k in range(n)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = "sources:\n  - {data: large.jsonl, task: large}\n  - {data: small.jsonl, task: small, share: .5}\n"
    (path / "mix.yaml").write_text(sources)
    return path


def settings(place: Path, out: str, method: str = "dpo", **more: Any) -> config.TrainConfig:
    given = {"model": str(place / "model"), "data": str(place / "mix.yaml"), "out": str(place / out), "max_tokens": 32}
    given |= {"batch_size": 8, "max_steps": 4, "epochs": 4.0, "sample_prompts": 0, "eval_every_steps": 2}
    return config.make(method, **given | {"eval_fraction": 0.25, "lr": 1e-3} | more)


def test_an_epoch_has_the_shares_of_the_mixture(place: Path) -> None:
    prepared = prepare(settings(place, "unused"))
    known = prepared.facts["tasks"]
    assert [e["name"] for e in known] == ["large", "small"]
    total = len(prepared.train)
    assert total == sum(e["items"] for e in known)
    assert Counter(t.task for t in prepared.train) == {k: e["per_epoch"] for k, e in enumerate(known)}
    assert abs(known[1]["per_epoch"] - total / 2) <= 1
    assert known[1]["passes"] == pytest.approx(known[1]["per_epoch"] / known[1]["items"], abs=1e-3)
    assert any("an epoch is large" in note for note in prepared.notes)


def test_accuracy_is_given_by_task(place: Path) -> None:
    whole = recipes.train(settings(place, "whole", "prefer", objective="group_dpo", save_every_steps=2))
    last = [r for r in runs.read_jsonl(whole / "metrics.jsonl") if r.get("kind") == "eval"][-1]
    for k in (0, 1):
        assert last[f"tasks/accuracies/{k}/low"] <= last[f"tasks/accuracies/{k}"] <= last[f"tasks/accuracies/{k}/high"]
    held = runs.read_json(whole / "run.json")["data"]["tasks"]
    both = sum(last[f"tasks/accuracies/{k}"] * e["held_out"] for k, e in enumerate(held))
    assert both / sum(e["held_out"] for e in held) == pytest.approx(last["rewards/accuracies"])
    checks = health.diagnose(list(runs.read_jsonl(whole / "metrics.jsonl")), runs.read_json(whole / "run.json"))
    assert "tasks" in {d.check for d in checks}
    assert ">Tasks<" in (whole / "report.html").read_text()


PAIRS = Pairs(
    yw_idxs=torch.tensor([0, 2]),
    yl_idxs=torch.tensor([1, 3]),
    p=torch.ones(2),
    weight=torch.tensor([1.0, 3.0]),
    margin=torch.zeros(2),
    desirable=torch.full((4,), math.nan),
    group_of=torch.tensor([0, 0, 1, 1]),
    score=torch.zeros(4),
    task_of=torch.tensor([5, 5, 2, 2]),
)


@pytest.mark.parametrize(
    ("unit", "each", "weights", "means"),
    [
        ("pair", [0.5, 2.0], [1.0, 3.0], {5: 0.5, 2: 2.0}),
        ("response", [1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 1.0, 1.0], {5: 1.75, 2: 4.0}),
        ("group", [0.5, 2.0], [1.0, 1.0], {5: 0.5, 2: 2.0}),
        ("token", [1.0, 2.0, 3.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0, 1.0], {5: 2.0, 2: 6.0}),
    ],
)
def test_losses_of_tasks_are_those_of_their_units(
    unit: Any, each: list[float], weights: list[float], means: dict[int, float]
) -> None:
    response_of = torch.tensor([0, 0, 1, 2, 3])
    by_metric = task_metrics.losses(unit, torch.tensor(each), torch.tensor(weights), PAIRS, response_of)
    assert {name: float(s / n) for name, (s, n) in by_metric.items()} == {
        f"tasks/losses/{k}": v for k, v in means.items()
    }


@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_the_held_out_loss_is_given_by_task(place: Path, method: str) -> None:
    path = recipes.train(settings(place, f"{method}-losses", method, max_steps=1))
    first = next(r for r in runs.read_jsonl(path / "metrics.jsonl") if r.get("kind") == "eval" and r["step"] > 0)
    large, small = (first[f"tasks/losses/{k}"] for k in (0, 1))
    assert min(large, small) < first["loss"] < max(large, small)
    if method == "dpo":  # whose pairs have equal weights
        held = [e["held_out"] for e in runs.read_json(path / "run.json")["data"]["tasks"]]
        assert (held[0] * large + held[1] * small) / sum(held) == pytest.approx(first["loss"], abs=1e-6)
    alone = recipes.train(settings(place, f"{method}-alone", method, max_steps=1, data=str(place / "large.jsonl")))
    assert not any(name.startswith("tasks/") for r in runs.read_jsonl(alone / "metrics.jsonl") for name in r)


def test_the_weights_of_groups_survive_a_stop(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"objective": "group_dpo", "save_every_steps": 1, "objective_arg": {"step": 1.0}}
    whole = recipes.train(settings(place, "all", "prefer", **given))
    cut = settings(place, "cut", "prefer", **given)
    interrupt_after(monkeypatch, 2, "grad_norm")
    with pytest.raises(KeyboardInterrupt):
        recipes.train(cut)
    monkeypatch.undo()
    resumed = recipes.train(cut, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_one_task_is_refused_where_groups_are_weighed_and_says_nothing_elsewhere(place: Path) -> None:
    alone = {"data": str(place / "large.jsonl")}
    with pytest.raises(AfzalError, match="weighs tasks or groups, and the rows name fewer than two"):
        prepare(settings(place, "one", "prefer", objective="group_dpo", **alone))
    prepared = prepare(settings(place, "one", **alone))
    assert "tasks" not in prepared.facts
    assert {t.task for t in prepared.train} == {0}


def record(step: int, *bounds: tuple[float, float, float]) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": "eval", "step": step}
    for k, (value, low, high) in enumerate(bounds):
        made |= {f"tasks/accuracies/{k}": value, f"tasks/accuracies/{k}/low": low, f"tasks/accuracies/{k}/high": high}
    return made


FACTS = {"data": {"tasks": [{"name": "a", "items": 9}, {"name": "b", "items": 3}]}}


def test_over_and_under_fitted_tasks_are_named() -> None:
    from afzal.health.curves import Curves

    start = record(0, (0.5, 0.4, 0.6), (0.5, 0.4, 0.6))
    fine = tasks(Curves([], [start, record(9, (0.8, 0.7, 0.9), (0.7, 0.6, 0.8))], FACTS))
    assert fine is not None
    assert fine.severity == "good"
    peak, end = record(5, (0.9, 0.85, 0.95), (0.5, 0.4, 0.6)), record(9, (0.7, 0.6, 0.8), (0.55, 0.45, 0.65))
    finding = tasks(Curves([], [start, peak, end], FACTS))
    assert finding is not None
    assert finding.severity == "watch"
    assert "over-fitted: a (0.900 to 0.700)" in finding.title
    assert "under-fitted: b (0.55" in finding.title
    assert tasks(Curves([], [start, end], {})) is None
    (section,) = sections(FACTS, [start, end])
    assert section.table is not None
    assert [row[0] for row in section.table.rows] == ["a", "b"]
    assert section.table.rows[0][5:] == (None, None, 70.0, "[60.0, 80.0]", 50.0)
    assert sections({}, [end]) == []
    (section,) = sections(FACTS, [{"kind": "eval", "tasks/losses/0": 2.5}, {"kind": "eval", "tasks/losses/0": 1.25}])
    assert section.table is not None
    assert section.table.columns[-2:] == ("loss", "loss at the start")
    assert [row[5:] for row in section.table.rows] == [(1.25, 2.5), (None, None)]
    assert "Intervals" not in section.text
