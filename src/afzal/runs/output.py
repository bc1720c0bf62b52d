"""Outputs of commands that are not runs: a file or a folder that only one process makes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afzal.runs import lock
from afzal.runs.files import make_folder, refuse_existing
from afzal.runs.folder import claim_folder

_WAIT = "wait for it, or stop it and repeat the command; or choose another --out"


@contextmanager
def sole_file(path: str | Path | None) -> Iterator[None]:
    """Inside the block, no other process makes this new file or folder. None means that none is wanted.

    Raises:
        AfzalError: it exists or cannot be written, or another process is making it.
    """
    if not path:
        yield
        return
    refuse_existing(path)
    file = Path(path)
    make_folder(file.parent)
    claim_folder(file.parent, remedy=_WAIT, file=file)
    try:
        refuse_existing(path)  # again: the process that held the lock may have finished it
        yield
    finally:
        lock.release(file.parent, lock.name_for(file))


@contextmanager
def sole_folder(path: str | Path) -> Iterator[None]:
    """Inside the block, no other process writes into this folder, which is made if necessary. If nothing was written
    into a new folder, it is removed again.

    Raises:
        AfzalError: another process is writing there, or nothing can be written there.
    """
    folder = Path(path)
    is_new = not folder.exists()
    make_folder(folder)
    claim_folder(folder, remedy=_WAIT)
    try:
        yield
    finally:
        lock.release(folder)
        if is_new:
            with suppress(OSError):  # it holds results
                folder.rmdir()
