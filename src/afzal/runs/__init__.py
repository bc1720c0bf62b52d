"""The run folder: one folder per run, through which the stages exchange files.

A run folder holds ``run.yaml`` (the resolved configuration), ``run.json`` (facts), ``metrics.jsonl``,
``samples.jsonl``, ``dropped.jsonl``, ``checkpoints/`` and the finished model. Files are replaced atomically. Files that
grow hold one JSON object per line, so a kill loses at most the line being written. Only the standard library is
imported, so listing and reporting start fast.
"""

from afzal.errors import fault, writing
from afzal.runs.environment import environment
from afzal.runs.files import (
    append_jsonl,
    atomic_write,
    force_to_disk,
    fsync_folder,
    make_folder,
    new_file,
    read_json,
    read_jsonl,
    refuse_existing,
    refuse_unwritable,
    sha256,
    write_all,
    write_jsonl,
)
from afzal.runs.folder import IN_MEMORY, Run, claim_folder, create, find, open_run, resume, start_in, start_of, walk
from afzal.runs.output import sole_file, sole_folder
from afzal.runs.redact import redact_arguments, redact_config, redact_texts
from afzal.runs.summary import summary

__all__ = [
    "IN_MEMORY",
    "Run",
    "append_jsonl",
    "atomic_write",
    "claim_folder",
    "create",
    "environment",
    "fault",
    "find",
    "force_to_disk",
    "fsync_folder",
    "make_folder",
    "new_file",
    "open_run",
    "read_json",
    "read_jsonl",
    "redact_arguments",
    "redact_config",
    "redact_texts",
    "refuse_existing",
    "refuse_unwritable",
    "resume",
    "sha256",
    "sole_file",
    "sole_folder",
    "start_in",
    "start_of",
    "summary",
    "walk",
    "write_all",
    "write_jsonl",
    "writing",
]
