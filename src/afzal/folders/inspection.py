"""Inspect a model folder before anything in it is loaded, and refuse one that could run code or reach outside itself.

A model folder is untrusted input. Loading one can run code in three ways: by unpickling weights, by importing files or
hub kernels that its configuration names, and through file names that lead elsewhere. Weights are read only from
safetensors; pickles next to them are ignored, because every load asks for safetensors (:mod:`.load`). Only the standard
library is imported.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from afzal.errors import AfzalError
from afzal.folders.config_checks import endless_pattern, vocabulary_size, wrong_adapter, wrong_number, wrong_token
from afzal.folders.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, has_whole_weights, tensors_of
from afzal.folders.safetensors_header import read_header

MAX_CONFIG_BYTES = 8 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_VOCABULARY_BYTES = 64 << 20  # twice the largest tokenizer.json there is
MAX_TEMPLATE_BYTES = 1 << 20

_CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".h5", ".msgpack"}
_VOCABULARIES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # the files of a tokenizer and a configuration
MODEL_FILES = ("*.safetensors", *TEXTS)
_UNWANTED = ["*/*.safetensors", "*/*.json", "consolidated*"]  # the same weights again, in other layouts
_VOCABULARY_ENDS = {".json", ".txt", ".model", ".tiktoken"}
_CONFIGS = ("config*.json", "*_config.json", "chat_template.json")
_TEMPLATES = "additional_chat_templates"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}")
_HARMLESS = {"_attn_implementation_autoset"}
_PRIVATE = re.compile(r"_\w*(implementation|kernel)\w*")
# Keys whose value makes a library import or unpickle what it names
_RUNS_CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "custom_generate")
_READS_PICKLES = ("prompt_tuning_init_state_dict_path", "cache_file", "covariance_file")
_FILE_LISTS = ("configuration_files", "fast_tokenizer_files")
_QUANTISED = ("quantization_config", "compression_config")
_SHARDED = re.compile(r"shard-\d+-model-.*\.safetensors|.*\.distcp|\.metadata")  # their reader unpickles sibling files
_CORRECT = "correct it, or get the model from its source again"
_AGAIN = "download it again"
_SAFE_COPY = "use a copy that was saved by transformers itself without custom code (model.save_pretrained)"


def local_folder(model: str, *, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """A local model folder unchanged; for a hub id, the folder in the local cache, so that it can be inspected before
    loading.

    Only safetensors, JSON, templates and vocabularies are downloaded: neither code nor pickles.

    Args:
        patterns: patterns of the files to download.

    Raises:
        OSError, ValueError: errors of huggingface_hub: no such model, no network, a malformed id.
    """
    if Path(model).exists():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=list(patterns), ignore_patterns=_UNWANTED))


def inspect_model_folder(path: str | Path) -> None:
    """Refuse a local model, adapter or checkpoint folder that is not safe and complete, without loading anything.

    An adapter's base model is inspected too when it is a local folder.

    Raises:
        AfzalError: the folder is missing, has no configuration or no safetensors weights, asks to run its own code, or
            names files outside itself. The message names the file and the remedy.
    """
    _inspect_model(Path(path), adapter_allowed=True)


def inspect_tokenizer_folder(path: str | Path) -> None:
    """Like :func:`inspect_model_folder`, for a folder from which only the tokenizer is loaded.

    Raises:
        AfzalError: the folder is missing, has no tokenizer, asks to run its own code, or names files outside itself.
    """
    folder = _existing(Path(path))
    _check_files(folder)
    _check_configs(folder)
    if (folder / "config.json").exists() and (fault := wrong_number(read_config(folder / "config.json"))):
        raise _refusal(folder, "config.json", fault, remedy=_CORRECT)
    if not holds_tokenizer(folder):
        remedy = "save it there with tokenizer.save_pretrained, or take it from the model's source"
        raise AfzalError(
            f"{folder} has no tokenizer", why="there is no tokenizer.json or other vocabulary", remedy=remedy
        )


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of any kind."""
    return any(entry for pattern in _VOCABULARIES for entry in folder.glob(pattern))


def holds_model(folder: Path) -> bool:
    """Whether a folder holds, or claims to hold, model or adapter weights of any kind."""
    if (folder / ADAPTER_CONFIG).exists():
        return True
    weights = any(p.suffix.lower() in {".safetensors", *_PICKLES} for p in folder.iterdir())
    return weights or any(folder.glob("*.index.json"))


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a single configuration file.

    Raises:
        AfzalError: it is not a JSON object, is too large, or asks to run code.
    """
    file = Path(path)
    config = _read(file, file.parent, MAX_CONFIG_BYTES)
    for key, value in _members(config):
        _check_key(file.parent, file.name, key, value)
    return config


def _inspect_model(path: Path, *, adapter_allowed: bool) -> None:
    folder = _existing(path)
    with_config, with_adapter = (folder / "config.json").exists(), (folder / ADAPTER_CONFIG).exists()
    if not with_config and not with_adapter:
        missing = ADAPTER_CONFIG if (folder / ADAPTER_WEIGHTS).exists() else "config.json"
        remedy = (
            f"name the folder that {missing} is in (a finished run's folder, not one of its checkpoints; for "
            "rounds, the policy that run.json names as best)"
        )
        if (folder / "run.json").exists():
            rounds = "for rounds, name the policy that run.json names as best"
            remedy = f"let the run finish: afzal train {folder} --resume; {rounds}"
        raise AfzalError(f"{folder} is not a model folder", why=f"it has no {missing}", remedy=remedy)
    _check_files(folder)
    configs = _check_configs(folder)
    _check_indexes(folder)
    if not with_adapter:
        _check_model(folder, configs)
        return
    if has_whole_weights(folder) or configs.get("config.json", {}).get("transformers_weights"):
        why = "it holds a whole model and an adapter, but only one of them would be used"
        raise _refusal(folder, ADAPTER_CONFIG, why, remedy="keep each of them in its own folder")
    if not adapter_allowed:
        raise _refusal(folder, ADAPTER_CONFIG, "this adapter is itself the base of an adapter")
    _check_adapter(folder, configs[ADAPTER_CONFIG])
    base = base_of(folder)
    if os.path.isdir(base):
        _inspect_model(Path(base), adapter_allowed=False)


def _check_model(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check weights, and the sizes and token ids in the configuration."""
    config = configs["config.json"]
    for key in _QUANTISED:
        if config.get(key):
            method = config[key].get("quant_method", "") if isinstance(config[key], Mapping) else ""
            raise AfzalError(
                f"{folder} holds quantised weights{f' ({method})' if method else ''}",
                where="config.json",
                why="they cannot be trained, and log-probs are compared at a model's original precision",
                remedy="use the unquantised model; quantize=4bit quantises it during loading",
            )
    if not isinstance(config.get("architectures") or [], list):
        raise _refusal(folder, "config.json", "'architectures' is not a list", remedy=_CORRECT)
    _check_weights(folder, config.get("transformers_weights"))
    fault = wrong_number(config, len(tensors_of(folder)))
    if not fault:
        vocabulary = vocabulary_size(config)
        fault = wrong_token(config, vocabulary)
        if not fault and (generation_fault := wrong_token(configs.get("generation_config.json", {}), vocabulary)):
            raise _refusal(folder, "generation_config.json", generation_fault, remedy=_CORRECT)
    if fault:
        raise _refusal(folder, "config.json", fault, remedy=_CORRECT)


def _existing(path: Path) -> Path:
    if not path.exists():
        remedy = "check the path; a model of the hub is named org/name"
        raise AfzalError(f"model folder {path} does not exist", remedy=remedy)
    if not path.is_dir():
        raise AfzalError(f"{path} is a file, not a model folder", remedy=f"name the folder: {path.parent}")
    return path


def _check_files(folder: Path) -> None:
    """Require that every entry is a plain file or folder inside, and none is code. Hidden folders are ignored."""
    inside = _boundary(folder)
    for path in _entries(folder):
        name = str(path.relative_to(folder))
        if not _is_within(Path(os.path.realpath(path)), inside):
            raise _refusal(folder, name, f"it is a link to a place outside the folder: {os.path.realpath(path)}")
        if path.exists() and not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
            raise _refusal(folder, name, "it is a device, pipe or socket")
        if path.suffix.lower() in _CODE:
            raise _refusal(folder, name, "it is program code, which has no place in a model folder", remedy=_SAFE_COPY)
        if _SHARDED.fullmatch(path.name):
            raise _refusal(folder, name, "it is a piece of a distributed checkpoint", remedy=_SAFE_COPY)
        if path.suffix in _VOCABULARY_ENDS and path.parent == folder:
            _check_size(path, folder, MAX_VOCABULARY_BYTES)
        if path.suffix == ".jinja" or path.name == "chat_template.json":
            _check_size(path, folder, MAX_TEMPLATE_BYTES)


def _entries(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in (*folders, *files))


def _boundary(folder: Path) -> Path:
    """The folder itself; for a snapshot in the hub's cache, the model's cache folder, to which its links point by
    design."""
    real = Path(os.path.realpath(folder))
    cached = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    return real.parents[1] if cached else real


def _is_within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _check_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations that transformers reads, by file name; dangerous keys are refused."""
    paths = sorted({p for pattern in _CONFIGS for p in folder.glob(pattern)})
    configs = {path.name: _read(path, folder, MAX_CONFIG_BYTES) for path in paths}
    for name, config in configs.items():
        for key, value in _members(config):
            _check_key(folder, name, key, value)
        _check_templates(folder, name, config.get("chat_template"))
    for path in folder.glob(f"{_TEMPLATES}/*"):
        _check_template_name(folder, f"{_TEMPLATES}/{path.name}", path.stem)
    return configs


def _check_key(folder: Path, name: str, key: str, value: Any) -> None:
    if key in _HARMLESS or (key == "_attn_implementation" and _is_plain(value)):
        return
    if key in _RUNS_CODE and value:
        why = f"it asks to run its own code ({key!r})"
        raise _refusal(
            folder, name, why, remedy=f"{_SAFE_COPY}, or remove {key!r} if transformers knows the architecture"
        )
    if _PRIVATE.fullmatch(key):
        raise _refusal(folder, name, f"it sets a private key of transformers ({key!r})", remedy=f"remove {key!r}")
    if "implementation" in key and not _is_plain(value):
        why = f"it asks for code from the hub for {key!r}: {value!r}"
        raise _refusal(folder, name, why, remedy=f'remove {key!r}, or use a built-in one such as "sdpa"')
    if key in _READS_PICKLES and value:
        raise _refusal(
            folder, name, f"{key!r} names a file that would be unpickled: {value!r}", remedy=f"remove {key!r}"
        )
    if key in _FILE_LISTS and isinstance(value, list) and not all(_is_file_name(v) for v in value):
        raise _refusal(folder, name, f"{key!r} names files outside the folder: {value!r}")


def _check_templates(folder: Path, name: str, template: Any) -> None:
    """Check a template, or several as ``[{"name", "template"}]``: their names become file names when a tokenizer is
    saved."""
    templates = template if isinstance(template, list) else []
    if isinstance(template, Mapping):
        templates = [{"name": k, "template": v} for k, v in template.items()]
    for entry in templates:
        if not isinstance(entry, Mapping):
            raise _refusal(folder, name, "its list of chat templates is malformed")
        _check_template_name(folder, name, entry.get("name"))
    for text in (template, *(entry.get("template") for entry in templates)):
        if isinstance(text, str) and len(text) > MAX_TEMPLATE_BYTES:
            raise _refusal(folder, name, f"a chat template has {len(text)} characters, more than {MAX_TEMPLATE_BYTES}")


def _check_template_name(folder: Path, file: str, name: Any) -> None:
    if not isinstance(name, str) or not _TEMPLATE_NAME.fullmatch(name) or ".." in name:
        raise _refusal(folder, file, f"a chat template has a name that could lead outside the folder: {name!r}")


def _check_indexes(folder: Path) -> None:
    for path in folder.glob("*.safetensors.index.json"):
        shards = _read(path, folder, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(shards, Mapping) or not shards:
            raise _refusal(folder, path.name, "it has no weight_map")
        for shard in sorted({str(value) for value in shards.values()}):
            if not _is_file_name(shard) or not shard.endswith(".safetensors"):
                raise _refusal(folder, path.name, f"it names {shard!r}, which is not a safetensors file of this folder")
            _check_safetensors(folder, shard, named_by=path.name)


def _check_weights(folder: Path, chosen: Any) -> None:
    """Check the weights that transformers will read: the file that the configuration names, the single file, or the
    index's shards."""
    if chosen is not None:
        if not _is_file_name(chosen) or not str(chosen).endswith((".safetensors", ".safetensors.index.json")):
            raise _refusal(folder, "config.json", f"its weights would be read from {chosen!r}", remedy=_SAFE_COPY)
        if chosen.endswith(".safetensors"):
            _check_safetensors(folder, chosen, named_by="config.json")
    elif (folder / "model.safetensors").exists():
        _check_safetensors(folder, "model.safetensors")
    elif not (folder / "model.safetensors.index.json").exists():
        raise _no_weights(folder, "model.safetensors")


def weight_format(folder: str | Path) -> str:
    """The safetensors dtype of most of a folder's weights, such as ``F32`` or ``BF16``; empty if there are none. Reads
    only the headers."""
    sizes: dict[str, int] = {}
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - start
    return max(sizes, key=lambda name: sizes[name], default="")


def _check_safetensors(folder: Path, name: str, named_by: str = "") -> None:
    """Require that the file exists, is safetensors (the length of a JSON header, then the header), and has the stated
    length."""
    path = folder / name
    if not path.is_file():
        raise _refusal(folder, named_by or name, f"the weight file {name} is missing", remedy=_AGAIN)
    try:
        read_header(path)
    except ValueError as error:
        raise _refusal(folder, name, str(error), remedy=_AGAIN) from error


def _no_weights(folder: Path, expected: str) -> AfzalError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _PICKLES)
    if not pickles:
        return AfzalError(f"{folder} has no weights", why=f"there is no {expected}", remedy="download the model again")
    return AfzalError(
        f"{folder} has only pickled weights ({', '.join(pickles[:3])}); they are refused",
        why="reading a pickle runs any code in it",
        remedy="use its safetensors version; if you trust its author, convert it once with transformers elsewhere",
    )


def _check_adapter(folder: Path, config: Mapping[str, Any]) -> None:
    name = ADAPTER_CONFIG
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise _no_weights(folder, ADAPTER_WEIGHTS)
    _check_safetensors(folder, ADAPTER_WEIGHTS)
    if fault := wrong_adapter(config, tensors_of(folder)) or endless_pattern(config):
        raise _refusal(folder, name, fault, remedy=_CORRECT)
    library = (config.get("auto_mapping") or {}).get("parent_library")
    if library is not None and str(library).partition(".")[0] != "transformers":
        raise _refusal(folder, name, f"it asks to import the module {library!r}")
    if config.get("megatron_core") not in (None, "megatron.core"):
        raise _refusal(folder, name, f"it asks to import the module {config['megatron_core']!r}")


def _read(path: Path, folder: Path, limit: int) -> dict[str, Any]:
    _check_size(path, folder, limit)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _refusal(folder, path.name, error.strerror or str(error), remedy=_AGAIN) from error
    except RecursionError as error:
        raise _refusal(folder, path.name, "it is nested too deeply") from error
    except ValueError as error:
        raise _refusal(folder, path.name, f"it is not JSON: {error}", remedy=_AGAIN) from error
    if not isinstance(content, dict):
        raise _refusal(folder, path.name, "it is not a JSON object", remedy=_AGAIN)
    return content


def _check_size(path: Path, folder: Path, limit: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > limit:
        raise _refusal(folder, str(path.relative_to(folder)), f"it has {size} bytes, more than the {limit} allowed")


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON object, at any depth."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield from entry.items()
            waiting.extend(entry.values())
        elif isinstance(entry, list):
            waiting.extend(entry)


def _is_plain(implementation: Any) -> bool:
    """Whether this is a built-in implementation's name, or one per part of the model, not a hub kernel
    (``org/name``)."""
    values = implementation.values() if isinstance(implementation, dict) else [implementation]
    return all(value is None or (isinstance(value, str) and re.fullmatch(r"[\w|.-]*", value)) for value in values)


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and PurePosixPath(value).name == value and "\\" not in value and value != ".."


def _refusal(folder: Path, name: str, why: str, remedy: str = "") -> AfzalError:
    remedy = remedy or "get the model from a source that you trust"
    return AfzalError(f"{folder / name} is refused", why=why, remedy=remedy)
