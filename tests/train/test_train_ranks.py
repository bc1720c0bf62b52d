"""Division of an update: every tree on one rank, equally many passes per rank, nearly equal work."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers_models import random_trees
from helpers_ranks import start_group
from helpers_runs import finished

from afzal.errors import AfzalError
from afzal.recipes.parallel import is_restart
from afzal.tokens.tree import tree
from afzal.train import ranks
from afzal.train.feed import Feed, Layout, cost_of_tree


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
def test_every_cost_has_one_share(world):
    costs = np.random.default_rng(0).lognormal(0, 1, 60).tolist()
    shares = ranks.divide(costs, world)
    assert sorted(i for share in shares for i in share) == list(range(60))
    sums = [sum(costs[i] for i in share) for share in shares]
    best = max(sum(costs) / world, max(costs))
    assert max(sums) <= (4 / 3 - 1 / (3 * world)) * best + 1e-9  # Graham's bound


def test_more_shares_than_costs():
    assert ranks.divide([3.0, 1.0], 4) == [[0], [1], [], []]
    assert ranks.divide([], 2) == [[], []]


def test_equal_costs_are_dealt_out_evenly():
    assert [len(share) for share in ranks.divide([1.0] * 10, 4)] == [3, 3, 2, 2]
    assert [len(share) for share in ranks.divide([0.0] * 10, 4)] == [3, 3, 2, 2]


def test_the_cost_of_a_tree_by_hand():
    """4 + 2 + 3 tokens; the prompt sees 10 pairs, the branches 2 * 4 + 3 and 3 * 4 + 6."""
    assert cost_of_tree(tree("x", [0] * 4, [[0] * 2, [0] * 3]), 10) == pytest.approx(9 + (10 + 11 + 18) / 60)


@pytest.mark.parametrize("sharing", ["shared", "unshared"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_ranks_of_an_update_together_are_the_update(sharing, world):
    trees = random_trees(23)
    alone = Feed(trees, trees, 5, 0, Layout(sharing, 60))
    for step in range(alone.updates_per_epoch + 1):
        whole = alone.update(step)
        parts = [Feed(trees, trees, 5, 0, Layout(sharing, 60, rank=r, world=world)).update(step) for r in range(world)]
        for name in ("batches", "mismatched"):
            passes = [getattr(part, name) for part in parts]
            assert len({len(batches) for batches in passes}) == 1
            counted = [i for batches in passes for b in batches if not b.idle for i in b.item_ids]
            assert sorted(counted) == sorted(i for b in getattr(whole, name) for i in b.item_ids)
        for part in parts:
            assert sorted(part.item_ids) == sorted(whole.item_ids)
            assert (part.n_trees, part.n_tokens) == (whole.n_trees, whole.n_tokens)


def test_in_one_process_nothing_is_exchanged():
    assert (ranks.world(), ranks.rank(), ranks.leads()) == (1, 0, True)
    assert ranks.gather("x") == ["x"]
    assert ranks.total([0.1, 2.0]) == [0.1, 2.0]
    ranks.same("thing", object())
    with pytest.raises(AfzalError, match="no"):
        ranks.led(lambda: (_ for _ in ()).throw(AfzalError("no")))


@pytest.mark.parametrize(
    ("began", "now", "restarts", "resumes"),
    [
        ("job-7", "job-7", "0", True),
        ("job-7", "job-8", "0", False),
        ("job-7", "none", "0", False),
        (None, "none", "0", False),
        (None, "none", "1", True),
    ],
)
def test_a_start_of_the_launch_that_began_a_run_resumes_it(tmp_path, monkeypatch, began, now, restarts, resumes):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", now)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    assert not is_restart(str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({} if began is None else {"launch": began}))
    assert is_restart(str(tmp_path)) is resumes


def _twice(left_over: bool, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    kept: list[Any] = []
    for number in range(2):
        if number and environment["RANK"] == "1":
            time.sleep(0.5)  # the other rank first sees the leftovers of the previous training
        with ranks.joined(torch.device("cpu")):
            kept += [dist.distributed_c10d._get_default_store()] if left_over else []
            assert ranks.gather([number, ranks.rank()]) == [[number, 0], [number, 1]]


@pytest.mark.parametrize("left_over", [True, False])
def test_one_process_joins_others_for_one_training_after_another(left_over):
    """The first training leaves a store with the ranks' addresses; it misleads no rank in the second."""
    started = start_group(_twice, 2, left_over)
    assert [finished(process, 60) for process in started] == [0, 0]
