"""A model's shape from a name, a folder or a hub id: the configuration alone, never weights, never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.plan.shapes import SHAPES, Shape, named, nearest, shape_of

_MOST_BYTES = 16 << 20


def shape_from(model: str) -> Shape:
    """The shape of a local folder, a built-in name, or a hub id, in this order.

    Raises:
        AfzalError: it is none of them, or its configuration cannot be planned.
    """
    path = Path(model)
    if path.exists():
        return shape_of(_read(path / "config.json" if path.is_dir() else path), model)
    built_in = named(model)
    if built_in is not None:
        return built_in
    if "/" in model and not model.startswith((".", "/", "~")) and model.count("/") == 1:
        return shape_of(_from_hub(model), model)
    raise AfzalError(
        f"{model!r} is neither a folder, a hub id nor a built-in shape{nearest(model)}",
        remedy=f"one of {', '.join(SHAPES)}; a folder with a config.json; or org/name",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AfzalError(f"{path} is too large for a configuration", remedy="name the model's own folder")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "name the folder that config.json is in"
        raise AfzalError(f"{path.parent} has no {path.name}", remedy=remedy) from error
    except (OSError, ValueError) as error:
        raise AfzalError(f"{path} cannot be read", why=str(error), remedy="download it again") from error
    if not isinstance(found, dict):
        raise AfzalError(f"{path} is not a JSON object", remedy="name the folder that config.json is in")
    return found


def _from_hub(model: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise AfzalError(
            f"the configuration of {model!r} cannot be had",
            why=first,
            remedy="a folder with its config.json, or a built-in shape such as llama-3.1-8b",
        ) from error
