"""Create, open and find run folders, and write a run's records into its folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from afzal._version import __version__
from afzal.errors import AfzalError
from afzal.runs import lock
from afzal.runs.environment import environment
from afzal.runs.files import (
    append_jsonl,
    atomic_write,
    last_jsonl,
    parse_nonfinite,
    read_json,
    read_jsonl,
    to_json_line,
    writing,
)
from afzal.runs.redact import redact_arguments, redact_command, redact_config

_FACTS, _METRICS, _CONFIG = "run.json", "metrics.jsonl", "run.yaml"
_MAX_DEPTH = 6
_TAIL = 1 << 16  # bytes of a log that are read to list a run
_IGNORED = {"lost+found", lock.NAME, "inputs"}
_REPLIES = {"replies.sqlite", "replies.sqlite-wal", "replies.sqlite-shm"}  # cached replies of servers
_MEASUREMENTS = {
    _METRICS,
    "samples.jsonl",
    "media",
    "best",
    "checkpoints",
    "memory.json",
    "trackers.json",
    "tensorboard",
}
_ROUNDS = "rounds"
_ENDED_EARLY = ("failed", "stopped", "running")
_BEFORE_UPDATES = {_FACTS, _CONFIG, "data.json", "dropped.jsonl"} | _MEASUREMENTS | _REPLIES


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder. Reading needs no preparation; writing needs :meth:`claim` first (``create`` and ``resume`` call
    it).

    As a context manager it releases the claim at the end of the block. If ``writes`` is False, another process does the
    writing: nothing is logged, updated or truncated here.
    """

    path: Path
    writes: bool = True

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints from which a run is resumed."""
        return self.path / "checkpoints"

    def claim(self) -> None:
        """Become the folder's only writer until :meth:`release` or until the process ends in any way.

        Raises:
            AfzalError: another process is writing this run (names it), or the folder cannot be written.
        """
        claim_folder(self.path)

    def release(self) -> None:
        """Release the claim."""
        lock.release(self.path)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, unbuffered. An evaluation also becomes ``latest`` in ``run.json``, so
        that listing runs need not read their logs."""
        if self.writes:
            append_jsonl(self.path / _METRICS, [record])
            if record.get("kind") == "eval":
                self.update(latest=dict(record))

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The logged records in order: all, or those of one kind ("train", "eval")."""
        records = (parse_nonfinite(record) for record in read_jsonl(self.path / _METRICS))
        return [record for record in records if kind is None or record.get("kind") == kind]

    def last(self, kind: str, n_bytes: int | None = None) -> dict[str, Any]:
        """The last record of a kind within the last ``n_bytes`` bytes of the log; empty if there is none."""
        return parse_nonfinite(last_jsonl(self.path / _METRICS, "kind", kind, n_bytes) or {})

    def latest(self, kind: Literal["eval", "train"], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The last evaluation or update, without reading a long log; empty if there is none near its end. ``facts``:
        the content of ``run.json``, if it has been read already."""
        latest = (self.facts() if facts is None else facts).get("latest") if kind == "eval" else None
        return parse_nonfinite(latest) if isinstance(latest, dict) else self.last(kind, _TAIL)

    def metrics_bytes(self) -> int:
        """Force ``metrics.jsonl`` to disk and return its size, for checkpoints."""
        with writing(self.path / _METRICS):
            descriptor = os.open(self.path / _METRICS, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.fsync(descriptor)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def truncate_metrics(self, n_bytes: int) -> None:
        """Truncate ``metrics.jsonl`` to its length at a checkpoint, so that no step is logged twice.

        Raises:
            AfzalError: the file is shorter, so lines are missing.
        """
        if not self.writes:
            return
        path = self.path / _METRICS
        size = self.metrics_bytes()
        if size < n_bytes:
            raise AfzalError(
                f"{path} is {size} bytes long, but was {n_bytes} when the checkpoint was made",
                why="lines of the log are missing, so the resumed log would have a gap",
                remedy="restore the file, or start again with another --out",
            )
        with writing(path):
            os.truncate(path, n_bytes)
        self.update(latest=self.last("eval"))

    def update(self, **facts: Any) -> None:
        """Replace these keys of ``run.json``; readers see the old or the new facts. Secrets are hidden."""
        if not self.writes:
            return
        if "command" in facts:
            facts["command"] = redact_command(str(facts["command"]))
        self._write_facts(self.facts() | facts)

    def facts(self) -> dict[str, Any]:
        """The facts in ``run.json``.

        Raises:
            AfzalError: the file is missing or damaged.
        """
        return read_json(self.path / _FACTS)

    def status(self, facts: Mapping[str, Any] | None = None) -> str:
        """The status in the facts; ``interrupted`` if that says ``running`` but no process is writing the folder."""
        status = str((self.facts() if facts is None else facts).get("status", "unknown"))
        return "interrupted" if status == "running" and lock.holder(self.path) is None else status

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        strict = json.loads(to_json_line(redact_config(facts)))
        atomic_write(self.path / _FACTS, json.dumps(strict, indent=2, ensure_ascii=False) + "\n")


def create(path: str | Path, config: Mapping[str, Any]) -> Run:
    """A new, claimed run folder with its configuration and first facts. Nothing that exists is ever overwritten.

    ``run.json`` starts with the version, status ``running``, the command line, the start time, versions and hardware.
    Secrets in the command line and the configuration are hidden.

    Raises:
        AfzalError: the folder is not empty (the remedy says whether it can be resumed), is being written by another
            process, or cannot be written.
    """
    path = Path(path)
    if (holder := lock.holder(path)) is not None:
        raise _busy(path, holder)
    refuse_used(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    run = Run(path)
    run.claim()
    try:
        refuse_used(path)  # again: another process may have been first
        _remove_measurements(path)
        atomic_write(path / _CONFIG, _yaml(config))
        run._write_facts(_first_facts())
    except BaseException:
        run.release()
        raise
    return run


def open_run(path: str | Path) -> Run:
    """An existing run folder, for reading.

    Raises:
        AfzalError: there is no run there.
    """
    path = Path(path)
    if not (path / _FACTS).is_file():
        why = "the folder does not exist" if not path.exists() else f"it has no {_FACTS}"
        raise AfzalError(f"{path} is not a run folder", why=why, remedy="list the runs with: afzal runs")
    return Run(path)


IN_MEMORY = "in-memory model"
"""Recorded as the model's path if a run was given a model object without one."""


def start_in(facts: Mapping[str, Any]) -> str:
    """The model that a run started from, according to its facts: a folder or a hub id; empty if they name none."""
    model = facts.get("model")
    start = str(model.get("path") or "") if isinstance(model, Mapping) else ""
    return "" if start == IN_MEMORY else start


def start_of(path: str | Path) -> str:
    """The model that the run in a folder started from; empty if unknown or if the folder is not a run."""
    try:
        return start_in(open_run(path).facts())
    except AfzalError:
        return ""


def resume(path: str | Path) -> Run:
    """Open an existing run folder and claim it to continue writing.

    Raises:
        AfzalError: there is no run there, or another process is writing it.
    """
    run = open_run(path)
    run.claim()
    return run


def find(root: str | Path) -> list[Run]:
    """The runs in a folder and up to six levels below it, sorted by path.

    Raises:
        AfzalError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise AfzalError(f"there is no folder {root}", remedy="name the folder that holds your runs: afzal runs FOLDER")
    return [Run(folder) for folder, files in walk(root) if any(f.name == _FACTS for f in files) and _is_run(folder)]


def walk(root: Path, depth: int = _MAX_DEPTH) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """A folder and the folders below it, sorted by path, each with its files (including links).

    Hidden folders, checkpoints, linked folders and unreadable folders are skipped.

    Args:
        depth: number of levels below the root.
    """
    try:
        with os.scandir(root) as entries:
            is_folder_of = {entry: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:  # unreadable, or removed in the meantime
        return
    yield root, [entry for entry, is_folder in is_folder_of.items() if not is_folder]
    for name in sorted(entry.name for entry, is_folder in is_folder_of.items() if is_folder) if depth else ():
        if name != "checkpoints" and not name.startswith("."):
            yield from walk(root / name, depth - 1)


def _is_run(path: Path) -> bool:
    try:
        return "afzal" in read_json(path / _FACTS)
    except AfzalError:
        return False


_WAIT = "wait for it, or stop it and continue its run with --resume; or choose another --out"


def claim_folder(path: Path, activity: str = "being written", remedy: str = _WAIT, file: Path | None = None) -> None:
    """Make this process the folder's only writer, until ``lock.release`` or until it ends.

    Args:
        file: a file in the folder to claim instead of the folder.

    Raises:
        AfzalError: another process holds the folder (the message says "is ``activity`` by another process", names it
            and gives ``remedy``), or the folder cannot be written.
    """
    with writing(path):
        holder = lock.acquire(path) if file is None else lock.acquire(path, lock.name_for(file))
    if holder is not None:
        raise _busy(file or path, holder, activity, remedy)


def _busy(path: Path, holder: Mapping[str, Any], activity: str = "being written", remedy: str = _WAIT) -> AfzalError:
    holder_text = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    return AfzalError(f"{path} is {activity} by another process", why=holder_text, remedy=remedy)


def refuse_used(path: Path) -> None:
    """Refuse a folder that is not empty. Hidden files, a mount's ``lost+found``, a lock that nobody holds and rows that
    were given in memory (``inputs``) do not count. Neither does a run that failed or was killed before its first
    update, so that a corrected command can use the same folder.

    Raises:
        AfzalError: the folder is in use; says whether its run can be resumed.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith(".") and name not in _IGNORED)
    except FileNotFoundError:
        return
    except OSError as error:
        with writing(path):
            raise error
    if not names or _ended_untrained(path, names):
        return
    if _is_run(path):
        step = Run(path).facts().get("step", 0)
        remedy = "continue it with --resume, or choose another --out"
        raise AfzalError(f"{path} already holds a run (at step {step}); nothing was overwritten", remedy=remedy)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise AfzalError(
        f"{path} is not empty and is not a run: nothing was overwritten",
        why=f"it holds {listed}",
        remedy="choose another --out",
    )


def _ended_untrained(path: Path, names: Sequence[str]) -> bool:
    """Whether the folder holds a run that failed, was stopped or was killed before its first update, and nothing
    else."""
    # rounds whose first stage failed leave empty folders
    leftovers = _BEFORE_UPDATES | (set() if _holds_files(path / _ROUNDS) else {_ROUNDS})
    if not _is_run(path) or not set(names) <= leftovers or any((path / "checkpoints").glob("[!.]*")):
        return False
    facts = Run(path).facts()
    if facts.get("step", 0) != 0 or facts.get("status") not in _ENDED_EARLY or lock.is_elsewhere(path):
        return False
    return all(line.get("kind") != "train" and line.get("step") == 0 for line in Run(path).metrics())


def _holds_files(path: Path) -> bool:
    """Whether there is any file in a folder or below it."""
    return any(any(files) for _, _, files in os.walk(path))


def _remove_measurements(path: Path) -> None:
    """Remove the measurements of a run that failed before its first update."""
    with writing(path):
        for name in _MEASUREMENTS:
            place = path / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)


def _first_facts() -> dict[str, Any]:
    return {
        "afzal": __version__,
        "status": "running",
        "command": redact_arguments([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),  # to which relative paths in the settings refer
        "step": 0,
        "latest": {},
        **environment(),
    }


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(redact_config(config), default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
