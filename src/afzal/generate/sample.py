"""Sampling of several continuations per prompt, without affecting the training run's random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from afzal.errors import AfzalError
from afzal.generate.choose import choose_decoding
from afzal.generate.rows import Sample, TokenCallback, answer_limits, batches, rows_of
from afzal.generate.shared_prompts import decode_shared
from afzal.generate.token_sampling import PLAIN, Sampling
from afzal.generate.with_transformers import decode_with_transformers
from afzal.model.decoding import shared_decoding
from afzal.model.experts import experts_added_once
from afzal.model.load import context_of_model
from afzal.model.media import placeholder_ids
from afzal.model.packed import packed
from afzal.tokens.tree import Branch, Tree

Decoding = Literal["auto", "shared", "stock"]

_BUFFERED_TOKENS = 2**24  # of the rows that wait for one another; their ids and log-probs take 128 MiB

Prompt = Sequence[int] | Tree
"""Token ids, or a tree without branches, which can also hold images and sounds."""


def prompt_ids(prompt: Prompt) -> list[int]:
    """The token ids of a prompt, placeholders of images and sounds included."""
    return prompt.prompt.tolist() if isinstance(prompt, Tree) else list(prompt)


def sample(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    eos: Iterable[int],
    n: int = 1,
    sampling: Sampling = PLAIN,
    seed: int = 0,
    rows_per_batch: int = 128,
    decoding: Decoding = "auto",
    numbers: Sequence[int] | None = None,
    on_token: TokenCallback | None = None,
) -> list[Sample]:
    """``n`` continuations of every prompt, ordered by prompt and then by sample number.

    The same model, prompts, settings and seed give the same samples, since each draw depends on (seed, prompt, sample,
    step); ``rows_per_batch`` affects only speed and memory. The exception is the last bit of the logits, which a matrix
    product may round differently for another number of rows; in float32 it changes about one token in a million. An
    answer ends at the model's last position, whatever ``sampling`` allows.

    Args:
        eos: token ids that end a continuation.
        n: continuations of each prompt.
        rows_per_batch: sequences decoded together. In shared decoding, waiting ones take the places of finished ones.
        decoding: ``shared`` reads a prompt once for all its samples; ``stock`` is the model's own ``generate``;
            ``auto`` is shared if :func:`~afzal.generate.choose_decoding` finds it exact. Prompts with images or sounds
            are decoded by ``stock``.
        numbers: for each prompt, the number on which its draws depend instead of its index, so that a prompt gets the
            same samples among other prompts.
        on_token: called with every token as soon as it is drawn, for live output.

    Raises:
        AfzalError: ``decoding`` is ``shared`` but the model does not support it (with the reason); a prompt leaves no
            position for an answer; or the model's log-probs are NaN.
    """
    ends = sorted(set(eos))
    media_trees = [t if isinstance(t, Tree) and t.media else None for t in prompts]
    ids = [prompt_ids(p) for p in prompts]
    longest = max(map(len, ids), default=0) + sampling.max_new_tokens
    method, reason = _decoding_method(model, decoding, longest, shows=any(media_trees))
    if decoding == "shared" and method != "shared":
        raise AfzalError("this model cannot share prompts between samples", why=reason, remedy="decoding='auto'")
    lengths = [len(p) for p in ids]
    sampling = replace(sampling, barred=placeholder_ids(model.config))
    limits = answer_limits(lengths, sampling.max_new_tokens, context_of_model(model))
    samples: list[tuple[int, int, Sample]] = []
    with torch.no_grad(), packed(model), experts_added_once(model):
        for limit in sorted(set(limits), reverse=True):  # those that share a limit are decoded together
            same_limit = {i: length for i, length in enumerate(lengths) if limits[i] == limit}
            limited = replace(sampling, max_new_tokens=limit)
            rows = rows_of(same_limit, n, numbers)
            size = max(rows_per_batch, _BUFFERED_TOKENS // max(1, limit)) if method == "shared" else rows_per_batch
            for part in batches(rows, n, size):
                options = {"eos": ends, "sampling": limited, "seed": seed, "on_token": on_token}
                if method == "shared":
                    with shared_decoding(model):
                        decoded = decode_shared(model, part, ids, places=rows_per_batch, **options)
                else:
                    decoded = decode_with_transformers(model, part, ids, media_trees=media_trees, **options)
                samples += [(r.prompt, r.sample, s) for r, s in zip(part, decoded, strict=True)]
    return [s for _, _, s in sorted(samples, key=lambda entry: entry[:2])]


def _decoding_method(model: Any, decoding: Decoding, longest: int, *, shows: bool) -> tuple[str, str]:
    """``shared`` or ``stock``, and the reason for not sharing."""
    if decoding == "stock":
        return "stock", ""
    return ("stock", "its prompts show images or sounds") if shows else choose_decoding(model, longest)


def as_trees(samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[Tree]:
    """One tree per prompt with its samples as branches, every sampled token scored; empty samples are left out."""
    by_prompt: dict[int, list[Branch]] = {}
    for s in samples:
        if len(s.ids):
            by_prompt.setdefault(s.prompt_index, []).append(Branch(s.ids, np.ones(len(s.ids), dtype=bool)))
    return [_tree(f"sample-{i}", prompts[i], tuple(b)) for i, b in sorted(by_prompt.items())]


def _tree(name: str, prompt: Prompt, branches: tuple[Branch, ...]) -> Tree:
    if isinstance(prompt, Tree):
        return replace(prompt, item_id=name, branches=branches)
    return Tree(name, np.asarray(prompt, np.int32), branches)
