"""Export a trained adapter as a plain model: merged, compared, and only then written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afzal import data, hub, runs
from afzal.config import ExportConfig
from afzal.errors import AfzalError
from afzal.folders.kinds import is_reward_model, refuse_other_task
from afzal.folders.load import load_processor, model_folder
from afzal.model.adapters import adapter_base, peft_type_of, positions_taken
from afzal.model.load import (
    cast_parameters,
    load_model,
    load_tokenizer,
    name_base,
    pick_device,
    save_model,
)
from afzal.model.logprobs import score
from afzal.model.probe import largest_gap, probe_trees
from afzal.model.speakers import open_speaker, speaker_of
from afzal.recipes.outputs import input_format
from afzal.tokens.batch import Batch
from afzal.tokens.ollama import CONVERTER, modelfile
from afzal.tokens.tree import Tree
from afzal.train.feed import Layout

_TOLERANCE = {"fp32": 1e-3, "bf16": 0.15}  # of a token's log-prob, in nats: rounding of the merged weights
_TOKENS_PER_FORWARD = 8192
_GGUF = "model.gguf"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "generation_config.json")


def export(config: ExportConfig) -> list[str]:
    """Write the adapter of ``config.model`` to ``config.out`` and return lines that report the result.

    Adapters that change layers are merged into their base model; the folder then loads with plain `transformers`. The
    merged model's log-probs are compared with the adapter's on rows of ``config.data``, or on random tokens, in the
    saved number format. Virtual tokens cannot be merged: their folder is copied, for PEFT to load.

    Raises:
        AfzalError: the folder holds no adapter, the log-probs differ by more than the tolerance, or ``config.out``
            exists or is being written by another process.
    """
    with runs.sole_file(config.out):
        return _export(config)


def _export(config: ExportConfig) -> list[str]:
    if config.push_to_hub is not None:
        hub.refuse_unreachable(config.push_to_hub)
    folder = model_folder(config.model)
    base = adapter_base(folder)
    if base is None and config.ollama:
        refuse_other_task(folder)
        return _only_modelfile(config, folder)
    if base is None:
        remedy = "use it as it is, without export"
        remedy += "" if is_reward_model(folder) else "; --ollama writes a Modelfile for it"
        raise AfzalError(f"{config.model} is not an adapter", why="it has all its weights", remedy=remedy)
    processor = load_processor(config.model)
    files = load_tokenizer(config.model) if processor is None else processor
    if positions_taken(folder):
        if config.ollama:
            raise AfzalError("Ollama has no virtual tokens", where=config.model, remedy="leave out --ollama")
        return _copied(config, folder, files)
    # created first, so that an impossible one is refused before anything is merged or written
    text = modelfile(open_speaker(config.model), _GGUF) if config.ollama else ""
    model = load_model(config.model, device=pick_device(config.device))
    batches = Layout("unshared", _TOKENS_PER_FORWARD, pick_device(config.device)).batches(_rows(config, files, model))
    expected = _logps(model, batches)
    with model.disable_adapter():
        before = largest_gap(_logps(model, batches), expected)
    merged = model.merge_and_unload()
    dtype = _format(config)
    if dtype == "bf16":
        cast_parameters(merged, torch.bfloat16)
    gap = largest_gap(_logps(merged, batches), expected)
    _refuse_difference(config, gap, config.tolerance or _TOLERANCE[dtype])
    facts = {"adapter": config.model, "base": base, "dtype": dtype, "tokens": len(expected)}
    facts |= {"largest_difference_nats": gap, "adapter_to_base_nats": before}
    save_model(merged, files, Path(config.out))
    runs.force_to_disk(Path(config.out))
    runs.atomic_write(Path(config.out) / "export.json", json.dumps(facts, indent=2) + "\n")
    return [
        f"{config.out}: the adapter merged into {base}, as {dtype}",
        f"largest difference of a log-prob on {len(expected)} tokens: {gap:.2g} nats between the merged model and the "
        f"adapter, {before:.2g} between the adapter and its base model",
        *(_modelfile(config, config.out, text) if config.ollama else []),
        *_uploaded(config),
    ]


def _only_modelfile(config: ExportConfig, folder: str) -> list[str]:
    """Write only the Modelfile, in a separate folder, for a model that needs no merging."""
    _refuse_given(config, ("data", "dtype", "tolerance", "push_to_hub"), f"{config.model} is not an adapter")
    text = modelfile(open_speaker(config.model), _GGUF)
    runs.make_folder(config.out)
    return _modelfile(config, folder, text)


def _refuse_given(config: ExportConfig, keys: Sequence[str], why: str) -> None:
    for key in keys:
        if getattr(config, key) != type(config).model_fields[key].default:
            raise AfzalError(f"{key} has no effect: {why}", remedy=f"leave {key} out")


def _modelfile(config: ExportConfig, folder: str, text: str) -> list[str]:
    """Write the Modelfile of the model in ``folder``; returns the next commands to type."""
    out = Path(config.out)
    runs.atomic_write(out / "Modelfile", text)
    converter = CONVERTER.format(folder=folder, gguf=out / _GGUF)
    return [
        f"{out / 'Modelfile'}: chat template and ends of answers; its prompts are those of the model's own template",
        f"next, with llama.cpp: {converter}",
        f"then:                 ollama create NAME -f {out / 'Modelfile'}",
    ]


def _uploaded(config: ExportConfig) -> list[str]:
    if config.push_to_hub is None:
        return []
    return [f"uploaded: {hub.push(config.out, config.push_to_hub, private=not config.hub_public)}"]


def _rows(config: ExportConfig, files: Any, model: Any) -> list[Tree]:
    if config.data is None:
        return probe_trees(model)
    items = data.read(config.data).items[: config.rows]
    speaker = speaker_of(model, files)
    encoded = speaker.encode(items, max_tokens=speaker.limit_tokens(config.max_tokens))
    if not encoded.trees:
        why = encoded.drops[0].reason if encoded.drops else "no row was read"
        raise AfzalError(
            "there is no row to compare on", where=config.data, why=why, remedy="afzal check shows the rows"
        )
    return list(encoded.trees)


def _logps(model: Any, batches: Sequence[Batch]) -> Tensor:
    """Log-probs ``[M]`` in nats of every scored token of the batches."""
    with torch.no_grad():
        return torch.cat([score(model, batch).token_logps for batch in batches])


def _format(config: ExportConfig) -> str:
    """``bf16`` or ``fp32``, with ``auto`` resolved."""
    if config.dtype != "auto":
        return config.dtype
    return "bf16" if input_format(config.model) == torch.bfloat16 else "fp32"


def _refuse_difference(config: ExportConfig, gap: float, allowed: float) -> None:
    if gap <= allowed:
        return
    raise AfzalError(
        f"the merged model's log-probs differ from the adapter's by {gap:.3g} nats, more than {allowed:.3g}",
        where=config.model,
        why="rounding, or weights that the model ties and that the adapter changes in one place only",
        remedy="dtype=fp32 or a larger tolerance for rounding; otherwise use the adapter's folder with PEFT",
    )


def _copied(config: ExportConfig, folder: str, files: Any) -> list[str]:
    kind = peft_type_of(folder)
    _refuse_given(config, ("data", "dtype", "tolerance"), f"an adapter of type {kind} is copied")
    load_model(config.model)  # refuses an unsound adapter
    out = Path(config.out)
    runs.make_folder(out)
    for name in _ADAPTER_FILES:
        if (Path(folder) / name).exists():
            shutil.copyfile(Path(folder) / name, out / name)
    name_base(out, adapter_base(folder))
    files.save_pretrained(out)
    return [
        f"{config.out}: a copy of the adapter, for PEFT to load on {adapter_base(folder)}",
        f"an adapter of type {kind} cannot be merged: its virtual tokens precede every row, outside the weights",
        *_uploaded(config),
    ]
