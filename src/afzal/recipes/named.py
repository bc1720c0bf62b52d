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
from afzal.runs import Run, sha256

# Data has a fingerprint of its own, of what was read; what a run writes is no input.
_NOT_COMPARED = ("data", "prompts", "out")
# What changes no number: where a run is, and when it saves
_FREE = ("out", "save_every_steps", "save_every_minutes", "keep_checkpoints")


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


def refuse_changes(
    run: Run, config: Mapping[str, Any], files: Mapping[str, str], data: Mapping[str, str], also: Iterable[str] = ()
) -> None:
    """A resumed run must be the same run: any other setting, data, or content of a file it names is refused by name.

    Args:
        files: of :func:`file_hashes`.
        data: the fingerprint of what was read, by what to call it.
        also: what else is not as it was, in words.

    Raises:
        AfzalError: something is not what ``run.json`` says of the run's beginning.
    """
    facts = run.facts()
    before, seen, hashes = facts.get("config", {}), facts.get("data", {}).get("fingerprint"), facts.get("files", {})
    changed = [f"{k}: {before[k]!r} -> {v!r}" for k, v in config.items() if k not in _FREE and before.get(k, v) != v]
    changed += [f"{what} has changed" for what, fingerprint in data.items() if seen not in (None, fingerprint)]
    changed += [f"{k}: the content of its file has changed" for k, v in files.items() if hashes.get(k, v) != v]
    changed += also
    if changed:
        raise AfzalError(
            f"{run.path} cannot be resumed with other settings",
            why="; ".join(changed),
            remedy="put back what changed (run.yaml has the settings), or start a new run with another --out",
        )


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
