"""Which branches and pairs of an item a method trains on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from afzal import config
from afzal.prepare.recipe import best_responses, compared, ranked, recipe_of
from afzal.records import Comparison, Item, Preference, Response
from afzal.tokens.tree import Tree, tree

ITEM = Item("x", "Q", tuple(map(Response, ("a", "bb", "ccc"))), votes=(Comparison(0, 1, "first"),))


def three(*pairs: Preference) -> Tree:
    """Three branches of 1, 2 and 3 tokens, identified by their lengths."""
    return tree("x", [7], [[1], [2, 2], [3, 3, 3]], pairs=pairs)


def lengths(trees: list[Tree]) -> list[list[int]]:
    return [[len(b.ids) for b in t.branches] for t in trees]


@pytest.mark.parametrize(("i", "j"), [(2, 1), (1, 2)])
def test_pairs_follow_their_branches_when_others_are_left_out(i: int, j: int):
    (kept,), lost = compared([three(Preference(i, j), Preference(0, 1, weight=0.0))], [ITEM])
    assert lengths([kept]) == [[2, 3]]
    assert [(q.i, q.j) for q in kept.preferences] == [(i - 1, j - 1)]
    assert lost == []
    scored = replace(three(Preference(i, j)), scores=(None, 1.0, 2.0))
    (group,), _ = ranked([scored], [ITEM])
    assert lengths([group]) == [[2, 3]]
    assert [(q.i, q.j) for q in group.preferences] == [(i - 1, j - 1)]
    assert group.scores == (1.0, 2.0)


def test_a_winner_that_is_labelled_bad_is_no_example():
    """The best of three bad answers is a bad answer."""
    won = three(Preference(1, 0))
    assert lengths(best_responses([won], [ITEM])[0]) == [[2]]
    assert lengths(best_responses([replace(won, labels=(None, False, None))], [ITEM])[0]) == []
    assert lengths(best_responses([replace(won, labels=(True, True, None))], [ITEM])[0]) == [[2]]
    assert lengths(best_responses([replace(won, labels=(None, None, True))], [ITEM])[0]) == [[2], [3]]


@pytest.mark.parametrize(("p", "certain"), [(0.2, 0.0), (0.5, 0.5), (0.7, 1.0)])
def test_majority_leaves_a_tie_a_tie(p: float, certain: float):
    made = config.make("prefer", model="M", data="D", objective="rao_kupper", soft_labels="majority")
    (kept,), _ = recipe_of(made).select([three(Preference(0, 1, p))], [ITEM])
    assert [q.p for q in kept.preferences] == [certain]
