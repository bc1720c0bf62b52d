"""How the tensors of an adapter's folder compare with the model that it is put on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.fit import refuse_misfit
from afzal.folders.headers import Stored
from afzal.folders.kinds import saved_rows


def enlarge(base: Any, folder: str) -> bool:
    """Give the base the rows that the adapter's own embedding has, when they are more; whether they were."""
    rows, own = saved_rows(folder), base.get_input_embeddings().num_embeddings
    if rows is None or rows == own:
        return False
    if rows < own:
        raise AfzalError(
            f"the adapter {folder} does not fit its base model",
            why=f"it brings along an embedding of {rows} rows, and the base model's has {own}",
            remedy="name the base model that it was trained on in base_model_name_or_path",
        )
    base.resize_token_embeddings(rows, mean_resizing=False)  # each row is then overwritten by the adapter's
    return True


def refuse_unfit(
    folder: str,
    base: Any,
    stored: Mapping[str, Stored],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    enlarged: bool,
) -> None:
    """Compare what a folder of an adapter holds with what the model with the adapter on it takes.

    Args:
        wanted: the shapes of the adapter's own tensors, by name.
        enlarged: whether the base has got further rows, which the folder must then fill.

    Raises:
        AfzalError: the adapter lacks a tensor, has one too many, or one of another shape.
    """
    shapes = dict(wanted)
    # embeddings that changed with the vocabulary are saved beside the adapter
    own = dict(base.named_parameters(remove_duplicate=False))  # tied ones may be saved under either name
    shapes |= {_plain(f"base_model.model.{n}"): tuple(p.shape) for n, p in own.items() if _is_table(n)}
    tables = {_plain(f"base_model.model.{n}") for n, _ in base.named_parameters() if _is_table(n)}
    held = {_plain(name): t for name, t in stored.items()}
    refuse_misfit(
        folder,
        held,
        missing=(wanted.keys() | (tables if enlarged else set())) - held.keys(),
        unexpected=held.keys() - shapes.keys(),
        mismatched=[(n, t.shape, shapes[n]) for n, t in held.items() if n in shapes and t.shape != shapes[n]],
    )


def _is_table(name: str) -> bool:
    return name.endswith("weight") and ("embed" in name or "wte" in name or "lm_head" in name)


def _plain(name: str) -> str:
    """A tensor's name as PEFT saves it, whatever it is wrapped in.

    A factor keeps the name of its layer: experts with adapters on two of their weights have one inside the other.
    """
    for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".original_module.", ".base_layer."):
        name = name if ".lora_" in name else name.replace(wrapper, ".")
    return name
