"""Calls of libraries that open a folder: their errors told as faults of the folder, and their bars switched off."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from afzal.errors import AfzalError

_LINES_OF_A_REASON = 3
_HIDDEN_REPORT = "above report"  # transformers points at a table that its log level keeps from being printed


@contextmanager
def guarded(path: str, what: str = "", remedy: str = "") -> Iterator[None]:
    """Errors that a library raises inside the block are reported as faults of the folder at ``path``.

    ``what`` and ``remedy`` take the place of the usual words.

    transformers, PEFT, tokenizers and safetensors raise exceptions of many types for a broken folder. Only calls of
    libraries belong inside, so that no mistake of Afzal is taken for one of the folder.
    """
    try:
        yield
    except AfzalError:
        raise
    except BaseException as error:
        if not _is_about_the_folder(error):
            raise
        raise AfzalError(
            what or f"{path!r} does not load",
            why=reason(error),
            remedy=remedy
            or "pass a folder with config.json, safetensors weights and a tokenizer, or a reachable hub id",
        ) from error


def _is_about_the_folder(error: BaseException) -> bool:
    if type(error).__name__ == "PanicException":  # of the tokenizers library, in Rust; no Exception of Python
        return True
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, Exception) and not memory


def reason(error: BaseException) -> str:
    """The first lines of what a library says, in one; its type's name where it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if _HIDDEN_REPORT not in line]
    said = [line for line in lines if line][:_LINES_OF_A_REASON]
    text = re.sub(r"(?<=\w)\n(?=[A-Z])", ". ", "\n".join(said))  # a sentence that ended with its line
    return text.replace("\n", " ") or type(error).__name__


@contextmanager
def no_bars() -> Iterator[None]:
    """A run has its own progress; the loader's bars would only stand between its lines."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    here, in_hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if here:
            logging.enable_progress_bar()
        if in_hub:
            enable_progress_bars()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without warnings of PEFT that a caller cannot act on: it reads ``is_gradient_checkpointing``, a name that
    `transformers` is giving up, and it says of the ranks and scales that it gives experts that they match nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield
