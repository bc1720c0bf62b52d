"""Determine what a folder holds: a model or an adapter, a language model or a reward model; and an adapter's base.

All relevant files are consulted. If they contradict each other, the folder is refused, because following one would
silently ignore the other.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.safetensors_header import TensorInfo, read_header

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REWARD_HEAD = "score.weight"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_EMBEDDING = re.compile(r"\.(?:embed_tokens|embed_in|word_embeddings|wte|tok_embeddings|lm_head|embed_out)\.")
_OTHER_TASKS = re.compile(
    r"For(?:TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM|NextSentencePrediction|Seq2SeqLM|PreTraining"
    r"|ImageClassification|AudioClassification|SpeechSeq2Seq|CTC)$"
)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter: its configuration, and no full model weights."""
    return (Path(folder) / ADAPTER_CONFIG).exists() and not has_whole_weights(folder)


def has_whole_weights(folder: str | Path) -> bool:
    """Whether a folder holds safetensors weights of a full model."""
    return any((Path(folder) / f"model.safetensors{end}").exists() for end in ("", ".index.json"))


def is_reward_model(folder: str | Path) -> bool:
    """Whether a folder holds a reward model, as opposed to a language model from which one could be made.

    Raises:
        AfzalError: its stated architecture contradicts its tensors.
    """
    stated = _architectures(folder)
    classifier = any(name.endswith("ForSequenceClassification") for name in stated)
    head = REWARD_HEAD in tensors_of(folder)
    if stated and classifier != head:
        raise AfzalError(
            f"{folder} contradicts itself",
            where="config.json",
            why=f"it states {', '.join(stated)}, and holds {'a' if head else 'no'} reward head ({REWARD_HEAD})",
            remedy="save it again with the library that made it, or correct 'architectures'",
        )
    return head


def refuse_other_task(folder: str | Path) -> None:
    """Refuse a folder whose configuration says that it is not a language model.

    Raises:
        AfzalError: it is a reward model or a model for another task.
    """
    stated = _architectures(folder)
    if any(name.endswith("ForSequenceClassification") for name in stated):
        raise AfzalError(
            f"{folder} is a reward model ({', '.join(stated)}), not a language model",
            why="it has a head for scores, not one for tokens",
            remedy="name the language model; a reward model goes to --reward, --value-model or afzal score --model",
        )
    if other := next((name for name in stated if _OTHER_TASKS.search(name)), None):
        raise AfzalError(
            f"{folder} is a {other}, not a causal language model",
            remedy="name a model that continues texts, such as one of AutoModelForCausalLM",
        )


def base_of(folder: str | Path) -> str:
    """The base model of an adapter: the absolute path of a folder, or a hub id.

    A relative path is tried from the adapter's folder and from the current folder.

    Raises:
        AfzalError: the name is neither, the folder does not exist, or two different folders match the path.
    """
    stated = adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated or not stated.isprintable() or "://" in stated or stated[0] == "~":
        raise AfzalError(
            f"{folder} names no base model",
            where=ADAPTER_CONFIG,
            why=f"base_model_name_or_path is {stated!r}, neither a folder nor a hub id",
            remedy="write the base model's folder or hub id there",
        )
    places = [Path(stated)] if os.path.isabs(stated) else [Path(folder) / stated, Path(stated)]
    folders = {os.path.realpath(place): None for place in places if place.is_dir()}
    if len(folders) > 1:
        raise AfzalError(
            f"the base model {stated!r} of {folder} may be either of two folders",
            where=ADAPTER_CONFIG,
            why=" and ".join(folders),
            remedy="write the full path of the right one into base_model_name_or_path",
        )
    if folders:
        return next(iter(folders))
    if not _HUB_ID.fullmatch(stated) or stated.startswith("."):
        raise AfzalError(
            f"the base model {stated} of {folder} does not exist here",
            where=ADAPTER_CONFIG,
            remedy="put the base model there, or correct base_model_name_or_path",
        )
    return stated


def stored_name(path: str) -> str:
    """The name under which files record a model: its hub id if it is in the hub's cache, else its absolute path."""
    for part in Path(path).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return os.path.realpath(path) if os.path.isdir(path) else path


def saved_rows(folder: str | Path) -> int | None:
    """Number of rows of the embedding in an adapter's folder (V of its model); None if it contains none."""
    tables = [t for name, t in tensors_of(folder).items() if _EMBEDDING.search(name) and "lora_" not in name]
    return max((t.shape[0] for t in tables if len(t.shape) == 2), default=None)


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """The adapter configuration in a folder."""
    return json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))


def tensors_of(folder: str | Path) -> dict[str, TensorInfo]:
    """The tensors, by name, that a library reads from an inspected folder: the model's, or else the adapter's."""
    return {name: tensor for tensors in weight_files(folder).values() for name, tensor in tensors.items()}


def weight_files(folder: str | Path) -> dict[Path, dict[str, TensorInfo]]:
    """The files of :func:`tensors_of`, each with its tensors."""
    place = Path(folder)
    config = json.loads((place / "config.json").read_bytes()) if (place / "config.json").exists() else {}
    names = [str(config.get("transformers_weights") or "model.safetensors")]
    if not (place / names[0]).exists():
        index = place / "model.safetensors.index.json"
        shards = json.loads(index.read_bytes())["weight_map"] if index.exists() else {}
        names = sorted(set(shards.values())) or [ADAPTER_WEIGHTS]
    return {place / name: read_header(place / name) for name in names if (place / name).exists()}


def _architectures(folder: str | Path) -> tuple[str, ...]:
    path = Path(folder) / "config.json"
    config: Mapping[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    stated = config.get("architectures")
    return tuple(str(name) for name in stated) if isinstance(stated, list) else ()
