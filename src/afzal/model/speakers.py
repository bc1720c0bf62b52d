"""Create a model's speaker, from the files of a folder alone or from a model in memory."""

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
    """The speaker of a model or adapter, by folder or hub id. Loads no weights.

    Args:
        tokenizer: default: the one in ``path``.
        chat_template: as for :class:`afzal.tokens.Speaker`.
        eos_token: the token that ends a response, if the user named one.

    Raises:
        AfzalError: model or tokenizer are missing or broken, or ``eos_token`` is not in the vocabulary.
    """
    processor = load_processor(path) if tokenizer is None else None
    if tokenizer is None:
        tokenizer = load_tokenizer(path) if processor is None else processor.tokenizer
    ends = _ends_of(_generation_settings(path))
    end_id = eos_id(tokenizer, eos_token)
    return Speaker(tokenizer, chat_template, end_id, ends, context_tokens(path), reader_of(processor))


def speaker_of(
    model: Any, processing: Any, *, chat_template: str | None = None, eos_token: str | None = None
) -> Speaker:
    """Like :func:`open_speaker`, for a loaded model.

    Args:
        processing: its tokenizer, or its processor.
    """
    tokenizer = getattr(processing, "tokenizer", processing)
    end_id, ends = eos_id(tokenizer, eos_token), _ends_of(getattr(model, "generation_config", None))
    reader = None if tokenizer is processing else reader_of(processing)
    return Speaker(tokenizer, chat_template, end_id, ends, context_of_model(model), reader)


def _ends_of(settings: Any) -> tuple[int, ...]:
    ids = settings.eos_token_id if settings is not None else None
    return tuple(ids if isinstance(ids, list) else () if ids is None else (ids,))


def _generation_settings(path: str) -> Any:
    """The generation settings of the loaded model: those of its folder (or for an adapter without any, of its base
    model), else those in its configuration."""
    from transformers import GenerationConfig

    folder = model_folder(path)
    if (Path(folder) / "generation_config.json").exists():
        return load_generation_config(folder)
    if is_adapter(folder):
        return _generation_settings(base_of(folder))
    return GenerationConfig.from_model_config(load_config(folder))
