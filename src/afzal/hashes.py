"""Content hashes of model folders, data, tokens, and code with its imports.

Every byte counts: weights are hashed completely, in parallel, at about the speed of the disk, which loading them needs
anyway. A file is hashed once per process, as long as its size and modification time do not change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal.model.adapters import adapter_base
from afzal.objectives import names_function, own_sources
from afzal.runs import sha256
from afzal.runs.environment import PACKAGES, usable_cpus
from afzal.tokens.tree import Tree

Parts = Mapping[str, str]
"""Hashes by file name, relative to the path that a setting names; ``""`` if the setting names a file."""

# All files that models and tokenizers are loaded from. A run's other files do not affect the model.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tekken.json", "*.model"),
    *("*.tiktoken", "*.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
_CHUNK = 1 << 26  # bytes; the hash of a larger file is the SHA-256 of its chunks' hashes
_HASHED: dict[tuple[str, int, int, int], str] = {}


def parts_of(source: str) -> dict[str, str]:
    """Hashes of everything that ``source`` names: the files of a model folder (with an adapter's base model), of any
    other folder, a single file, the code of a function with its imports, or the revision of a hub id. Empty for any
    other word."""
    path = Path(source)
    if _exists(path):
        if path.is_file():
            return {"": file_hash(path)}
        is_model = any((path / name).exists() for name in ("config.json", "adapter_config.json"))
        return _model_parts(path) if is_model else _hashes(path, (p for p in path.rglob("*") if p.is_file()))
    if names_function(source):
        return function_parts(source)
    revision = _revision(source)
    return {"revision": revision} if revision else {}


def content_hash(source: str) -> str:
    """One SHA-256 over :func:`parts_of`; if there are no parts, over ``source`` itself."""
    parts = parts_of(source)
    return hashlib.sha256(json.dumps(sorted(parts.items()) or source).encode()).hexdigest()


def function_parts(spec: str) -> dict[str, str]:
    """Hashes of a function's file and of the user's own modules that it imports; versions of the installed packages it
    imports."""
    files, packages = own_sources(spec)
    if not files:
        return {}
    first = files[0].resolve().parent
    parts = {"" if k == 0 else os.path.relpath(path, first): file_hash(path) for k, path in enumerate(files)}
    return parts | {f"package {name}": version for name in packages if (version := _version(name))}


def file_hash(path: Path) -> str:
    """The SHA-256 of a file; for a large file, that of its chunk hashes, which several threads compute."""
    stat = path.stat()
    key = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _HASHED:
        _HASHED[key] = sha256(path) if stat.st_size <= _CHUNK else _chunked(path, stat.st_size)
    return _HASHED[key]


def tokens_hash(parts: Iterable[Sequence[Tree]]) -> str:
    """SHA-256 of a run's trees in order: tokens, which of them are scored, and all their annotations."""
    digest = hashlib.sha256()
    for trees in parts:
        digest.update(f"{len(trees)} trees\n".encode())
        for t in trees:
            annotations = [t.item_id, [repr(p) for p in t.preferences], t.labels, t.scores]
            digest.update(json.dumps(annotations).encode())
            _add(digest, t.prompt, np.int32)
            for branch in t.branches:
                _add(digest, branch.ids, np.int32)
                _add(digest, branch.scored, np.uint8)
                for name, values in sorted(branch.numbers.items()):
                    digest.update(name.encode())
                    _add(digest, values, np.float32)
    return digest.hexdigest()


def weights_hash(model: Any) -> str:
    """A fast hash of the weights and buffers of a model in memory. It notices a change of any number; it is not
    cryptographic."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {torch.hash_tensor(value).item()}\n".encode())
    return digest.hexdigest()


def table_hash(table: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a table of log-probs, independent of row order."""
    digest = hashlib.sha256()
    for key in sorted(table):
        digest.update(key.encode())
        _add(digest, table[key], np.float32)
    return digest.hexdigest()


def _add(digest: Any, values: np.ndarray, dtype: Any) -> None:
    digest.update(len(values).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(values, dtype=dtype).tobytes())


def _model_parts(folder: Path) -> dict[str, str]:
    parts = _hashes(folder, (path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()))
    base = adapter_base(folder)
    if base is None:
        return parts
    return parts | {f"base model, {name}" if name else "base model": v for name, v in parts_of(base).items()}


def _hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(set(files))}


def _chunked(path: Path, size: int) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            hashes = list(pool.map(partial(_chunk, descriptor), range(0, size, _CHUNK)))
    finally:
        os.close(descriptor)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _chunk(descriptor: int, start: int) -> bytes:
    digest, end = hashlib.sha256(), start + _CHUNK
    while start < end and (block := os.pread(descriptor, min(1 << 20, end - start), start)):
        digest.update(block)
        start += len(block)
    return digest.digest()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a template or another text, too long for a path
        return False


def _revision(model: str) -> str:
    """The commit of a hub id in the local cache, from which models are loaded; empty if it is not cached."""
    if model.count("/") > 1 or not model.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        return ""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True)).name
    except (OSError, ValueError):
        return ""


@cache  # reads the metadata of all installed packages: a third of a second
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _version(package: str) -> str:
    """The version of the distribution that provides a package; empty if there is none, or if every run records it
    anyway."""
    names = [n for n in _distributions().get(package, ()) if n.lower() not in PACKAGES]
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))
