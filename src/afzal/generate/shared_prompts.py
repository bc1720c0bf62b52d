"""The fast decoder: a prompt is read once for all its samples, and waiting rows take the place of finished ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.generate.rows import Row, Sample, TokenBuffer, TokenCallback
from afzal.generate.token_sampling import Sampling
from afzal.model.decode_cache import DecodeCache, merged
from afzal.model.decoding import next_logits, read_prompts

_LEAVE_AT = 1 / 8  # finished rows stay until they are this share of all, since removing them copies the others' cache
_JOIN_AT = 1 / 2  # waiting rows join once this share of the places is free: many small cohorts are slower
_COHORTS = 4  # rows that joined at different steps need attention of their own, about a dozen small operations a layer


def decode_shared(
    model: Any,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    *,
    places: int,
    eos: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: TokenCallback | None = None,
) -> list[Sample]:
    """Samples for ``rows``, in the same order; must run inside :func:`afzal.model.decoding.shared_decoding`.

    Args:
        rows: a prompt's rows stand together, prompts of similar length too.
        places: rows decoded at a time; the others wait.
    """
    buffer = TokenBuffer(rows, eos, sampling, seed, next(model.parameters()).device, on_token)
    started, cohorts = 0, []
    while True:
        cohorts = [c for c in cohorts if c.drop_finished()]
        joining = _number_joining(rows, started, free=places - sum(map(len, cohorts)), places=places)
        if joining:
            cohorts = _with_space(cohorts)
            cohorts.append(_Cohort.start(model, np.arange(started, started + joining), buffer, prompts))
            started += joining
        elif cohorts:
            logits = next_logits(model, torch.cat([c.tokens for c in cohorts]), *(c.cache for c in cohorts))
            _draw(cohorts, logits, buffer)
        else:
            return buffer.samples()


def _number_joining(rows: Sequence[Row], started: int, *, free: int, places: int) -> int:
    """How many of the rows from ``started`` join now: whole prompts, as many as fit; 0 if too few to be worth a pass.

    A prompt with more rows than half of the places may be split, and is read once for each part.
    """
    half = max(1, int(_JOIN_AT * places))
    least = min(half, len(rows) - started)
    if free < least:
        return 0
    count = 0
    for _, same_prompt in groupby(rows[started : started + free + 1], key=lambda row: row.prompt):
        size = len(list(same_prompt))
        if count + size > free:
            return free if size > half else count if count >= least else 0
        count += size
    return count


class _Cohort:
    """Rows that joined together, or were merged since.

    Attributes:
        rows: ``[R]`` their numbers in the buffer.
        steps: ``[R]`` tokens that each has.
        tokens: ``[R]`` the last token of each.
        unfinished: ``[R]`` bool: whether a row needs another token.
    """

    def __init__(self, cache: DecodeCache, rows: np.ndarray) -> None:
        self.cache, self.rows = cache, rows
        self.steps = np.zeros(len(rows), dtype=np.int64)
        self.tokens = cache.group
        self.unfinished = np.ones(len(rows), dtype=bool)

    @classmethod
    def start(cls, model: Any, rows: np.ndarray, buffer: TokenBuffer, prompts: Sequence[Sequence[int]]) -> _Cohort:
        """Read the prompts of the rows, and draw their first tokens."""
        of_rows = [buffer.rows[i].prompt for i in rows]
        place = {p: k for k, p in enumerate(dict.fromkeys(of_rows))}
        logits, cache = read_prompts(model, [prompts[p] for p in place], [place[p] for p in of_rows])
        cohort = cls(cache, rows)
        _draw([cohort], logits, buffer)
        return cohort

    def __len__(self) -> int:
        return len(self.rows)

    def drop_finished(self) -> bool:
        """Let finished rows leave if they are many enough; False if all are finished."""
        finished = int((~self.unfinished).sum())
        if finished == len(self):
            return False
        if finished >= max(1, _LEAVE_AT * len(self)):
            remaining = torch.from_numpy(np.flatnonzero(self.unfinished)).to(self.tokens.device)
            self.cache.keep(remaining)
            self.tokens, self.rows, self.steps = (
                self.tokens[remaining],
                self.rows[self.unfinished],
                self.steps[self.unfinished],
            )
            self.unfinished = np.ones(len(self), dtype=bool)
        return True

    def merge(self, younger: _Cohort) -> None:
        """Take the rows of the other into this one."""
        self.cache = merged(self.cache, younger.cache)
        self.tokens = torch.cat([self.tokens, younger.tokens])
        self.rows, self.steps, self.unfinished = (
            np.concatenate(pair)
            for pair in (
                (self.rows, younger.rows),
                (self.steps, younger.steps),
                (self.unfinished, younger.unfinished),
            )
        )


def _with_space(cohorts: list[_Cohort]) -> list[_Cohort]:
    """The cohorts, oldest first, after merging two if one more would be too many: those that gain the fewest slots."""
    cohorts = sorted(cohorts, key=lambda c: -c.cache.written)
    if len(cohorts) < _COHORTS:
        return cohorts
    gained = [len(b) * (a.cache.written - b.cache.written) for a, b in pairwise(cohorts)]
    chosen = int(np.argmin(gained))
    cohorts[chosen].merge(cohorts.pop(chosen + 1))
    return cohorts


def _draw(cohorts: Sequence[_Cohort], logits: Tensor, buffer: TokenBuffer) -> None:
    """Draw the next token of every row, and note which rows are finished."""
    rows, steps = (np.concatenate(parts) for parts in zip(*((c.rows, c.steps) for c in cohorts), strict=True))
    tokens = buffer.draw(logits, steps, torch.from_numpy(rows).to(logits.device), rows)
    more = steps + 1 < buffer.sampling.max_new_tokens
    if len(buffer.eos):
        more &= ~torch.isin(tokens, buffer.eos).cpu().numpy()
    edges = np.cumsum([len(c) for c in cohorts])[:-1].tolist()
    parts = zip(cohorts, tokens.tensor_split(edges), np.split(more, edges), strict=True)
    for cohort, own_tokens, own_more in parts:
        cohort.steps = cohort.steps + 1
        cohort.tokens = own_tokens
        cohort.unfinished = cohort.unfinished & own_more
