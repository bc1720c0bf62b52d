"""Bins, shuffled updates and mismatched partners."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.errors import AfzalError
from afzal.tokens import mismatched, pack, tree, update_order


def _first_fit(lengths: list[int], budget: int) -> list[list[int]]:
    """First-fit decreasing as the textbook has it, in quadratic time."""
    bins: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for b in bins:
            if lengths[i] + sum(lengths[j] for j in b) <= budget:
                b.append(i)
                break
        else:
            bins.append([i])
    return bins


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 50))
def test_pack_is_first_fit_decreasing(lengths: list[int], budget: int) -> None:
    bins = pack(lengths, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert sum(lengths[i] for i in b) <= budget or len(b) == 1
    assert bins == _first_fit(lengths, budget) or max(lengths) > budget
    assert bins == pack(lengths, budget)


def test_oversize_items_stand_alone() -> None:
    assert pack([0, 5, 12, 3, 0], 8) == [[2], [1, 3, 0, 4]]
    assert pack([], 8) == []
    with pytest.raises(ValueError, match="budget"):
        pack([1], 0)


def test_waste_is_small_on_realistic_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 0.8, 5000).astype(int), 8, 2048).tolist()
    for budget in (4096, 8192):
        bins = pack(lengths, budget)
        assert 1 - sum(lengths) / (len(bins) * budget) < 0.01


def test_update_order_is_a_fixed_function() -> None:
    assert update_order(7, 3, epoch=0, seed=1) == update_order(7, 3, epoch=0, seed=1)
    assert update_order(7, 3, epoch=0, seed=1) == [[1, 0, 3], [5, 6, 4], [2]]
    assert update_order(0, 3, epoch=0, seed=1) == []
    with pytest.raises(ValueError, match="batch_size"):
        update_order(3, 0, epoch=0, seed=1)


def test_update_order_ignores_every_global_generator() -> None:
    import torch

    first = update_order(50, 8, epoch=2, seed=3)
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    assert update_order(50, 8, epoch=2, seed=3) == first


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 9), st.integers(-(2**40), 2**70))
def test_updates_hold_every_index_once(n: int, size: int, epoch: int, seed: int) -> None:
    updates = update_order(n, size, epoch=epoch, seed=seed)
    assert sorted(i for u in updates for i in u) == list(range(n))
    assert all(len(u) == size for u in updates[:-1])
    flat = [i for u in updates for i in u]
    assert flat == [i for u in update_order(n, 1, epoch=epoch, seed=seed) for i in u]


def test_epochs_and_seeds_shuffle_differently_and_evenly() -> None:
    orders = {tuple(update_order(20, 20, epoch=e, seed=s)[0]) for e in range(10) for s in range(10)}
    assert len(orders) == 100
    first = np.array([update_order(8, 8, epoch=e, seed=0)[0] for e in range(4000)])
    counts = np.array([[np.sum(first[:, place] == i) for i in range(8)] for place in range(8)])
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)  # 64 cells, expected 500 each


@pytest.mark.parametrize("n", range(2, 34))
def test_every_prompt_meets_a_foreign_response_once(n: int) -> None:
    rng = random.Random(n)
    for prompts in (n, max(2, n // 2), 2 if n % 2 == 0 else n):
        owners = [i % prompts for i in range(n)]
        rng.shuffle(owners)
        trees = [tree(str(i), [1, p], [[100 + i, 2]]) for i, p in enumerate(owners)]
        made = mismatched(trees, seed=n)
        donors = [int(t.branches[0].ids[0]) - 100 for t in made]
        assert [t.item_id for t in made] == [t.item_id for t in trees]
        assert [t.prompt.tolist() for t in made] == [t.prompt.tolist() for t in trees]
        assert all(owners[d] != owners[i] for i, d in enumerate(donors))
        if 2 * max(map(owners.count, owners)) <= n:
            assert sorted(donors) == list(range(n)), "each response once"
        assert [t.branches[0].ids.tolist() for t in mismatched(trees, seed=n)] == [
            t.branches[0].ids.tolist() for t in made
        ]


def test_one_prompt_with_most_of_the_trees_still_meets_foreign_responses() -> None:
    owners = [0] * 9 + [1, 2]
    trees = [tree(str(i), [p], [[100 + i]]) for i, p in enumerate(owners)]
    donors = [int(t.branches[0].ids[0]) - 100 for t in mismatched(trees, seed=0)]
    assert all(owners[d] != owners[i] for i, d in enumerate(donors))
    assert sorted(donors[:9]) == [9] * 4 + [10] * 5 or sorted(donors[:9]) == [9] * 5 + [10] * 4


def test_partners_depend_on_the_seed() -> None:
    trees = [tree(str(i), [i], [[100 + i]]) for i in range(12)]
    seen = {tuple(int(t.branches[0].ids[0]) for t in mismatched(trees, seed=s)) for s in range(5)}
    assert len(seen) == 5


def test_foreign_responses_are_cut_to_fit() -> None:
    trees = [tree("a", range(6), [[100, 101, 102, 103]]), tree("b", [9], [[200, 201]])]
    short = mismatched(trees, seed=0, max_tokens=7)
    assert [t.branches[0].ids.tolist() for t in short] == [[200], [100, 101, 102, 103]]
    assert [len(t.branches[0].scored) for t in short] == [1, 4]


def test_no_foreign_response_is_refused() -> None:
    with pytest.raises(AfzalError, match="two different prompts"):
        mismatched([tree("a", [1], [[2]])], seed=0)
    with pytest.raises(AfzalError, match="this one has 1"):
        mismatched([tree(str(i), [1], [[i]]) for i in range(5)], seed=0)
    with pytest.raises(ValueError, match="one branch"):
        mismatched([tree("a", [1], [[2], [3]])], seed=0)
