"""Settings from a file or a run folder that is named on the command line."""

from __future__ import annotations

from pathlib import Path

from afzal import config

_FILE = "run.yaml"


def path_of(word: str) -> Path:
    """The YAML file that a word names: itself, or the one in a run folder."""
    return Path(word, _FILE) if Path(word).is_dir() else Path(word)


def settings_of(word: str) -> list[config.Setting]:
    """The settings of a YAML file or a run folder. Those of a run are for the very folder that is named, wherever it
    was when they were written: a run that was copied, moved or named from elsewhere resumes where it is."""
    path = path_of(word)
    found = config.read_file(path)
    is_run = Path(word).is_dir() or (path.name == _FILE and (path.parent / "run.json").is_file())
    return [*found, config.Setting("out", str(path.parent), str(path))] if is_run else found
