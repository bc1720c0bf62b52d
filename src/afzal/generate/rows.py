"""Shared by all decoders: rows to decode, buffers for their tokens, and the resulting samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.generate.token_sampling import Sampling, draw_tokens, row_keys, uniforms

Stop = Literal["eos", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One continuation: ``ids`` int32 ``[C]`` including a final EOS, if there is one, and the tokens' log-probs.

    ``logps`` float32 ``[C]``: log-prob of each token in nats under the model itself, at temperature 1 without top-p and
    top-k, regardless of the sampling: the values that scoring the text gives.
    """

    prompt_index: int
    ids: np.ndarray
    stop: Stop
    logps: np.ndarray

    @property
    def answer(self) -> np.ndarray:
        """The ids without a final EOS."""
        return self.ids[:-1] if self.stop == "eos" else self.ids


@dataclass(frozen=True, slots=True)
class Row:
    """Sample number ``sample`` (from 0) of prompt number ``prompt``, whose draws depend on ``number``."""

    prompt: int
    sample: int
    number: int


TokenCallback = Callable[[Row, int], None]
"""Called with each token of each row as soon as it is drawn, including EOS; an exception ends the decoding."""


def answer_limits(lengths: Sequence[int], max_new_tokens: int, context: int | None) -> list[int]:
    """The maximum answer length for each prompt: ``max_new_tokens``, or the remaining positions of the model.

    A prompt is never truncated, since that would make it a different prompt.

    Args:
        lengths: tokens of each prompt.
        context: positions of the model; None when unlimited.

    Raises:
        AfzalError: a prompt leaves no position for an answer; the error names the first and counts the others.
    """
    if context is None:
        return [max_new_tokens] * len(lengths)
    full = [i for i, length in enumerate(lengths) if length >= context]
    if full:
        others = f", and {len(full) - 1} more prompts are too long" if len(full) > 1 else ""
        raise AfzalError(
            f"prompt {full[0]} has {lengths[full[0]]} tokens, and the model has {context} positions for prompt and "
            f"answer together{others}",
            remedy="leave it out, shorten it, or use a model with more positions",
        )
    return [min(max_new_tokens, context - length) for length in lengths]


def rows_of(lengths: Mapping[int, int], n: int, numbers: Sequence[int] | None = None) -> list[Row]:
    """``n`` rows per prompt: longest prompts first, a prompt's rows together.

    Args:
        lengths: tokens of each prompt, by its number.
        numbers: for all prompts, the number on which their draws depend; default: their index.
    """
    order = sorted(lengths, key=lambda i: (-lengths[i], i))
    return [Row(i, k, i if numbers is None else numbers[i]) for i in order for k in range(n)]


def batches(rows: Sequence[Row], n: int, size: int) -> list[Sequence[Row]]:
    """The rows in batches of at most ``size``; the ``n`` rows of a prompt are split only if they exceed a batch."""
    size = max(1, size // n * n if n <= size else size)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


class TokenBuffer:
    """Collects the drawn tokens of a batch of rows, in buffers for the longest answers."""

    def __init__(
        self,
        rows: Sequence[Row],
        eos: Sequence[int],
        sampling: Sampling,
        seed: int,
        device: torch.device,
        on_token: TokenCallback | None = None,
    ):
        self.rows, self.sampling, self._on_token = rows, sampling, on_token
        self._ended: set[int] = set()
        self._ends = frozenset(eos)
        self.keys = row_keys(seed, np.array([r.number for r in rows]), np.array([r.sample for r in rows]))
        self.eos = torch.tensor(list(eos), dtype=torch.int64, device=device)
        self.never = torch.tensor(list(sampling.barred), dtype=torch.int64, device=device)
        self.never_or_early = torch.cat([self.never, self.eos])
        self.ids = torch.zeros((len(rows), sampling.max_new_tokens), dtype=torch.int32, device=device)
        self.logps = torch.zeros((len(rows), sampling.max_new_tokens), device=device)
        self._buffer: Tensor | None = None

    def draw(self, logits: Tensor, steps: np.ndarray, live: Tensor, live_host: np.ndarray) -> Tensor:
        """Draw and store the next token of the rows ``live`` ``[r]`` from their logits ``[r, V]``; return tokens
        ``[r]``.

        Args:
            steps: ``[r]`` int64: how many tokens each row has.
        """
        early = (steps < self.sampling.min_new_tokens) & bool(len(self.eos))
        tokens = torch.empty(len(steps), dtype=torch.int64, device=logits.device)
        logps = torch.empty(len(steps), device=logits.device)
        for some, barred in ((early, self.never_or_early), (~early, self.never)):
            if some.any():
                part = slice(None) if some.all() else torch.from_numpy(some).to(logits.device)
                uniform = torch.from_numpy(uniforms(self.keys[live_host[some]], steps[some])).to(logits.device)
                tokens[part], logps[part] = self._draw(logits[part], uniform, barred if len(barred) else None)
        places = live, torch.from_numpy(steps).to(logits.device)
        self.ids[places], self.logps[places] = tokens.to(torch.int32), logps
        if self._on_token is not None:
            self._report(self._on_token, tokens.tolist(), live_host.tolist())
        return tokens

    def _draw(self, logits: Tensor, uniform: Tensor, barred: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._buffer is None or len(self._buffer) < len(logits):
            self._buffer = torch.empty_like(logits, dtype=torch.float32)
        return draw_tokens(logits, uniform, self.sampling, barred, self._buffer[: len(logits)])

    def _report(self, on_token: TokenCallback, tokens: Sequence[int], live: Sequence[int]) -> None:
        """Report tokens, except those still drawn for rows that have ended."""
        for row, token in zip(live, tokens, strict=True):
            if row not in self._ended:
                self._ended |= {row} if token in self._ends else set()
                on_token(self.rows[row], token)

    def samples(self) -> list[Sample]:
        """Every row up to and including its first EOS.

        Raises:
            AfzalError: a token's log-prob is NaN.
        """
        ids, logps = self.ids.cpu().numpy(), self.logps.cpu().numpy()
        ends = np.isin(ids, self.eos.cpu().numpy())
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, ids.shape[1])
        if any(np.isnan(logps[k, :n]).any() for k, n in enumerate(lengths.tolist())):
            raise AfzalError(
                "the model's log-probs are not numbers",
                why="its logits are NaN or infinite at a token of an answer",
                remedy="use an earlier checkpoint; or dtype=fp32, if it computes in bf16",
            )
        return [
            Sample(r.prompt, ids[k, :n].copy(), "eos" if ends[k, n - 1] else "length", logps[k, :n].copy())
            for k, (r, n) in enumerate(zip(self.rows, lengths.tolist(), strict=True))
        ]
