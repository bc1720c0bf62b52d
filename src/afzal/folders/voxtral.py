"""Voxtral: conversations with sounds as rendered text, as for other families, without mistral-common.

`transformers` lets mistral-common render and tokenize Voxtral's conversations, and its processor refuses text that
contains a sound's token. Here the vocabulary of ``tekken.json`` becomes an ordinary tokenizer, :data:`TEMPLATE` renders
conversations, and the processor inserts a sound's tokens at the template's marker. A test compares ids and arrays with
those of mistral-common.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROCESSOR = "VoxtralProcessor"
TEKKEN = "tekken.json"

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ raise_exception('tools are not written for Voxtral') }}{% endif %}"
    "{% set ns = namespace(system=false, sound=false, due='user') %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' and loop.first %}{% set ns.system = true %}{{ '[SYSTEM_PROMPT]' }}"
    "{% elif m['role'] != ns.due %}{{ raise_exception('after the system message roles must alternate between user and"
    " assistant') }}{% elif m['role'] == 'user' %}{{ '[INST]' }}{% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'audio' %}{% set ns.sound = true %}{{ '[BEGIN_AUDIO][AUDIO]' }}"
    "{% elif p['type'] == 'text' %}"
    "{% if not loop.first and loop.previtem['type'] == 'text' %}{{ '\\n\\n' }}{% endif %}{{ p['text'] }}"
    "{% else %}{{ raise_exception('Voxtral reads text and sounds, no ' + p['type']) }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if m['role'] == 'system' %}{{ '[/SYSTEM_PROMPT]' }}"
    "{% elif m['role'] == 'user' %}{% set ns.due = 'assistant' %}{{ '[/INST]' }}"
    "{% else %}{% set ns.due = 'user' %}{{ eos_token }}{% endif %}"
    "{% if ns.system and ns.sound %}"
    "{{ raise_exception('Voxtral reads no system message beside sounds') }}{% endif %}"
    "{% endfor %}"
)
"""Renders conversations as mistral-common does, and refuses what it refuses."""

_FRAMES_PER_TOKEN = 8  # two convolutions halve the frames once, and four encoder positions become one token


def names_of_tokens(folder: str) -> dict[str, Any]:
    """Names of the special tokens for a tokenizer made from ``tekken.json``; empty if another file defines them."""
    if not (Path(folder) / TEKKEN).exists() or (Path(folder) / "tokenizer.json").exists():
        return {}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {**names, "add_bos_token": True}


def with_sounds_in_text(kind: Any) -> Any:
    """``VoxtralProcessor``, changed to read rendered text together with its sounds."""
    from transformers import ProcessorMixin

    methods = {
        "text_kwargs": {},
        "audio_kwargs": {},
        "__call__": ProcessorMixin.__call__,
        "_process_audio": _process_audio,
        "save_pretrained": _save,
    }
    return type(kind.__name__, (kind,), methods)


def _process_audio(processor: Any, audio: Sequence[Any], **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
    """Spectrograms ``[chunks, mel bins, frames]`` of sounds, in chunks of 30 s, and their tokens."""
    import numpy as np

    extractor = processor.feature_extractor
    chunks = []
    for samples in audio:
        output = extractor(
            samples,
            sampling_rate=kwargs.get("sampling_rate"),
            padding=True,
            pad_to_multiple_of=extractor.n_samples,
            truncation=False,
            return_tensors="np",
        )
        features = output["input_features"].reshape(extractor.feature_size, -1, extractor.nb_max_frames)
        chunks.append(features.transpose(1, 0, 2))
    per_chunk = extractor.nb_max_frames // _FRAMES_PER_TOKEN
    return {"input_features": np.concatenate(chunks)}, [processor.audio_token * per_chunk * len(c) for c in chunks]


def _save(processor: Any, folder: str | Path, **kwargs: Any) -> Any:
    """Save like any processor, and copy the vocabulary file for mistral-common and vLLM, if the source folder has
    it."""
    from transformers import ProcessorMixin

    saved = ProcessorMixin.save_pretrained(processor, folder, **kwargs)
    source, to = Path(str(processor.tokenizer.name_or_path)) / TEKKEN, Path(folder) / TEKKEN
    if source.is_file() and source.resolve() != to.resolve():
        shutil.copyfile(source, to)
    return saved
