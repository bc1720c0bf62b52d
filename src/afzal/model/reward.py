"""Reward models: a scalar head on the last scored token of a response, on the trunk of a language model.

They are `transformers`' own sequence classifiers with one label, so ``AutoModelForSequenceClassification`` loads a
saved folder. An ensemble has N heads on one trunk; it is saved with its mean head, which is exact since heads are
linear, and all heads are in a separate file.

Shapes: B responses, N heads, d width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afzal.errors import AfzalError
from afzal.folders.guard import guarded
from afzal.folders.kinds import REWARD_HEAD
from afzal.folders.kinds import is_reward_model as is_saved_reward_model
from afzal.folders.lazy_weights import LazyWeights
from afzal.folders.load import blank_classifier, load_classifier, model_folder
from afzal.model import last_block, rotary
from afzal.model.attention import stock_attention
from afzal.model.load import adapter_base, save_model, share_weights, switch_off_dropout
from afzal.model.norms import fuse_norms
from afzal.model.sanity import refuse_unsound
from afzal.tokens.attention_blocks import NeededLayout, needed_part
from afzal.tokens.batch import Batch
from afzal.tokens.upload import upload

HEADS_FILE = "reward_heads.safetensors"
_SHIFT = "reward_shift"
_PAD = "<|pad|>"


def is_reward_model(model: Any) -> bool:
    """Whether ``score`` of this model gives one score per response, not log-probs."""
    return type(_base(model)).__name__.endswith("ForSequenceClassification")


def load_reward_model(path: str, *, heads: int | None = None, seed: int = 0, device: torch.device | str = "cpu") -> Any:
    """A reward model in float32 with dropout off: a saved one, or the trunk of a language model with fresh heads.

    Args:
        heads: N; None keeps what a saved reward model has, and is 1 on a language model.
        seed: fresh heads are drawn from N(0, 1 / (d + 1)) with it (standard deviation 1 / sqrt(d + 1), Stiennon et al.
            2020, arXiv 2009.01325).

    Raises:
        AfzalError: no such folder, an adapter's folder, an architecture without a classifier, or another number of
            heads than the saved ones.
    """
    folder = _whole_folder(path)
    loaded = load_classifier(folder, num_labels=1, dtype=torch.float32)
    model = _prepared(loaded, Path(folder), heads, seed).to(device)
    refuse_unsound(model, path)
    return model


def blank_reward_model(path: str, *, heads: int | None = None, seed: int = 0) -> tuple[Any, LazyWeights]:
    """The model of :func:`load_reward_model` on the CPU without the large weights of its trunk, and their locations.

    Its heads are loaded. The weights are not checked until they are read.

    Raises:
        AfzalError: as there; or the weights are not stored as they are in memory.
    """
    folder = _whole_folder(path)
    model, weights = blank_classifier(folder, num_labels=1)
    if isinstance(getattr(model, "score", None), nn.Linear):
        model.score.weight = nn.Parameter(weights.read(model.score.weight.detach()))
    return _prepared(model, Path(folder), heads, seed), weights


def _whole_folder(path: str) -> str:
    folder = model_folder(path)
    if adapter_base(folder) is None:
        return folder
    raise AfzalError(
        f"{path} is an adapter", remedy=f"merge it into its base model first: afzal export {path} --out FOLDER"
    )


def _prepared(trunk: Any, folder: Path, heads: int | None, seed: int) -> Any:
    if trunk.config.get_text_config().pad_token_id is None:
        trunk.config.get_text_config().pad_token_id = 0  # needed for its own scores only
    model = _with_heads(trunk, folder, heads, seed)
    switch_off_dropout(model)
    fuse_norms(model)
    return model.eval()


def _with_heads(model: Any, folder: Path, heads: int | None, seed: int) -> Any:
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        raise AfzalError(f"{type(model).__name__} has no linear head named 'score'", remedy="choose a decoder model")
    if is_saved_reward_model(folder):
        saved = _saved_heads(folder)
        weights = model.score.weight if saved is None else saved
        if weights.ndim != 2 or weights.shape[1] != model.score.in_features:
            what = f"{folder / HEADS_FILE} holds heads of {list(weights.shape)}, and the model's width is "
            raise AfzalError(f"{what}{model.score.in_features}", remedy="save the complete reward model again")
        if heads not in (None, len(weights)):
            raise AfzalError(f"{folder} has {len(weights)} heads, not {heads}", remedy=f"heads={len(weights)}")
    else:
        weights = _fresh_heads(heads or 1, model.score.in_features, seed)
    _set_heads(model, weights)
    return model


def _fresh_heads(heads: int, width: int, seed: int) -> Tensor:
    """``[N, d]``, each weight N(0, 1 / (d + 1)). Heads share half of their variance: entirely unrelated
    ones pull the trunk in N directions and it learns several times more slowly."""
    common, *separate = torch.randn(heads + 1, width, generator=torch.Generator().manual_seed(seed))
    if heads == 1:
        return common[None] / math.sqrt(width + 1)
    return (common + torch.stack(separate)) / math.sqrt(2 * (width + 1))


def _set_heads(model: Any, weights: Tensor) -> None:
    head = nn.Linear(weights.shape[1], weights.shape[0], bias=False, device=model.score.weight.device)
    with torch.no_grad():
        head.weight.copy_(weights)
    model.score = head


def refuse_language_model(path: str, setting: str) -> None:
    """Make sure that ``path`` holds a reward model: a language model would get a random head.

    Args:
        setting: where the path comes from, for the message.

    Raises:
        AfzalError: it does not, or there is no such folder.
    """
    if not is_saved_reward_model(model_folder(path)):
        raise AfzalError(
            f"{path} is a language model, not a reward model",
            where=setting,
            remedy="train one with: afzal train reward --model ... --data ...",
        )


def _saved_heads(folder: Path) -> Tensor | None:
    from safetensors.torch import load_file

    path = folder / HEADS_FILE
    if not path.exists():
        return None
    with guarded(str(folder)):
        return load_file(path)[REWARD_HEAD]


def reward_head(model: Any) -> nn.Module:
    """The layer from hidden states to scores, as the model calls it."""
    return _base(model).score


def n_heads(model: Any) -> int:
    """Number of heads, N."""
    return int(_plain_head(model).out_features)


def head_scores(model: Any, batch: Batch) -> Tensor:
    """Scores ``[B, N]`` float32 of every response by every head, with gradient unless switched off outside."""
    hidden = states_at_ends(model, batch)
    with torch.autocast(hidden.device.type, enabled=False):
        return hidden.float() @ _plain_head(model).weight.float().T


def states_at_ends(model: Any, batch: Batch) -> Tensor:
    """``[B, d]``: the inputs of a reward model's head at every response's last scored token."""
    ends = _last_scored(batch)
    needed = None if batch.layout is None else needed_part(batch.layout, ends)
    return states_at_head(model, batch, needed).flatten(0, 1)[upload(ends, batch.ids.device)]


def states_at_head(model: Any, batch: Batch, needed: NeededLayout | None = None) -> Tensor:
    """``[R, L, d]``: the inputs of a reward model's head at every position.

    Args:
        needed: the positions that will be read; the states at others are then not meaningful. None: all positions.
    """
    captured: list[Tensor] = []
    hook = reward_head(model).register_forward_pre_hook(lambda _, args: captured.append(args[0]))

    def run(inputs: Mapping[str, Any]) -> Tensor:
        captured.clear()
        model(**inputs, **last_block.keywords_for(model, needed), use_cache=False)
        return captured[0]

    try:
        return rotary.run_rows(model, batch, run)
    finally:
        hook.remove()


def reward_scores(model: Any, batch: Batch) -> Tensor:
    """The mean head's score of each response ``[B]``; for an :func:`ensemble` batch ``[N B]``, head by head.

    Larger is better; the zero is arbitrary (see :func:`shift_of`).
    """
    scores = head_scores(model, batch)
    return scores.mean(1) if batch.n_responses == len(scores) else scores.T.flatten()


def _last_scored(batch: Batch) -> np.ndarray:
    """``[B]`` int64: flat position of each response's last scored token, its EOS unless it was truncated."""
    positions, row, offset = [], 0, 0
    for t, k in batch.sources:
        last = int(np.flatnonzero(t.branches[k].scored)[-1])
        if batch.layout is None:
            positions.append(row * batch.ids.shape[1] + len(t.prompt) + last)
            row += 1
        else:
            offset += len(t.prompt) if k == 0 else 0
            positions.append(offset + last)
            offset += len(t.branches[k].ids)
        if row == batch.ids.shape[0] or offset == batch.ids.numel():
            break  # the rest are the copies for an ensemble
    return np.array(positions, dtype=np.int64)


def ensemble(batch: Batch, heads: int, seed: int) -> Batch:
    """The batch with every response repeated per head, and each head's bootstrap weights on the pairs.

    A head weights an item by a Poisson(1) count that depends on (seed, item, head) alone: resampling with replacement,
    the same at every visit to the item.
    """
    if heads == 1:
        return batch
    size = batch.n_responses
    of_item = [batch.sources[i][0].item_id for i in batch.preferences[:, 0].long().tolist()]
    parts = []
    for head in range(heads):
        rows = batch.preferences.clone()
        rows[:, :2] += head * size
        counts = [_poisson(seed, item, head) for item in of_item]
        rows[:, 3] *= torch.tensor(counts, dtype=rows.dtype)
        parts.append(rows)
    return replace(
        batch, sources=batch.sources * heads, preferences=torch.cat(parts), desirable=batch.desirable.repeat(heads)
    )


def _poisson(seed: int, item: str, head: int) -> int:
    """A Poisson(1) count from a hash, by inversion."""
    digest = hashlib.sha256(f"{seed}/{head}/{item}".encode()).digest()
    remainder, term, count = int.from_bytes(digest[:8], "little") / 2**64, math.exp(-1), 0
    while remainder >= term and count < 20:
        remainder, count = remainder - term, count + 1
        term /= count
    return count


def choose_pad(model: Any, tokenizer: Any, ends: Collection[int], unread: LazyWeights | None = None) -> None:
    """Give model and tokenizer a padding token that ends no response, so that it differs from every last token.

    `transformers` reads a sequence classifier at the last token that is not padding. If every known candidate (the
    padding, unknown and start tokens) can end a response, a new token is added.

    Args:
        unread: the weights of a blank model; if the new token has no row, the embedding is read to add one.
    """
    pad = _known_pad(tokenizer, ends)
    if pad is None:
        tokenizer.add_special_tokens({"pad_token": _PAD})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            _add_rows(model, len(tokenizer), unread)
        pad = tokenizer.pad_token_id
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad


@torch.no_grad()
def _add_rows(model: Any, rows: int, unread: LazyWeights | None) -> None:
    """Enlarge the embedding. The new rows are the mean of the others, so that all ranks give them the same values."""
    table = model.get_input_embeddings()
    known = table.num_embeddings
    if unread is not None:
        table.weight = nn.Parameter(unread.read(table.weight.detach()), table.weight.requires_grad)
    model.resize_token_embeddings(rows, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    weight[known:] = weight[:known].mean(0)


def _known_pad(tokenizer: Any, ends: Collection[int]) -> int | None:
    """The id of an existing token that ends no response; None if there is none."""
    ends = {*ends, tokenizer.eos_token_id}
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((i for i in known if i is not None and i not in ends), None)


def shift_of(model: Any) -> float:
    """The number to subtract from scores so that preferred responses have mean 0; 0.0 if the model states none."""
    return float(getattr(model.config, _SHIFT, 0.0))


def save_reward_model(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    shift: float = 0.0,
    rounded: Callable[[Any], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Write a folder that ``AutoModelForSequenceClassification`` loads: merged weights, the mean head, tokenizer.

    For a family that this class does not know, only :func:`load_reward_model` loads it. All heads of an ensemble are in
    :data:`HEADS_FILE`, as ``score.weight [N, d]``.

    Args:
        shift: stated in the configuration as ``reward_shift``, and not applied, since the heads have no bias.
        rounded: puts the merged model into the number format that it is saved in.
    """
    from safetensors.torch import save_file

    heads = _plain_head(model).weight.detach().float().cpu().clone()
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    with stock_attention(merged):
        _set_heads(merged, heads.mean(0, keepdim=True))
        merged.config.num_labels = 1
        setattr(merged.config, _SHIFT, shift)
        with rounded(merged):
            save_model(merged, tokenizer, path)
        _set_heads(merged, heads.to(merged.device))
    if len(heads) > 1:
        save_file({"score.weight": heads}, path / HEADS_FILE, metadata={"format": "pt"})
        share_weights(path)


def _base(model: Any) -> Any:
    """The model inside its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_head(model: Any) -> Any:
    """The active head, which may be the trainable copy that adapters keep."""
    head: Any = reward_head(model)
    return head.modules_to_save[head.active_adapters[0]] if hasattr(head, "modules_to_save") else head
