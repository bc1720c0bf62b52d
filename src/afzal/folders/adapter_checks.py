"""Compare the tensors of an adapter's folder with the model that it is loaded onto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_misfit
from afzal.folders.kinds import saved_rows
from afzal.folders.safetensors_header import TensorInfo


def enlarge_embedding(base: Any, folder: str) -> bool:
    """Enlarge the base's embedding to that of the adapter, if the adapter has one with more rows; return whether it
    did."""
    rows, base_rows = saved_rows(folder), base.get_input_embeddings().num_embeddings
    if rows is None or rows == base_rows:
        return False
    if rows < base_rows:
        raise AfzalError(
            f"the adapter {folder} does not fit its base model",
            why=f"it contains an embedding of {rows} rows, and the base model's has {base_rows}",
            remedy="name the base model that it was trained on in base_model_name_or_path",
        )
    base.resize_token_embeddings(rows, mean_resizing=False)  # each row is then overwritten by the adapter's
    return True


def hold_saved_weights(base: Any, stored: Mapping[str, TensorInfo]) -> None:
    """Give unread weights of the base that an adapter's files contain memory of their own, which PEFT copies into."""
    import torch

    own: dict[int, Any] = {}
    names = {_plain(name) for name in stored}
    for name, p in base.named_parameters(remove_duplicate=False):  # tied ones may be saved under either name
        unread = p.untyped_storage().nbytes() < p.numel() * p.element_size()
        if unread and _plain(f"base_model.model.{name}") in names:
            own[id(p)] = torch.nn.Parameter(torch.empty(p.shape), p.requires_grad)
    for module in base.modules() if own else ():
        for leaf, p in module._parameters.items():
            module._parameters[leaf] = own.get(id(p), p)


def refuse_adapter_misfit(
    folder: str,
    base: Any,
    stored: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    *,
    enlarged: bool,
) -> None:
    """Refuse an adapter folder whose tensors differ from those of the model with the adapter.

    Args:
        expected: the shapes of the adapter's tensors, by name.
        enlarged: whether the base was given more rows, which the folder must fill.

    Raises:
        AfzalError: the adapter lacks a tensor, has an extra one, or one of a different shape.
    """
    shapes = dict(expected)
    # embeddings that changed with the vocabulary are saved with the adapter
    parameters = dict(base.named_parameters(remove_duplicate=False))  # tied ones may be saved under either name
    shapes |= {_plain(f"base_model.model.{n}"): tuple(p.shape) for n, p in parameters.items() if _is_table(n)}
    tables = {_plain(f"base_model.model.{n}") for n, _ in base.named_parameters() if _is_table(n)}
    saved = {_plain(name): t for name, t in stored.items()}
    refuse_misfit(
        folder,
        saved,
        missing=(expected.keys() | (tables if enlarged else set())) - saved.keys(),
        unexpected=saved.keys() - shapes.keys(),
        mismatched=[(n, t.shape, shapes[n]) for n, t in saved.items() if n in shapes and t.shape != shapes[n]],
    )


def _is_table(name: str) -> bool:
    return name.endswith("weight") and ("embed" in name or "wte" in name or "lm_head" in name)


def _plain(name: str) -> str:
    """A tensor's name as PEFT saves it, without wrappers.

    A LoRA factor keeps its full name: on experts with adapters on two of their weights, one wrapper is inside the
    other.
    """
    for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".original_module.", ".base_layer."):
        name = name if ".lora_" in name else name.replace(wrapper, ".")
    return name
