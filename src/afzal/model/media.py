"""Inputs of a multimodal model's forward pass other than ids, for trees packed into one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afzal.tokens.batch import Batch
from afzal.tokens.tree import Tree

_TOWERS = ("vision_config", "audio_config")
_KINDS = ("image", "video", "audio")


def inputs_of(model: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of a model's forward pass: the batch's, with positions on all axes of the model.

    Models with several axes of position (Qwen2-VL) place a picture's tokens by row and column. By default they derive
    positions from a row's ids, which is right for one prompt per row but not for packed trees.
    """
    inputs = batch.inputs
    base = _places_itself(model)
    if batch.layout is None or base is None:
        return inputs
    trees = [t for t, k in batch.sources if k == 0]
    inputs["position_ids"] = torch.cat([_tree_positions(base, t, batch.ids.device) for t in trees], dim=2)
    return inputs


def reads_media(config: Any) -> bool:
    """Whether the configuration is of a language model with image or audio towers."""
    return config.get_text_config() is not config and any(getattr(config, name, None) is not None for name in _TOWERS)


def towers(model: Any) -> dict[str, nn.Module]:
    """The modules that encode images and sounds, by name: those whose configuration is a tower's own."""
    if not reads_media(model.config):
        return {}
    tower_configs = [part for name in _TOWERS if (part := getattr(model.config, name, None)) is not None]
    encoders: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in encoders)
        if name and not nested and any(getattr(module, "config", None) is config for config in tower_configs):
            encoders[name] = module
    return encoders


def freeze_towers(model: Any) -> None:
    """Freeze the encoders of images and sounds; the projection of their features still trains."""
    for tower in towers(model).values():
        tower.requires_grad_(False)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids of the tokens that stand for images and sounds: a forward pass replaces each by features."""
    if not reads_media(config):
        return ()
    ids = (getattr(config, f"{kind}_token_{ending}", None) for kind in _KINDS for ending in ("id", "index"))
    return tuple(sorted({int(i) for i in ids if i is not None}))


def random_ids(config: Any, vocabulary: int, rng: np.random.Generator, n: int) -> list[int]:
    """``n`` random ids from the vocabulary; id 0 replaces placeholders of images and sounds, which cannot be read
    without their features."""
    ids = rng.integers(0, vocabulary, n)
    return np.where(np.isin(ids, placeholder_ids(config)), 0, ids).tolist()


def _places_itself(model: Any) -> Any:
    """The part of a model that derives positions from ids and patch grids; None if it has none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for part in (inner, getattr(inner, "model", None)):
        if hasattr(part, "get_rope_index"):
            return part
    return None


def _tree_positions(base: Any, t: Tree, device: torch.device) -> Tensor:
    """``[3, 1, n]``: the prompt's positions as the model derives them; every branch counts on from their end."""
    ids = torch.from_numpy(t.prompt).long()[None].to(device)
    types = t.types.get("mm_token_type_ids")
    grids = [torch.from_numpy(m.arrays()["image_grid_thw"]) for m in t.media]
    if grids and types is not None:
        token_types = {"mm_token_type_ids": torch.from_numpy(types)[None].to(device)}
        prompt, _ = base.get_rope_index(ids, image_grid_thw=torch.cat(grids).to(device), **token_types)
    else:
        prompt = torch.arange(ids.shape[1], device=device).expand(3, 1, -1)
    next_position = int(prompt.max()) + 1
    branches = [
        torch.arange(next_position, next_position + len(b.ids), device=device).expand(3, 1, -1) for b in t.branches
    ]
    return torch.cat([prompt, *branches], dim=2)
