"""The decoder for any causal language model of `transformers`: its own ``generate`` with left padding.

`transformers` manages the cache, whatever its kind; Afzal draws the tokens, so that seeds, limits and log-probs have
the same meaning as in shared decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.generate.rows import Row, Sample, TokenBuffer, TokenCallback
from afzal.generate.token_sampling import Sampling
from afzal.generate.unpadded import decode_unpadded
from afzal.model import rotary, virtual
from afzal.model.adapters import is_adapted
from afzal.model.attention import stock_attention
from afzal.tokens.media import model_inputs
from afzal.tokens.tree import Tree


def decode_with_transformers(
    model: Any,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    *,
    eos: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: TokenCallback | None = None,
    media_trees: Sequence[Tree | None] = (),
) -> list[Sample]:
    """Samples for ``rows``, in the same order; by :func:`.unpadded.decode_unpadded` if padding would change the model's
    output.

    Args:
        media_trees: for each prompt, its tree if it shows images or sounds, else None.

    Raises:
        AfzalError: prompts show media to a model whose output padding would change.
    """
    longest = max(len(prompts[r.prompt]) for r in rows) + sampling.max_new_tokens
    trees = [media_trees[r.prompt] for r in rows] if any(media_trees) else []
    if virtual.is_active(model) or rotary.why_not_share(model, longest):
        if trees:
            raise AfzalError("prompts with images or sounds cannot follow virtual tokens", remedy="adapter=lora")
        return decode_unpadded(model, rows, prompts, eos=eos, sampling=sampling, seed=seed, on_token=on_token)
    return _decode(model, rows, prompts, trees, eos=eos, sampling=sampling, seed=seed, on_token=on_token)


def _decode(
    model: Any,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    trees: Sequence[Tree | None],
    *,
    eos: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: TokenCallback | None = None,
) -> list[Sample]:
    device = next(model.parameters()).device
    written = TokenBuffer(rows, eos, sampling, seed, device, on_token)
    pad = eos[0] if eos else 0
    ids, mask = _left_padded([prompts[r.prompt] for r in rows], pad, device)
    with stock_attention(model), _plain_settings(model):
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            **_media_inputs(trees, ids.shape[1], device),
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(eos) or None,
            pad_token_id=pad,
            logits_processor=[_drawing_processor(written, ids.shape[1])],
            synced_gpus=False,  # layers are gathered, and ranks may write different numbers of answers
        )
    return written.samples()


def _media_inputs(trees: Sequence[Tree | None], width: int, device: torch.device) -> dict[str, Tensor]:
    """The model's inputs for the rows' media, with token types left-padded like the ids."""
    present = [t for t in trees if t is not None]
    inputs = model_inputs([m for t in present for m in t.media])
    for name in {name for t in present for name in t.types}:
        types = np.zeros((len(trees), width), dtype=np.int64)
        for row, t in enumerate(trees):
            if t is not None:
                types[row, width - len(t.prompt) :] = t.types[name]
        inputs[name] = types
    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}


def _drawing_processor(written: TokenBuffer, width: int) -> Any:
    """A logits processor that draws the token itself and masks all others."""
    all_rows = np.arange(len(written.rows))
    live = torch.arange(len(written.rows), device=written.ids.device)

    def process(input_ids: Tensor, scores: Tensor) -> Tensor:
        steps = np.full(len(all_rows), input_ids.shape[1] - width)
        tokens = written.draw(scores, steps, live, all_rows)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    return process


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    """Disable the model's own generation settings, such as penalties, which would silently change the distribution."""
    from transformers import GenerationConfig

    owners = [model, *([model.get_base_model()] if is_adapted(model) else [])]
    before, training = [owner.generation_config for owner in owners], model.training
    for owner in owners:
        owner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config
        model.train(training)


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, width - len(row) :] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[r, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
