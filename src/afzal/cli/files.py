"""Settings from a file or a run folder named on the command line."""

from __future__ import annotations

from pathlib import Path

from afzal import config

_FILE = "run.yaml"


def path_of(word: str) -> Path:
    """The YAML file named by a word: the word itself, or the file in that run folder."""
    return Path(word, _FILE) if Path(word).is_dir() else Path(word)


def settings_of(word: str) -> list[config.Setting]:
    """The settings of a YAML file or a run folder. A run's ``out`` becomes the folder that is named, whatever was
    written in it: a run that was copied, moved or named from elsewhere resumes where it is."""
    path = path_of(word)
    settings = config.read_file(path)
    is_run = Path(word).is_dir() or (path.name == _FILE and (path.parent / "run.json").is_file())
    return [*settings, config.Setting("out", str(path.parent), str(path))] if is_run else settings
