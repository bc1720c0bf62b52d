"""The one error a person meets: what happened, where, why, and how to fix it."""

from __future__ import annotations

import re
from pathlib import Path


class AfzalError(Exception):
    """A fault of the input or the set-up, not of the program; the command line prints it plainly and exits with 2.

    Args:
        what: one sentence that names the offending value.
        where: ``file:line``, a row id or a key, when there is one.
        why: the reason, when it is not plain from ``what``.
        remedy: what to do next, as a command or a setting when possible.

    Names may hold line feeds: in the message, none of them begins a line of its own.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", remedy: str = "") -> None:
        self.what, self.where, self.why, self.remedy = what, where, why, remedy
        where, what = where.replace("\n", "\\n"), re.sub(r"\n(?! )", r"\\n", what)
        head = f"{where}: {what}" if where else what
        said = (
            (label, re.sub(r"\n[ ]*", "\n       ", text)) for label, text in (("why", why), ("try", remedy)) if text
        )
        super().__init__(head + "".join(f"\n  {label}: {text}" for label, text in said))


def near(path: str | Path) -> str:
    """``did you mean X?`` of a path that is not there, where its folder holds a name like it; else nothing."""
    from difflib import get_close_matches

    path = Path(path)
    names = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"did you mean {path.parent / close[0]}?" if close else ""
