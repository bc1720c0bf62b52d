"""The positions that each row position may see, as two runs: one in its prompt, one in its own segment.

A query of a branch sees its prompt and its branch up to itself; a query of a prompt sees the prompt up to itself, and
its first run is empty. A sliding window counts logical positions and cuts both runs on the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afzal.tokens.attention_blocks import TreeLayout


@dataclass(frozen=True, slots=True)
class Spans:
    """Row positions ``[N]`` int64: query i sees ``prompt_from[i] .. prompt_to[i] - 1`` and ``own_from[i] .. i``."""

    prompt_from: np.ndarray
    prompt_to: np.ndarray
    own_from: np.ndarray


def spans(layout: TreeLayout, window: int | None = None) -> Spans:
    """The two runs of every position of a row."""
    prompt_from, prompt_to, own_from = np.zeros((3, layout.n_tokens), dtype=np.int64)
    for s in layout.segments:
        rows = slice(s.start, s.start + s.length)
        prompt_from[rows], prompt_to[rows] = s.prompt_start, s.prompt_start + s.prompt_length
        own_from[rows] = s.start
        if window is not None:
            logical = s.prompt_length + np.arange(s.length)
            first = logical - window + 1  # the first logical position in sight
            prompt_from[rows] = np.clip(s.prompt_start + first, prompt_from[rows], prompt_to[rows])
            own_from[rows] = np.maximum(s.start, s.start + first - s.prompt_length)
    return Spans(prompt_from, prompt_to, own_from)


def visible(layout: TreeLayout, window: int | None = None) -> np.ndarray:
    """bool ``[N, N]``: whether a query may see a key. For small layouts; kernels are compared with it."""
    runs, key = spans(layout, window), np.arange(layout.n_tokens)[None, :]
    in_prompt = (key >= runs.prompt_from[:, None]) & (key < runs.prompt_to[:, None])
    return in_prompt | ((key >= runs.own_from[:, None]) & (key <= key.T))
