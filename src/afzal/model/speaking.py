"""The speaker of a model: of a folder, from its files alone, or of a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afzal.folders.kinds import base_of, is_adapter
from afzal.folders.load import load_config, load_generation_config, load_processor, load_tokenizer, model_folder
from afzal.model.load import context_of_model, context_tokens
from afzal.tokens.media import reader_of
from afzal.tokens.speaker import Speaker
from afzal.tokens.template import eos_id


def open_speaker(
    path: str, *, tokenizer: Any = None, chat_template: str | None = None, eos_token: str | None = None
) -> Speaker:
    """The speaker of a folder or hub id of a model or adapter. Loads no weights.

    Args:
        tokenizer: None loads the one of ``path``.
        chat_template: as for :class:`afzal.tokens.Speaker`.
        eos_token: the token that ends a response, where a person named one.

    Raises:
        AfzalError: there is no model or tokenizer, one of them is broken, or ``eos_token`` is not in the vocabulary.
    """
    processor = load_processor(path) if tokenizer is None else None
    if tokenizer is None:
        tokenizer = load_tokenizer(path) if processor is None else processor.tokenizer
    ends = _ends_of(_generation_settings(path))
    stated = eos_id(tokenizer, eos_token)
    return Speaker(tokenizer, chat_template, stated, ends, context_tokens(path), reader_of(processor))


def speaker_of(model: Any, given: Any, *, chat_template: str | None = None, eos_token: str | None = None) -> Speaker:
    """As :func:`open_speaker`, of a loaded model.

    Args:
        given: its tokenizer, or its processor.
    """
    tokenizer = getattr(given, "tokenizer", given)
    stated, ends = eos_id(tokenizer, eos_token), _ends_of(getattr(model, "generation_config", None))
    reader = None if tokenizer is given else reader_of(given)
    return Speaker(tokenizer, chat_template, stated, ends, context_of_model(model), reader)


def _ends_of(settings: Any) -> tuple[int, ...]:
    named = settings.eos_token_id if settings is not None else None
    return tuple(named if isinstance(named, list) else () if named is None else (named,))


def _generation_settings(path: str) -> Any:
    """The generation settings that a model would have if it were loaded: those of its folder, of an adapter without
    any those of its base model, else what its configuration says."""
    from transformers import GenerationConfig

    folder = model_folder(path)
    if (Path(folder) / "generation_config.json").exists():
        return load_generation_config(folder)
    if is_adapter(folder):
        return _generation_settings(base_of(folder))
    return GenerationConfig.from_model_config(load_config(folder))
