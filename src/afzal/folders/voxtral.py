"""Voxtral: conversations with sounds as rendered text, as other families have them, without mistral-common.

`transformers` has mistral-common write and tokenize Voxtral's conversations, and its processor refuses a text in which
the token of a sound stands. Here the vocabulary of ``tekken.json`` becomes an ordinary tokenizer, conversations are
written by :data:`TEMPLATE`, and the processor puts a sound's tokens where the template wrote its mark. A test holds ids
and arrays to those of mistral-common.
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
"""Conversations as mistral-common writes them; what it refuses is refused here."""

_FRAMES_PER_TOKEN = 8  # two convolutions halve the frames once, and four positions of the encoder become one token


def names_of_tokens(folder: str) -> dict[str, Any]:
    """How a tokenizer that is made of ``tekken.json`` names its special tokens; empty where another file says it."""
    if not (Path(folder) / TEKKEN).exists() or (Path(folder) / "tokenizer.json").exists():
        return {}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {**names, "add_bos_token": True}


def with_sounds_in_text(kind: Any) -> Any:
    """``VoxtralProcessor`` as a processor that reads rendered text and its sounds together."""
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
    """Spectrograms ``[chunks, mel bins, frames]`` of sounds, cut into pieces of 30 s, and their tokens."""
    import numpy as np

    extractor = processor.feature_extractor
    chunks = []
    for samples in audio:
        made = extractor(
            samples,
            sampling_rate=kwargs.get("sampling_rate"),
            padding=True,
            pad_to_multiple_of=extractor.n_samples,
            truncation=False,
            return_tensors="np",
        )
        features = made["input_features"].reshape(extractor.feature_size, -1, extractor.nb_max_frames)
        chunks.append(features.transpose(1, 0, 2))
    per_chunk = extractor.nb_max_frames // _FRAMES_PER_TOKEN
    return {"input_features": np.concatenate(chunks)}, [processor.audio_token * per_chunk * len(c) for c in chunks]


def _save(processor: Any, folder: str | Path, **kwargs: Any) -> Any:
    """As every processor; and the vocabulary as mistral-common and vLLM read it, where its folder had it."""
    from transformers import ProcessorMixin

    written = ProcessorMixin.save_pretrained(processor, folder, **kwargs)
    source, to = Path(str(processor.tokenizer.name_or_path)) / TEKKEN, Path(folder) / TEKKEN
    if source.is_file() and source.resolve() != to.resolve():
        shutil.copyfile(source, to)
    return written
