"""The manifest of a checkpoint: sizes and hashes of its files, locations of tensor parts, and the state."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from afzal.errors import AfzalError
from afzal.runs import new_file, read_json, sha256, write_all
from afzal.train.shard_layout import Entry, layout_fault, size_of

WHOLE, IN_PARTS = 1, 2  # formats; versions that read only unsharded tensors refuse the second
MANIFEST = "manifest.json"
GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_STEP = re.compile(r"(?:\.replaced-)?step-(\d+)")
_SUFFIX = ".safetensors"


def is_checkpoint(name: str) -> bool:
    """Whether a folder has the name of a checkpoint, including one that was set aside."""
    return _STEP.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _STEP.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path} is not a checkpoint folder")
    return int(match[1])


def write_manifest(
    folder: Path,
    step: int,
    files: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Entry]],
    state: Mapping[str, Any],
) -> None:
    """Write the manifest of the files in ``folder``; ``parts`` holds the groups with tensors spread over several
    files."""
    manifest = {"format": IN_PARTS if parts else WHOLE, "step": step, "files": dict(files), "state": dict(state)}
    if parts:
        manifest["parts"] = parts
    text = json.dumps(manifest | {"sha256": digest(manifest)}, indent=None if parts else 1)
    with new_file(folder / MANIFEST) as descriptor:
        write_all(descriptor, text.encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint's manifest, without reading the files it lists.

    Raises:
        AfzalError: it is damaged, from a later version, or lists something it must not.
    """
    try:
        manifest = read_json(path / MANIFEST)
    except AfzalError as error:
        raise damaged(path, MANIFEST, error.why or error.what) from error
    if manifest.pop("sha256", None) != digest(manifest):
        raise damaged(path, MANIFEST, "the content does not match its own SHA-256")
    if manifest.get("format") not in (WHOLE, IN_PARTS):
        why = f"it has format {manifest.get('format')}, this version of Afzal reads formats {WHOLE} and {IN_PARTS}"
        raise AfzalError(f"cannot use {path}", why=why, remedy="use the version of Afzal that wrote it (see run.json)")
    if manifest.get("step") != step_of(path):
        raise damaged(path, MANIFEST, f"it is of step {manifest.get('step')}")
    manifest.setdefault("parts", {})
    if not all(isinstance(manifest.get(key), dict) for key in ("state", "files", "parts")):
        raise damaged(path, MANIFEST, "it states no files or no state")
    for name, entry in manifest["files"].items():
        well_formed = isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() and type(entry["bytes"]) is int
        if not (well_formed and name.endswith(_SUFFIX) and GROUP.fullmatch(name)):
            raise damaged(path, MANIFEST, f"it names the file {name!r}")
    for group, entries in manifest["parts"].items():
        if fault := _fault(entries, manifest["files"]):
            raise damaged(path, MANIFEST, f"of {group!r} it says {fault}")
    return manifest


def check_files(path: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check the size and SHA-256 of some of a checkpoint's files.

    Raises:
        AfzalError: one differs; ``what`` names it.
    """
    for name in names:
        file, entry = path / name, manifest["files"][name]
        if file.is_symlink() or not file.is_file():
            raise damaged(path, name, "the file is missing")
        if file.stat().st_size != entry["bytes"]:
            raise damaged(path, name, f"{file.stat().st_size} bytes instead of {entry['bytes']}")
        if sha256(file) != entry["sha256"]:
            raise damaged(path, name, "the content does not match its SHA-256")


def files_of(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """The file names of every group."""
    parts = manifest["parts"]
    files_by_group = {
        g: sorted({file for e in entries.values() for file in e["pieces"]}) for g, entries in parts.items()
    }
    in_parts = {file for files in files_by_group.values() for file in files}
    return {n.removesuffix(_SUFFIX): [n] for n in manifest["files"] if n not in in_parts} | files_by_group


def entries_of(path: Path, manifest: Mapping[str, Any], group: str) -> dict[str, Entry]:
    """The location of each tensor of a group; for an unsharded group, from the header of its file.

    Raises:
        AfzalError: the file is damaged.
    """
    if group in manifest["parts"]:
        return manifest["parts"][group]
    (name,) = files_of(manifest)[group]
    entries = {}
    try:
        with safe_open(path / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a dictionary
                part = file.get_slice(key)
                shape = part.get_shape()
                pieces = {} if 0 in shape else {name: [[0] * len(shape), shape]}
                entries[key] = {"dtype": part.get_dtype(), "shape": shape, "pieces": pieces}
                if why := layout_fault(entries[key]):
                    raise damaged(path, name, f"{key}: {why}")
    except (OSError, SafetensorError) as error:
        raise damaged(path, name, str(error)) from error
    return entries


def digest(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest's content, independent of spacing and order."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, name: str, why: str) -> AfzalError:
    """The error for an unusable checkpoint, naming the damaged file."""
    remedy = "resume from another checkpoint: delete this one, and --resume takes the one before it"
    return AfzalError(f"checkpoint {path.name} is damaged in {path / name}", why=why, remedy=remedy)


def _fault(entries: Any, files: Mapping[str, Any]) -> str:
    if not isinstance(entries, dict):
        return f"{entries!r}"
    for name, entry in entries.items():
        if why := layout_fault(entry):
            return f"{name}: {why}"
        if unknown := entry["pieces"].keys() - files.keys():
            return f"{name}: a piece is in {min(unknown)!r}"
        if any(size_of(entry, size) > files[file]["bytes"] for file, (_, size) in entry["pieces"].items()):
            return f"{name}: more than is in the file"
    return ""
