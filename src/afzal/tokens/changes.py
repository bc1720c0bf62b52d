"""Mark the tokens in which the two responses of a pair differ."""

from __future__ import annotations

from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np

from afzal.tokens.tree import Tree


def with_changes(t: Tree) -> Tree:
    """Add the number ``changed`` to the scored tokens of a pair: 0 for tokens that both responses share in order, else
    1.

    Args:
        t: a tree with two branches.
    """
    first, second = (b.ids[b.scored].tolist() for b in t.branches)
    changed = [np.ones(len(ids), dtype=np.float32) for ids in (first, second)]
    for i, j, n in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        changed[0][i : i + n] = 0
        changed[1][j : j + n] = 0
    marked = (replace(b, numbers={**b.numbers, "changed": c}) for b, c in zip(t.branches, changed, strict=True))
    return replace(t, branches=tuple(marked))
