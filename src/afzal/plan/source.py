"""Read a model's shape from a name, a folder or a hub id: only its configuration, never weights or code."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.config_checks import wrong_number
from afzal.folders.inspection import read_config
from afzal.folders.kinds import tensors_of
from afzal.folders.load import hub_config
from afzal.plan.shapes import SHAPES, Shape, named, nearest, parameters, shape_of


def shape_from(model: str) -> Shape:
    """The shape of a local folder, a built-in name, or a hub id, tried in this order.

    Raises:
        AfzalError: ``model`` is none of them, or its configuration cannot be planned.
    """
    path = Path(model)
    if path.exists():
        shape = shape_of(_read(path / "config.json" if path.is_dir() else path), model)
        return _with_towers(shape, path) if shape.media and path.is_dir() else shape
    built_in = named(model)
    if built_in is not None:
        return built_in
    if "/" in model and not model.startswith((".", "/", "~")) and model.count("/") == 1:
        return shape_of(_from_hub(model), model)
    raise AfzalError(
        f"{model!r} is neither a folder, a hub id nor a built-in shape{nearest(model)}",
        remedy=f"one of {', '.join(SHAPES)}; a folder with a config.json; or org/name",
    )


_TOWERS = ("vision_tower.", "vision_model.", "visual.", "audio_tower.", "audio_encoder.", "audio_model.")


def _with_towers(shape: Shape, folder: Path) -> Shape:
    """The shape with the weights outside the language model, counted by the names of the tensors in its files."""
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors_of(folder).items()}
    if shape.tied:  # some files store both
        sizes = {name: size for name, size in sizes.items() if not name.endswith("lm_head.weight")}
    towers = sum(size for name, size in sizes.items() if any(f".{part}" in f".{name}" for part in _TOWERS))
    return replace(shape, towers=towers, projection=max(0, sum(sizes.values()) - parameters(shape) - towers))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        remedy = "give the folder that contains config.json"
        raise AfzalError(f"{path.parent} has no {path.name}", remedy=remedy)
    config = read_config(path)
    if fault := wrong_number(config):
        raise AfzalError(f"{path} cannot be planned", why=fault, remedy="restore the model's original configuration")
    return config


def _from_hub(model: str) -> dict[str, Any]:
    try:
        return hub_config(model)
    except AfzalError as error:
        raise AfzalError(
            f"the configuration of {model!r} cannot be loaded",
            why=error.why or error.what,
            remedy="a folder with its config.json, or a built-in shape such as llama-3.1-8b",
        ) from error
