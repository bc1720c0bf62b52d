"""One writer per run folder.

The lock is the kernel's (``fcntl.lockf`` on ``run.lock``): it ends with the process, however that dies, and holds
across machines that share a file system. The file's text only says who holds it, for the message. Where the file system
cannot lock, the process named there decides: gone means free.
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
from typing import Any

try:
    import fcntl
except ImportError:  # not POSIX: only the process id in the file tells
    fcntl = None

from afzal.runs.files import write_all

NAME = "run.lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: dict[tuple[int, str], int] = {}  # (process, lock file) -> descriptor: closing any other one would free the lock


def acquire(folder: Path) -> dict[str, Any] | None:
    """Take the folder's lock for this process; None when taken (or held already), else who holds it.

    Raises:
        OSError: the lock file cannot be written.
    """
    key = _key(folder)
    if key in _held:
        return None
    for wait in (0.05, 0.05, 0.1, 0.3, None):  # a reader that looks at the lock holds it for an instant
        descriptor, holder = _try(folder / NAME)
        if descriptor is not None:
            _held[key] = descriptor
            return None
        if wait is not None:
            time.sleep(wait)
    return holder


def release(folder: Path) -> None:
    """Give the lock back and remove its file; nothing when this process does not hold it."""
    descriptor = _held.pop(_key(folder), None)
    if descriptor is not None:
        with suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)
        os.close(descriptor)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who is writing the folder now (``{"pid", "host", "since"}``), or None."""
    if _key(folder) in _held:
        return _me()
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _record(descriptor) if _busy(descriptor) else None
    finally:
        os.close(descriptor)


def _try(path: Path) -> tuple[int | None, dict[str, Any]]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        taken = _lock(descriptor)
        found = _record(descriptor)
        if taken and _same_file(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            write_all(descriptor, json.dumps(_me()).encode())
            return descriptor, {}
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None, found


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return not _alive(_record(descriptor))
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _CANNOT_LOCK:
            return not _alive(_record(descriptor))
        raise
    return True


def _busy(descriptor: int) -> bool:
    if fcntl is None:
        return _alive(_record(descriptor))
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _BUSY or _alive(_record(descriptor))
    fcntl.lockf(descriptor, fcntl.LOCK_UN)
    return False


def _alive(record: dict[str, Any]) -> bool:
    """Whether the recorded process still runs; a process of another machine counts as running."""
    pid = record.get("pid")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    if record.get("host") != socket.gethostname():
        return True
    if os.name != "posix":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(pid) in ("", record.get("started", ""))


def _started(pid: int) -> str:
    """The kernel's start time of a process: a recycled process id does not match it; empty where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _me() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "started": _started(os.getpid())}


def _record(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, 4096) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _same_file(descriptor: int, path: Path) -> bool:
    """False when the file was removed between opening and locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _key(folder: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(folder)
