"""One writer per run folder, by a ``filelock`` on ``run.lock``; and one per output file, by one on ``FILE.lock``.

The kernel holds the lock: it ends with the process, however that dies, and it works across machines that share a file
system. The file's text names the lock's holder, for messages. On a file system that cannot lock, the process named in
the file decides: if it no longer runs, the folder is free.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.runs.files import write_all

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = "run.lock"
_PATIENCE = 0.5  # seconds: a reader that checks for a writer holds the lock for an instant
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)  # EBADF: NFS, opened to read
# A pipe of that name must not block a reader, and a link of that name must not redirect the record into another file.
_READ, _NOT_ELSEWHERE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)
_held: dict[tuple[int, str], BaseFileLock | None] = {}  # (process, lock file); None if the file system cannot lock


def acquire(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    """Take the folder's lock for this process. Returns None on success (or if already held), else the record of its
    holder.

    Args:
        name: of the lock file; :func:`name_for` gives the one of a single output file in the folder.

    Raises:
        OSError: the lock file cannot be written.
    """
    key, path = _key(folder, name), folder / name
    if key in _held:
        return None
    try:
        lock = _acquire_file_lock(path)
    except TimeoutError:
        return _record_in(path)
    if lock is None and _is_alive(record := _record_in(path)):
        return record
    try:
        _write_record(path)
    except BaseException:
        _release_file_lock(lock)
        raise
    _held[key] = lock
    return None


def release(folder: Path, name: str = NAME) -> None:
    """Release the lock and remove its file, if this process holds it."""
    key = _key(folder, name)
    if key not in _held:
        return
    lock = _held.pop(key)
    with suppress(OSError):  # while the lock is still held, so that a waiting process sees that the file is gone
        (folder / name).unlink(missing_ok=True)
    _release_file_lock(lock)


def name_for(file: Path) -> str:
    """The name of the lock file of a single output file, next to it."""
    return f"{file.name}.lock"


def holder(folder: Path) -> dict[str, Any] | None:
    """The process that is writing the folder now (``{"pid", "host", "since"}``), or None."""
    if _key(folder) in _held:
        return _own_record()
    try:
        descriptor = os.open(folder / NAME, _READ)
    except OSError:
        return None
    try:
        return _record(descriptor) if _is_locked_by_process(descriptor) else None
    finally:
        os.close(descriptor)


def is_elsewhere(folder: Path) -> bool:
    """Whether another process is writing the folder now."""
    return _key(folder) not in _held and holder(folder) is not None


def _acquire_file_lock(path: Path) -> BaseFileLock | None:
    """Lock a file; None if the file system cannot lock.

    Raises:
        TimeoutError: another process holds it.
        OSError: the file cannot be opened.
    """
    from filelock import FileLock

    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=_PATIENCE)
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            return None
        raise
    return lock


def _release_file_lock(lock: BaseFileLock | None) -> None:
    if lock is not None:
        lock.release(force=True)


def _is_locked_by_process(descriptor: int) -> bool:
    """Whether another process holds the lock. Readers hold it for an instant too, so a lock whose file names no living
    process is tried again."""
    for wait in (0.02, 0.05, None):
        if not _is_locked(descriptor):
            return False
        if _is_alive(_record(descriptor)) or wait is None:
            return True
        time.sleep(wait)
    return True


def _is_locked(descriptor: int) -> bool:
    from filelock import lock_descriptor, unlock_descriptor

    try:
        if not lock_descriptor(descriptor, blocking=False):
            return True
    except OSError as error:
        return error.errno not in _CANNOT_LOCK or _is_alive(_record(descriptor))
    unlock_descriptor(descriptor)
    return False


def _is_alive(record: dict[str, Any]) -> bool:
    """Whether the recorded process still runs; a process on another machine counts as running."""
    pid = record.get("pid")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    if record.get("host") != socket.gethostname():
        return True
    if os.name != "posix":  # elsewhere, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _start_time(pid) in ("", record.get("started", ""))


def _start_time(pid: int) -> str:
    """The kernel's start time of a process, which a reused process id does not match; empty if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _own_record() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "started": _start_time(os.getpid())}


def _write_record(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NOT_ELSEWHERE, 0o644)
    try:
        write_all(descriptor, json.dumps(_own_record()).encode())
    finally:
        os.close(descriptor)


def _record_in(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, _READ)
    except OSError:  # released in the meantime
        return {}
    try:
        return _record(descriptor)
    finally:
        os.close(descriptor)


def _record(descriptor: int) -> dict[str, Any]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        record = json.loads(os.read(descriptor, 4096) or b"{}")
    except (OSError, ValueError):  # a pipe, or a half-written record
        return {}
    return record if isinstance(record, dict) else {}


def _key(folder: Path, name: str = NAME) -> tuple[int, str]:
    return os.getpid(), os.path.join(os.path.realpath(folder), name)
