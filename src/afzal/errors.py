"""The error that users see: what happened, where, why, and how to fix it; and disk errors turned into it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FREE_SPACE = "free some space, or use a folder on another disk; a run that was under way continues with --resume"
_ELSEWHERE = "choose another folder (--out), one that you may write to"
_FAULTS = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("your disk quota is used up", _FREE_SPACE),
    errno.EFBIG: (
        "the file would be larger than the system allows",
        "raise the limit: ulimit -f unlimited",
    ),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("operation not permitted", _ELSEWHERE),
    errno.EEXIST: ("a file of that name is in the way", "choose another folder (--out), or move the file away"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder (--out)"),
    errno.EISDIR: ("a folder of that name is in the way", "choose another folder (--out), or move that folder away"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter name"),
    errno.ELOOP: ("the path is a loop of symbolic links", "choose another folder (--out)"),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 4096"),
    errno.EIO: ("the disk reports an input/output error", "check the disk (dmesg), or use another one"),
    errno.ESTALE: ("the network file system lost the folder", "mount it again; the run continues with --resume"),
}


class AfzalError(Exception):
    """A fault of the input or the set-up, not of the program. The command line prints it without a traceback and exits
    with 2.

    Args:
        what: one sentence that names the offending value.
        where: ``file:line``, a row id or a key, if there is one.
        why: the reason, if ``what`` does not make it clear.
        remedy: what to do next, if possible as a command or a setting.

    Line feeds in names are escaped, so that a name cannot start a line of the message.

    Attributes:
        told: whether another process prints the error.
    """

    told: bool = False

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        where, what = where.replace("\n", "\\n"), re.sub(r"\n(?! )", r"\\n", what)
        head = f"{where}: {what}" if where else what
        notes = (
            (label, re.sub(r"\n[ ]*", "\n       ", text)) for label, text in (("why", why), ("try", remedy)) if text
        )
        super().__init__(head + "".join(f"\n  {label}: {text}" for label, text in notes))


class Terminated(BaseException):
    """SIGTERM or SIGHUP asked this process to end. Like ``KeyboardInterrupt`` it is not an error; it
    always ends the process.

    Args:
        signal: the signal's name.
    """

    def __init__(self, signal: str) -> None:
        self.signal = signal
        super().__init__(signal)


def signal_of(stop: BaseException) -> str:
    """The name of the signal that raised a ``KeyboardInterrupt`` or :class:`Terminated`."""
    return getattr(stop, "signal", "SIGINT")


def did_you_mean(path: str | Path) -> str:
    """``did you mean X?`` for a missing path, if its folder holds a similar name; else empty."""
    from difflib import get_close_matches

    path = Path(path)
    names = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    matches = get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"did you mean {path.parent / matches[0]}?" if matches else ""


def fault(error: OSError, path: str | Path, n_bytes: int | None = None) -> AfzalError:
    """The error for an ``OSError`` while writing ``path`` (``n_bytes``: the size of the data)."""
    reason, remedy = _FAULTS.get(error.errno or 0, (error.strerror or str(error), _ELSEWHERE))
    if n_bytes is not None:
        reason += f"; {n_bytes} bytes were to be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            reason += f", {shutil.disk_usage(existing(Path(path))).free} bytes are free on that disk"
    return AfzalError(f"cannot write {path}", why=reason, remedy=remedy)


@contextmanager
def writing(path: str | Path, n_bytes: int | None = None) -> Iterator[None]:
    """Turn any ``OSError`` of the block into :func:`fault` for ``path``."""
    try:
        yield
    except OSError as error:
        raise fault(error, path, n_bytes) from error


def existing(path: Path) -> Path:
    """The path, or the nearest parent folder that exists."""
    return next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
