"""The few-shot comparison: its page follows from the figures; labels and examples are correct."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afzal.lab import exact, language, tasks
from benchmarks.few_shot import learners, page, seeds
from benchmarks.few_shot import world as w

LABELS = (4, 16, 64)


def results(**curves: list[float]) -> list[dict[str, Any]]:
    """Three seeds whose regrets lie around these curves; the reference's is 2."""
    flat = {name: [1.0] * 4 for name in seeds.METHODS} | curves
    return [
        {"seed": k, "start": 2.0, "processor_seconds": {"adapting": 1.0}}
        | {"regret": {n: [2 * v + 0.01 * (k - 1) * (1 + i) for v in flat[n]] for i, n in enumerate(flat)}}
        for k in range(3)
    ]


def test_findings_name_expected_results():
    made = results(
        scratch=[1.0, 1.0, 0.8, 0.3],
        annealed=[0.6, 0.5, 0.4, 0.25],
        fixed=[0.6, 0.5, 0.45, 0.45],
        meta=[0.6, 0.3, 0.2, 0.2],
    )
    said = " ".join(page.findings(page.figures(made, LABELS), 3))
    assert "transfer, annealed prior at 4, 16 of 4, 16 (as expected)" in said
    assert "fixed prior is ahead of scratch at 4, 16 labels; scratch has caught up at 64." in said
    assert "worse than scratch at 64 labels" in said
    assert "against the fixed one at 64 labels" in said or "against the fixed one at 16, 64 labels" in said


def test_findings_name_unexpected_results():
    made = results(scratch=[1.0, 0.5, 0.4, 0.3], annealed=[0.6, 0.6, 0.6, 0.6], fixed=[0.6, 0.2, 0.2, 0.2])
    said = " ".join(page.findings(page.figures(made, LABELS), 3))
    assert "annealed prior at none of 4, 16 (NOT at every number of labels)" in said
    assert "Negative transfer was not seen" in said
    assert "Annealing the prior raises the regret against the fixed one at 4, 16, 64 labels" in said


def test_the_page_has_the_figures_and_the_doublings(tmp_path: Path):
    made = page.write(tmp_path, {"alike": results(), "apart": results()}, LABELS, "words about the machine")
    text = made.read_text("utf-8")
    assert "words about the machine" in text
    assert all(f">{k}</text>" in text for k in (0, *LABELS))
    kept = json.loads((tmp_path / "few-shot.json").read_text("utf-8"))
    assert kept["apart"]["share_of_start_regret"]["scratch"][0]["value"] == pytest.approx(1.0)
    assert (tmp_path / "few-shot-apart.svg").read_text("utf-8").startswith("<svg")


@pytest.mark.parametrize("family", w.FAMILIES.values(), ids=list(w.FAMILIES))
def test_labels_are_votes_of_the_task(family: w.Family):
    world = w.World(family, Path(), np.log(language.sft_policy(w.HELD_OUT)), language.sft_policy(w.TRAIN))
    task = w.drawn_tasks(1, 0, family)[0]
    assert task.weights[tasks.FEATURES.index("parity")] == 0
    trees = w.draw(task, world, 300, 0)
    rewards = tasks.reward(task, w.TRAIN)
    place = {tuple(w.prompt_ids(x)): x for x in range(len(w.TRAIN))}
    index = {tuple(w.response_ids(y)): y for y in range(len(language.RESPONSES))}
    gaps = []
    for t in trees:
        (pair,) = t.preferences
        better, worse = (index[tuple(t.branches[k].ids.tolist())] for k in (pair.i, pair.j))
        x = place[tuple(t.prompt.tolist())]
        gaps.append(rewards[x, better] - rewards[x, worse])
    assert np.mean(gaps) > 0.5 * family.scale
    sure = np.mean(1 / (1 + np.exp(-np.abs(gaps))))
    assert np.mean(np.asarray(gaps) > 0) == pytest.approx(sure, abs=0.06)  # 300 votes, ties counted as losses
    best = exact.optimum(world.log_ref, tasks.reward(task, w.HELD_OUT), family.beta)
    assert w.regret_of(best, task, world) == pytest.approx(0, abs=1e-9)
    assert w.start_regret(task, world) > 0.1


def test_examples_come_before_the_prompt_preferred_first():
    family = w.FAMILIES["alike"]
    world = w.World(family, Path(), np.zeros(0), language.sft_policy(w.TRAIN))
    first, second = w.draw(w.drawn_tasks(1, 0, family)[0], world, 2, 1)
    told = learners.with_examples(second, [first])
    (pair,) = first.preferences
    better, worse = (first.branches[k].ids.tolist() for k in (pair.i, pair.j))
    ids = told.prompt.tolist()
    assert ids[: 4 + len(better)] == [*first.prompt.tolist(), *better]
    assert ids[-4:] == second.prompt.tolist()
    assert ids.count(language.EOS) == 2
    assert len(ids) == 8 + len(better) + len(worse) + sum(part[-1] != language.EOS for part in (better, worse))
    assert told.branches is second.branches
