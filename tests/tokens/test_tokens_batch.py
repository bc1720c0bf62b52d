"""The pairs of a batch over all trees: preferred response, probability, weight and margin."""

from dataclasses import replace

import pytest

from afzal.records import Preference
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree


def test_opinions_keep_their_order_their_numbers_and_their_weights():
    first = tree("a", [1], [[2], [3], [4]])
    second = replace(
        tree("b", [1], [[5], [6]]), preferences=(Preference(1, 0, p=0.75, weight=0.25, margin=-2.0), Preference(0, 1))
    )
    rows = collate([first, second], "shared").preferences.tolist()
    assert rows == [[4.0, 3.0, 0.75, 0.25, -2.0], [3.0, 4.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("sharing", ["shared", "unshared"])
def test_labels_and_groups_follow_the_responses(sharing):
    labelled = replace(tree("a", [1], [[2], [3]]), labels=(True, None))
    batch = collate([labelled, tree("b", [1], [[4]])], sharing)
    assert batch.group_of.tolist() == [0, 0, 1]
    assert [None if x != x else x for x in batch.desirable.tolist()] == [1.0, None, None]
