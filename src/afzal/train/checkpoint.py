"""Checkpoints that are whole or not there: safetensors files and a JSON manifest with their sizes and hashes.

``folder/step-00000010/`` holds one ``<group>.safetensors`` per group of tensors and ``manifest.json``. It is written
under a temporary name, every file is forced to the disk, the manifest last; then the folder is renamed and its parent
forced to the disk. A checkpoint is used only when its manifest verifies, else the one before it. The order is that of
the step numbers; clocks play no part. One process writes a folder at a time (the run's claim sees to that).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.runs import fsync_folder, read_json, write_all, writing

FORMAT = 1
MANIFEST = "manifest.json"
_TEMPORARY, _REPLACED = ".tmp-", ".replaced-"
_STEP = re.compile(r"(?:\.replaced-)?step-(\d+)")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BLOCK = 1 << 22
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step`` and return its folder, which exists only once everything is on the disk.

    Tensors are written one after another, so that memory grows by at most one of them. Those that share storage are
    written in full and come back separate. Checkpoints of later steps stem from a line that was given up by resuming
    an earlier one; they are removed.

    Args:
        folder: where the checkpoints of a run are.
        step: updates done, >= 0.
        tensors: per group (a file), tensors by name: any strided dtype that safetensors has, on any device.
        state: anything JSON can say; floats come back bit for bit.

    Raises:
        AfzalError: the disk refuses (names path and bytes); earlier checkpoints stay, and nothing half-written does.
        ValueError: a group's or tensor's name, a dtype or the state cannot be stored.
    """
    _check(step, tensors, state)
    final, temporary = folder / f"step-{step:08d}", folder / f"{_TEMPORARY}step-{step:08d}"
    n_bytes = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    with writing(final, n_bytes):
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        try:
            temporary.mkdir()
            files = {f"{name}.safetensors": group for name, group in tensors.items()}
            entries = {name: _write_tensors(temporary / name, group) for name, group in files.items()}
            _write_manifest(temporary, {"format": FORMAT, "step": step, "files": entries, "state": dict(state)})
            fsync_folder(temporary)
            _commit(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for later, path in _checkpoints(folder):
            if later > step:
                _remove(path)
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors (on the CPU) and the state of a checkpoint, after every byte of it has been verified.

    Raises:
        AfzalError: the checkpoint is damaged (names the file) or of a later version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = verify(path)
    tensors = {}
    for name in manifest["files"]:
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(path / name)
        except SafetensorError as error:
            raise _damaged(path, name, str(error)) from error
    return tensors, manifest["state"]


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint of the highest step that verifies, or None; ``warn`` hears of each one passed over, and why."""
    for _, path in reversed(_checkpoints(folder)):
        try:
            verify(path)
        except AfzalError as error:
            warn(f"{error.what}: {error.why}; falling back to the checkpoint before it")
        else:
            return path
    return None


def listed(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in a folder, by step; whether they verify is seen when they are loaded."""
    return _checkpoints(folder)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` checkpoints of the highest steps, and what a killed writer left behind."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: a run needs a checkpoint to resume from")
    with writing(folder):
        for _, path in _checkpoints(folder)[:-keep]:
            _remove(path)
        _clean(folder)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the size and the SHA-256 that it states.

    Raises:
        AfzalError: something does not; ``what`` names the file.
    """
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise _damaged(path, name, "the file is missing")
        if file.stat().st_size != entry["bytes"]:
            raise _damaged(path, name, f"{file.stat().st_size} bytes instead of {entry['bytes']}")
        if _sha256(file) != entry["sha256"]:
            raise _damaged(path, name, "the content does not match its SHA-256")
    return manifest


def step_of(path: Path) -> int:
    """The step that a checkpoint folder's name states."""
    found = _STEP.fullmatch(path.name)
    if not found:
        raise ValueError(f"{path} is not a checkpoint folder")
    return int(found[1])


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """One safetensors file: header length, JSON header, bytes; the widest dtypes come first so that all are aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        t = tensors[name]
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _write_file(path, [len(text).to_bytes(8, "little"), text], (tensors[name] for name in order))


def _write_file(path: Path, head: list[bytes], tensors: Iterator[Tensor]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for data in (*head, *map(_bytes, tensors)):
            write_all(descriptor, data)
            digest.update(data)
            size += len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1)
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except AfzalError as error:
        raise _damaged(path, MANIFEST, error.why or error.what) from error
    if manifest.pop("sha256", None) != _digest(manifest):
        raise _damaged(path, MANIFEST, "the content does not match its own SHA-256")
    if manifest.get("format") != FORMAT:
        why = f"it has format {manifest.get('format')}, this version of Afzal reads format {FORMAT}"
        raise AfzalError(f"cannot use {path}", why=why, remedy="use the version of Afzal that wrote it (see run.json)")
    if manifest.get("step") != step_of(path):
        raise _damaged(path, MANIFEST, f"it is of step {manifest.get('step')}")
    if not isinstance(manifest.get("state"), dict) or not isinstance(manifest.get("files"), dict):
        raise _damaged(path, MANIFEST, "it states no files or no state")
    for name, entry in manifest["files"].items():
        stated = isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        if not (stated and name.endswith(".safetensors") and _GROUP.fullmatch(name)):
            raise _damaged(path, MANIFEST, f"it names the file {name!r}")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _damaged(path: Path, name: str, why: str) -> AfzalError:
    remedy = "resume from another checkpoint: delete this one, and --resume takes the one before it"
    return AfzalError(f"checkpoint {path.name} is damaged in {path / name}", why=why, remedy=remedy)


def _commit(temporary: Path, final: Path) -> None:
    """Rename into place. A checkpoint of the same step is set aside first; a kill in between loses neither."""
    aside = final.with_name(_REPLACED + final.name)
    if final.exists():
        os.replace(final, aside)
    os.replace(temporary, final)
    fsync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    """Rename, then delete: a kill in between leaves rubbish, not half a checkpoint."""
    rubbish = path.with_name(f"{_TEMPORARY}removed-{path.name}")
    shutil.rmtree(rubbish, ignore_errors=True)
    os.replace(path, rubbish)
    shutil.rmtree(rubbish, ignore_errors=True)


def _clean(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_REPLACED}*"):
        if (folder / path.name.removeprefix(_REPLACED)).exists():
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and path, by step; one that was set aside counts when what should replace it never came."""
    if not folder.is_dir():
        return []
    found = {path.name: path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()}
    kept = (p for n, p in found.items() if not (n.startswith(_REPLACED) and n.removeprefix(_REPLACED) in found))
    return sorted((step_of(path), path) for path in kept)


def _check(step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    if step < 0:
        raise ValueError(f"step must not be negative: {step}")
    for group, members in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"{group!r} cannot name a group of tensors: letters, digits, '_', '-' and '.' only")
        for name, tensor in members.items():
            plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in _DTYPES
            if not plain or name == "__metadata__":
                raise ValueError(f"{group}/{name}: a {tensor.layout} {tensor.dtype} tensor cannot be stored")
    _check_keys(state)
    json.dumps(state)


def _check_keys(value: Any) -> None:
    """JSON would turn the key 1 into "1" without a word."""
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the keys of the state must be strings, not {bad[0]!r}")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for member in value:
            _check_keys(member)
