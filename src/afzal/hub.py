"""Upload finished models to the hub, and refuse impossible uploads before a run starts. Data is never uploaded."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from afzal.errors import AfzalError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_NEVER = re.compile(r"--|\.\.|[-.]/|[-.]$|\.git$")  # the hub allows these in no name
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
UPLOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "README.md",
    "Modelfile",
)
"""Patterns for the files of a model and its card; ``*`` stops at ``/``, which excludes checkpoints. Samples, metrics
and rows are not uploaded, since they contain people's texts."""


def refuse_unreachable(repository: str) -> None:
    """Check early for what would make the upload at the end of a run fail: an invalid name, offline mode, no token.

    Raises:
        AfzalError: with the remedy.
    """
    if not _ID.fullmatch(repository) or _NEVER.search(repository):
        remedy = "write OWNER/NAME, as in the hub's addresses: no '--' or '..' in it, no '-', '.' or '.git' at its end"
        raise AfzalError(f"push_to_hub cannot be {repository!r}", remedy=remedy)
    offline = next((name for name in _OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")), None)
    if offline is not None:
        raise AfzalError(f"push_to_hub needs the hub, and {offline} is set", remedy=f"unset {offline}")
    from huggingface_hub import get_token

    if not get_token():
        remedy = "hf auth login, or set HF_TOKEN to a token that may write"
        raise AfzalError(f"there is no token to upload {repository} with", remedy=remedy)


def push(folder: str | Path, repository: str, *, private: bool) -> str:
    """Upload a folder's model and its card to a hub repository, created if it does not exist; return its address.

    Args:
        repository: ``owner/name``.
        private: applies to a new repository only; an existing one keeps its visibility.

    Raises:
        AfzalError: the folder holds no model, or the hub refuses or cannot be reached; the folder is unchanged.
    """
    refuse_unreachable(repository)
    files = _uploaded(Path(folder))
    if not any(name.endswith(".safetensors") for name in files):
        raise AfzalError(f"{folder} holds no weights to upload", remedy="name the folder of a finished run")
    from huggingface_hub import HfApi

    api = HfApi(library_name="afzal")
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        message = f"Upload {Path(folder).resolve().name}"
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=message)
    except Exception as error:  # network, permission, quota: the library raises many kinds
        raise AfzalError(
            f"{folder} could not be uploaded to {repository}",
            why=str(error).strip().partition("\n")[0],
            remedy=f"everything is saved: afzal push {folder} {repository} uploads it",
        ) from None
    return str(address)


def _uploaded(folder: Path) -> list[str]:
    """Names of the files to upload. The hub client's own patterns would also match files in checkpoints."""
    inside = [*folder.glob("*"), *folder.glob("additional_chat_templates/*")]
    names = sorted(path.relative_to(folder).as_posix() for path in inside if path.is_file())
    return [name for name in names if any(name.count("/") == p.count("/") and fnmatchcase(name, p) for p in UPLOADED)]
