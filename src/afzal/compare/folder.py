"""The folder of a study (a comparison or a sweep): one process writes it, and all its trainings use the same date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from afzal import runs
from afzal.recipes.runtime import fixed_date


def study_date(out: str | Path) -> AbstractContextManager[str]:
    """Inside the block, chat templates see the date on which the study in ``out`` began."""
    return fixed_date(_date_file(Path(out)), resume=True)


@contextmanager
def claimed(out: Path, name: str, settings: str, date: str) -> Iterator[None]:
    """Claim ``out`` against other processes inside the block, and write the study's settings and date.

    Args:
        name: name of the settings file, such as ``compare.yaml``.
        date: the date yielded by :func:`study_date`.

    Raises:
        AfzalError: another process is writing there.
    """
    runs.make_folder(out)
    with runs.Run(out) as claim:
        claim.claim()
        runs.atomic_write(out / name, settings)
        runs.make_folder(_date_file(out).parent)
        runs.atomic_write(_date_file(out), json.dumps({"template_date": date}) + "\n")
        yield


def _date_file(out: Path) -> Path:
    return out / "stages" / "date.json"
