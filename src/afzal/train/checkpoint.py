"""Atomic checkpoints: safetensors files and a JSON manifest with their sizes and hashes.

``folder/step-00000010/`` holds one ``<group>.safetensors`` per group of tensors and ``manifest.json``. It is written
under a temporary name, with every file synced to disk and the manifest last; then the folder is renamed and its parent
synced. A checkpoint is used only if its manifest verifies, else the one before it. Checkpoints are ordered by step
number, not by time. One process writes a folder at a time (the run's claim ensures that).

Several ranks write together into a shared folder. If a group has sharded tensors, each rank writes its own parts as
``<group>-00001-of-00002.safetensors``, and the manifest says which part of which tensor is where. Any number of ranks
can read them, each what it needs. Rank 0 writes everything else and renames the folder once all parts are there.
All functions but :func:`listed`, :func:`step_of`, :func:`shapes` and :func:`fill` must be called by all ranks together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afzal.errors import AfzalError
from afzal.runs import fsync_folder, writing
from afzal.train import ranks
from afzal.train.dtensor import local
from afzal.train.manifest import (
    GROUP,
    MANIFEST,
    check_files,
    damaged,
    digest,
    entries_of,
    files_of,
    is_checkpoint,
    read_manifest,
    step_of,
    write_manifest,
)
from afzal.train.shard_layout import (
    Entry,
    Read,
    box_of,
    describe,
    is_writer,
    join_layouts,
    may_be_sharded,
    overlapping_reads,
    shard_name,
)
from afzal.train.tensorfile import DTYPES, write_tensors

_TEMPORARY, _REPLACED = ".tmp-", ".replaced-"
_TORCH = {name: dtype for dtype, name in DTYPES.items()}
T = TypeVar("T")


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step`` and return its folder, which exists only once everything is on disk.

    Tensors are written one by one, so memory grows by at most one of them. Tensors that share storage are each written
    in full and come back separate. Checkpoints of later steps belong to a history that was abandoned by resuming from
    an earlier step; they are removed.

    Args:
        folder: where the checkpoints of a run are.
        step: updates done, >= 0.
        tensors: per group (a file), tensors by name: strided, any dtype that safetensors has, on any device. Each rank
            writes its part of a DTensor; rank 0 writes other tensors, which are the same on all ranks.
        state: rank 0's state, a JSON value; floats come back bit for bit.

    Raises:
        AfzalError: writing failed (names path and bytes); earlier checkpoints stay, incomplete files do not. Raised on
            all ranks if one fails.
        ValueError: a group's or tensor's name, a dtype or the state cannot be stored.
    """
    _check(step, tensors, state)
    final, temporary = folder / f"step-{step:08d}", folder / f"{_TEMPORARY}step-{step:08d}"
    local_tensors = [local(t) for group in tensors.values() for t in group.values() if is_writer(t)]
    with_fault = partial(writing, final, sum(t.numel() * t.element_size() for t in local_tensors))
    try:
        _by_first(partial(_begin, folder, temporary), with_fault)
        written = _by_all(partial(_write, temporary, tensors), with_fault)
        _by_first(partial(_complete, temporary, final, step, written, state), with_fault)
    except BaseException:
        if ranks.leads():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors (full, on the CPU) and the state of a checkpoint, after verifying every byte of it.

    Raises:
        AfzalError: the checkpoint is damaged (names the file) or from a later version.
    """
    manifest = verify(path)
    return {group: read(path, group) for group in files_of(manifest)}, manifest["state"]


def read(path: Path, group: str) -> dict[str, Tensor]:
    """A group's tensors (full, on the CPU) from a checkpoint that :func:`newest` or :func:`verify` has verified; empty
    if it does not have the group."""
    manifest = read_manifest(path)
    entries = entries_of(path, manifest, group) if group in files_of(manifest) else {}
    tensors = {name: torch.empty(entry["shape"], dtype=_TORCH[entry["dtype"]]) for name, entry in entries.items()}
    _fill(path, entries, tensors)
    return tensors


def state_of(path: Path) -> dict[str, Any]:
    """The state of a checkpoint that :func:`newest` or :func:`verify` has verified."""
    return read_manifest(path)["state"]


def shapes(path: Path, group: str) -> dict[str, tuple[int, ...]]:
    """Names and full shapes of a group's tensors in a verified checkpoint; empty if it does not have the group."""
    manifest = read_manifest(path)
    entries = entries_of(path, manifest, group) if group in files_of(manifest) else {}
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def fill(path: Path, group: str, targets: Mapping[str, Tensor]) -> None:
    """Copy a group's tensors from a verified checkpoint into ``targets``, by name and in place.

    A target may be a DTensor, sharded in any way over any number of ranks; only this rank's part is read.

    Raises:
        AfzalError: a target is not in the checkpoint or has another shape or dtype there, or the files do not match the
            manifest.
    """
    manifest = read_manifest(path)
    _fill(path, entries_of(path, manifest, group) if group in files_of(manifest) else {}, targets)


def fingerprint(path: Path, group: str) -> str:
    """A hash of a group's tensors according to the manifest, without reading the tensors."""
    manifest = read_manifest(path)
    hashes = [manifest["files"][name]["sha256"] for name in files_of(manifest)[group]]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint with the highest step that verifies, or None; ``warn`` receives a message for each one skipped."""
    # rank 0's listing counts: a network file system may show different ranks different contents at one moment
    for name in ranks.agreed([path.name for _, path in reversed(listed(folder))]):
        try:
            verify(folder / name)
        except AfzalError as error:
            warn(f"{error.what}: {error.why}; falling back to the checkpoint before it")
        else:
            return folder / name
    return None


def listed(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in a folder, by step; they are not verified."""
    if not folder.is_dir():
        return []
    folders = {path.name: path for path in folder.iterdir() if is_checkpoint(path.name) and path.is_dir()}
    # a checkpoint that was set aside counts if its replacement never arrived
    current = (p for n, p in folders.items() if not (n.startswith(_REPLACED) and n.removeprefix(_REPLACED) in folders))
    return sorted((step_of(path), path) for path in current)


def prune(folder: Path, keep: int, planned: Callable[[int], bool] = lambda step: True) -> None:
    """Remove all checkpoints but those of :func:`steps_to_keep`, and the remains of killed writers."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: a run needs a checkpoint to resume from")
    _by_first(partial(_prune, folder, keep, planned), partial(writing, folder))


def steps_to_keep(steps: Sequence[int], keep: int, planned: Callable[[int], bool]) -> set[int]:
    """The steps whose checkpoints stay: the ``keep`` highest planned ones, and enough of the later ones to make
    ``keep`` in all, at least one.

    Args:
        steps: of all checkpoints, ascending.
        planned: whether a step's checkpoint was requested by step number. The others were written by the clock or on a
            signal, only to resume from.
    """
    chosen = [step for step in steps if planned(step)][-keep:]
    unplanned = [step for step in steps if not planned(step) and step > max(chosen, default=-1)]
    return {*chosen, *unplanned[-max(1, keep - len(chosen)) :]}


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after checking the size and SHA-256 of every file.

    Raises:
        AfzalError: a file differs; ``what`` names it. Each rank reads some of the files; all raise.
    """
    manifests: list[dict[str, Any]] = []
    digests = _by_all(lambda: digest(_verify_share(path, manifests)), nullcontext)
    if len(set(digests)) > 1:
        raise damaged(path, MANIFEST, "the ranks do not read the same")
    return manifests[0]


def _begin(folder: Path, temporary: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _clean(folder)
    temporary.mkdir()


def _write(temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write this rank's files; return their entries, and this rank's parts of sharded tensors."""
    if not temporary.is_dir():
        why = f"rank {ranks.rank()} does not see the folder that rank 0 created"
        raise AfzalError(f"cannot write {temporary}", why=why, remedy="choose a folder (--out) that all machines share")
    files, parts = {}, {}
    for group, members in tensors.items():
        sharded = may_be_sharded(members)
        local_tensors = {name: local(t) for name, t in members.items() if is_writer(t)}
        if sharded:
            parts[group] = describe(members)
        if local_tensors or (ranks.leads() and not sharded):
            name = shard_name(group, ranks.rank()) if sharded else f"{group}.safetensors"
            files[name] = write_tensors(temporary / name, local_tensors)
    return {"files": files, "parts": parts}


def _complete(
    temporary: Path, final: Path, step: int, written: Sequence[Mapping[str, Any]], state: Mapping[str, Any]
) -> None:
    """Write the manifest and rename the folder, which completes the checkpoint."""
    files = {name: entry for theirs in written for name, entry in theirs["files"].items()}
    for name, entry in files.items():
        if ranks.world() > 1 and (temporary / name).stat().st_size != entry["bytes"]:
            raise AfzalError(f"cannot write {temporary / name}", why="rank 0 does not see all of another rank's data")
    parts = {}
    for group in written[0]["parts"]:
        names = [shard_name(group, rank) for rank in range(ranks.world())]
        parts[group] = join_layouts([theirs["parts"].get(group, {}) for theirs in written], names)
    write_manifest(temporary, step, files, parts, state)
    fsync_folder(temporary)
    _commit(temporary, final)
    for later, path in listed(final.parent):
        if later > step:
            _remove(path)


def _prune(folder: Path, keep: int, planned: Callable[[int], bool]) -> None:
    checkpoints = listed(folder)
    stay = steps_to_keep([step for step, _ in checkpoints], keep, planned)
    for step, path in checkpoints:
        if step not in stay:
            _remove(path)
    _clean(folder)


def _verify_share(path: Path, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Check this rank's share of the files and return the manifest, also through ``manifests``."""
    manifest = read_manifest(path)
    names = list(manifest["files"])
    share = ranks.divide([entry["bytes"] for entry in manifest["files"].values()], ranks.world())[ranks.rank()]
    check_files(path, manifest, (names[i] for i in share))
    manifests.append(manifest)
    return manifest


def _by_all(work: Callable[[], T], context: Callable[[], AbstractContextManager[Any]]) -> list[T]:
    """Like :func:`ranks.by_all`, for work in a context."""

    def work_in_context() -> T:
        with context():
            return work()

    return ranks.by_all(work_in_context)


def _by_first(work: Callable[[], None], context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Have rank 0 do something while the others wait; a failure there is raised on all ranks."""
    _by_all(lambda: work() if ranks.leads() else None, context)


def _fill(path: Path, entries: Mapping[str, Entry], targets: Mapping[str, Tensor]) -> None:
    reads: dict[str, list[tuple[Read, Entry, Tensor]]] = {}
    for name, target in targets.items():
        entry = entries.get(name)
        if entry is None or list(target.shape) != entry["shape"] or DTYPES.get(target.dtype) != entry["dtype"]:
            actual = "no such tensor" if entry is None else f"{entry['dtype']} {entry['shape']} there"
            why = f"{name} is {DTYPES.get(target.dtype)} {list(target.shape)} here, {actual}"
            raise AfzalError(f"checkpoint {path} is not of this model", why=why, remedy="give the settings of run.yaml")
        for file, read in overlapping_reads(name, entry, box_of(target)).items():
            reads.setdefault(file, []).append((read, entry, local(target.detach())))
    for name, file_reads in reads.items():
        try:
            with safe_open(path / name, "pt") as file:
                for read, entry, destination in file_reads:
                    _copy(file, read, entry, destination)
        except (OSError, SafetensorError, ValueError) as error:
            raise damaged(path, name, str(error)) from error


def _copy(file: Any, read: Read, entry: Entry, destination: Tensor) -> None:
    part = file.get_tensor(read.name)  # a view of the file: only the copied part is read
    if DTYPES.get(part.dtype) != entry["dtype"] or list(part.shape) != read.piece_shape:
        raise ValueError(f"{read.name} is {part.dtype} {list(part.shape)} in it")
    destination[read.target].copy_(part[read.source])


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


def _check(step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    if step < 0:
        raise ValueError(f"step must not be negative: {step}")
    for group, members in tensors.items():
        if not GROUP.fullmatch(group):
            raise ValueError(f"{group!r} cannot name a group of tensors: letters, digits, '_', '-' and '.' only")
        for name, tensor in members.items():
            plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in DTYPES
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
