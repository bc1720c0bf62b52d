"""The only place where a model, an adapter, a configuration or a tokenizer is opened by a library.

Every ``from_pretrained`` of Afzal stands here, behind an inspection of the folder, without code of the folder's own,
without pickles and without the network: what the hub has is downloaded first. A test of the source holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from afzal.errors import AfzalError
from afzal.folders.inspection import (
    TEXTS,
    holds_model,
    inspect_model_folder,
    inspect_tokenizer_folder,
    local_folder,
    read_config,
)

T = TypeVar("T")

_LINES_OF_A_REASON = 3
_HIDDEN_REPORT = "above report"  # transformers points at a table that its log level keeps from being printed


def model_folder(path: str) -> str:
    """The inspected local folder of a model or adapter; what a hub id names is downloaded.

    Raises:
        AfzalError: it does not exist, or is hostile or broken (:func:`.inspection.inspect_model_folder`).
    """
    folder = _local(path)
    inspect_model_folder(folder)
    return str(folder)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        AfzalError: there is none, or the folder is hostile or broken.
    """
    from transformers import AutoTokenizer

    folder = _tokenizer_folder(path)
    with guarded(path):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def load_config(folder: str) -> Any:
    """The configuration of an inspected model folder.

    Raises:
        AfzalError: transformers does not know the model type, or the values.
    """
    from transformers import AutoConfig

    with guarded(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def hub_config(model: str) -> dict[str, Any]:
    """The configuration of a model of the hub as a mapping; nothing else of it is downloaded.

    Raises:
        AfzalError: it cannot be reached, or is no configuration.
    """
    return read_config(_local(model, wanted=("config.json",)) / "config.json")


def load_generation_config(folder: str) -> Any:
    """The generation settings of an inspected folder.

    Raises:
        AfzalError: they cannot be read.
    """
    from transformers import GenerationConfig

    with guarded(folder):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def load_causal_model(folder: str, **settings: Any) -> Any:
    """The language model of an inspected folder.

    Args:
        settings: further keyword arguments of ``from_pretrained``: number format, devices, quantisation.

    Raises:
        AfzalError: it is no causal language model, or cannot be read.
    """
    from transformers import AutoModelForCausalLM

    with guarded(folder), no_bars():
        return AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, **settings
        )


def load_classifier(folder: str, **settings: Any) -> Any:
    """The sequence classifier of an inspected folder; of a language model, its trunk under a head of random weights.

    Raises:
        AfzalError: there is no classifier of this architecture, or it cannot be read.
    """
    from transformers import AutoModelForSequenceClassification

    with guarded(folder), no_bars():
        return AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, **settings
        )


def load_peft(base: Any, folder: str, **settings: Any) -> Any:
    """The model with the adapter of an inspected folder on it.

    Raises:
        AfzalError: the adapter does not fit the model, or cannot be read.
    """
    from peft import PeftModel

    with guarded(folder):
        return PeftModel.from_pretrained(base, folder, local_files_only=True, **settings)


@contextmanager
def guarded(path: str) -> Iterator[None]:
    """Whatever a library raises inside the block is told as a fault of the folder at ``path``.

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
            f"{path!r} does not load",
            why=reason(error),
            remedy="pass a folder with config.json, safetensors weights and a tokenizer, or a reachable hub id",
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
    return " ".join(said) if said else type(error).__name__


def _local(path: str, **options: Any) -> Path:
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise AfzalError(f"model folder {path!r} does not exist", remedy="check --model; a hub id looks like org/name")
    with guarded(path):
        return local_folder(path, **options)


def _tokenizer_folder(path: str) -> str:
    """The inspected folder of a tokenizer. One that holds a model too must be a sound model: whoever looks at its
    tokens is about to load it."""
    folder = _local(path, wanted=TEXTS)
    if Path(path).is_dir() and holds_model(folder):
        inspect_model_folder(folder)
    try:
        inspect_tokenizer_folder(folder)
    except AfzalError:
        inspect_model_folder(folder)  # where more is missing than a tokenizer, that is the thing to tell
        raise
    return str(folder)


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
