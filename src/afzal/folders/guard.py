"""Guard library calls that open a folder: report their errors as faults of the folder, hide their progress bars."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afzal.errors import AfzalError

_LINES_OF_A_REASON = 3
_PACKAGE = Path(__file__).resolve().parents[1]
_HIDDEN_REPORT = "above report"  # transformers refers to a table that its log level suppresses


@contextmanager
def guarded(path: str, what: str = "", remedy: str = "") -> Iterator[None]:
    """Report errors that a library raises in the block as faults of the folder at ``path``.

    ``what`` and ``remedy`` replace the default texts.

    transformers, PEFT, tokenizers and safetensors raise exceptions of many types for a broken folder. Put only library
    calls inside, so that a bug in Afzal is not reported as a fault of the folder.
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
    if type(error).__name__ == "PanicException":  # raised by the Rust tokenizers library; not a Python Exception
        return True
    if _is_wrong_call(error):
        return False
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, Exception) and not memory


def _is_wrong_call(error: BaseException) -> bool:
    """Whether Afzal itself called a function with arguments that it does not have."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    ours = trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)
    return ours and isinstance(error, TypeError) and re.search(r"\w\(\) .*argument", str(error)) is not None


def reason(error: BaseException) -> str:
    """The first lines of a library's message, as one line; the exception's type name if there is no message."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if _HIDDEN_REPORT not in line]
    texts = [line for line in lines if line][:_LINES_OF_A_REASON]
    text = re.sub(
        r"(?<=\w)\n(?=[A-Z])", ". ", "\n".join(texts)
    )  # a sentence that ended with its line, without a full stop
    return text.replace("\n", " ") or type(error).__name__


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide the loader's progress bars, which would appear between the lines of a run's own progress."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    were_shown, hub_bars_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()
        if hub_bars_shown:
            enable_progress_bars()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress PEFT warnings that a caller cannot act on: PEFT reads ``is_gradient_checkpointing``, which
    `transformers` deprecates, and claims that the rank and alpha patterns for experts match nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield
