"""What settings name outside the run: functions of one's own, and the content of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from afzal.config import Settings
from afzal.errors import AfzalError
from afzal.objectives import load_function, names_function, source_file

# Data has a fingerprint of its own, of what was read; what a run writes is no input.
_NOT_COMPARED = ("data", "prompts", "out")


def own_function(spec: str, key: str, contract: str) -> Callable[..., Any]:
    """The function of ``module:function`` or ``file.py:function``.

    Args:
        key: the setting that names it.
        contract: what the function must be, for whoever has to mend it.

    Raises:
        AfzalError: there is no such module, file or function, or its code fails as it is read.
    """
    try:
        return load_function(spec)
    except ValueError as error:
        remedy = f"write module:function or file.py:function, where {contract}"
        raise AfzalError(str(error), where=key, remedy=remedy) from error


def file_hashes(config: Settings) -> dict[str, str]:
    """SHA-256 of every file that a setting names, by setting: code of functions, held-out data, templates. Folders and
    hub ids are not looked into, nor is what a file itself reads or imports."""
    found = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, str) and key not in _NOT_COMPARED and (files := list(_files(key, value))):
            parts = [sha256(path) for path in files]
            found[key] = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    return found


def changed_files(facts: Mapping[str, Any], files: Mapping[str, str]) -> list[str]:
    """What to say of files that are not what they were when the run began, by the ``facts`` it wrote down then."""
    before = facts.get("files", {})
    changed = [key for key, value in files.items() if before.get(key, value) != value]
    return [f"{key}: the content of its file has changed" for key in changed]


def content_hash(source: str) -> str:
    """SHA-256 of what a setting names: the weights and configuration of a model folder, the files of any other folder,
    a file, the file of a function; of a hub id or a word, the word itself."""
    path = Path(source)
    if path.is_dir():
        weights = sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
        files = weights or sorted(p for p in path.rglob("*") if p.is_file())
        parts = [(str(p.relative_to(path)), sha256(p)) for p in files]
    elif path.is_file():
        parts = [("", sha256(path))]
    else:
        code = source_file(source) if names_function(source) else None
        parts = [(source, sha256(code) if code else "")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(key: str, value: str) -> Iterable[Path]:
    # an objective may be a sum, as 0.8*dpo + 0.2*mine.py:loss
    terms = [term.rpartition("*")[2].strip() for term in value.split("+")] if key == "objective" else [value]
    for term in terms:
        if names_function(term):
            code = source_file(term)
            yield from [code] if code else []
        elif _is_file(term):
            yield Path(term)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a template or another text, too long for a path
        return False
