"""The content of what a setting names, as hashes: model folders, data, code with what it imports; and of tokens.

Every byte counts: weights are hashed whole, in parallel, at about the speed of the disk, which loading them waits for
anyway. A file is hashed once per process, for as long as its size and time stay.
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
"""Hashes by the name of what was hashed, relative to what a setting names; ``""`` is a file that it names itself."""

# All that models and tokenizers are loaded from. A run writes more into its folder, which decides nothing.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tekken.json", "*.model"),
    *("*.tiktoken", "*.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
_CHUNK = 1 << 26  # bytes; larger files are hashed as the SHA-256 of those of their chunks
_HASHED: dict[tuple[str, int, int, int], str] = {}


def parts_of(source: str) -> dict[str, str]:
    """What ``source`` names, part by part: the files of a model's folder and of the base model of an adapter, of any
    other folder, a file, the code of a function with what it imports, the revision of a hub id; nothing of a word."""
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
    """One SHA-256 of :func:`parts_of`; of a hub id or a word without parts, of the word itself."""
    found = parts_of(source)
    return hashlib.sha256(json.dumps(sorted(found.items()) or source).encode()).hexdigest()


def function_parts(spec: str) -> dict[str, str]:
    """The files of a function and of everything that it imports, of one's own code; versions of installed packages."""
    files, packages = own_sources(spec)
    if not files:
        return {}
    first = files[0].resolve().parent
    found = {"" if k == 0 else os.path.relpath(path, first): file_hash(path) for k, path in enumerate(files)}
    return found | {f"package {name}": version for name in packages if (version := _version(name))}


def file_hash(path: Path) -> str:
    """The SHA-256 of a file; of a large one that of the hashes of its chunks, which are read by several threads."""
    about = path.stat()
    key = (os.path.realpath(path), about.st_size, about.st_mtime_ns, about.st_ino)
    if key not in _HASHED:
        _HASHED[key] = sha256(path) if about.st_size <= _CHUNK else _chunked(path, about.st_size)
    return _HASHED[key]


def tokens_hash(parts: Iterable[Sequence[Tree]]) -> str:
    """SHA-256 of trees as a run sees them, in their order: tokens, which of them count, and all that is known."""
    digest = hashlib.sha256()
    for trees in parts:
        digest.update(f"{len(trees)} trees\n".encode())
        for t in trees:
            known = [t.item_id, [repr(p) for p in t.preferences], t.labels, t.scores]
            digest.update(json.dumps(known).encode())
            _add(digest, t.prompt, np.int32)
            for branch in t.branches:
                _add(digest, branch.ids, np.int32)
                _add(digest, branch.scored, np.uint8)
                for name, values in sorted(branch.numbers.items()):
                    digest.update(name.encode())
                    _add(digest, values, np.float32)
    return digest.hexdigest()


def weights_hash(model: Any) -> str:
    """A hash of the weights and buffers of a model in memory, at the speed of the memory: one that notices a change of
    any number, and that is no protection against somebody who means to deceive."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {torch.hash_tensor(value).item()}\n".encode())
    return digest.hexdigest()


def table_hash(table: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a table of log-probs, whatever the order of its rows."""
    digest = hashlib.sha256()
    for key in sorted(table):
        digest.update(key.encode())
        _add(digest, table[key], np.float32)
    return digest.hexdigest()


def _add(digest: Any, values: np.ndarray, dtype: Any) -> None:
    digest.update(len(values).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(values, dtype=dtype).tobytes())


def _model_parts(folder: Path) -> dict[str, str]:
    found = _hashes(folder, (path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()))
    base = adapter_base(folder)
    if base is None:
        return found
    return found | {f"base model, {name}" if name else "base model": v for name, v in parts_of(base).items()}


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
    """The commit of a hub id in the hub's cache, which is what a model is loaded from; empty where there is none."""
    if model.count("/") > 1 or not model.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
        return ""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True)).name
    except (OSError, ValueError):
        return ""


@cache  # all that is installed is read for it, a third of a second
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _version(package: str) -> str:
    """Of the distribution that gives a package; empty for one whose version every run writes down, and for none."""
    names = [n for n in _distributions().get(package, ()) if n.lower() not in PACKAGES]
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))
