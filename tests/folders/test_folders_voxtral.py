"""Voxtral without mistral-common: its conversations, sounds and saved folders equal those of mistral-common."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_multimodal import VOXTRAL_SPECIALS, tone, voxtral_files

from afzal.folders.load import load_processor
from afzal.media import in_row, media_part
from afzal.records import Item, Message, Response
from afzal.tokens import Speaker
from afzal.tokens.media import decode_sound, reader_of

pytest.importorskip("soundfile", reason="needs the extra audio")

BOS, EOS, INST, END_INST, AUDIO, BEGIN_AUDIO = 1, 2, 3, 4, 24, 25
SHORT, LONG = tone(300, 0.5), tone(500, 2.5)


def speaker(folder: str) -> Speaker:
    processor = load_processor(folder)
    return Speaker(processor.tokenizer, reader=reader_of(processor))


def spelled(text: str) -> list[int]:
    """Ids of a text in which no two bytes merge."""
    return [len(VOXTRAL_SPECIALS) + byte for byte in text.encode()]


def sounds(*contents: bytes) -> tuple[Any, ...]:
    return tuple(media_part(in_row("audio", content)) for content in contents)


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def test_ids_are_those_of_the_format_and_arrays_those_of_transformers() -> None:
    made = speaker(voxtral_files().name)
    assert made.codec.prefix_ids == [BOS]
    asked = Message("user", (*sounds(SHORT, LONG), text("[AUDIO]?")))
    item = Item("a", (asked,), (Response((Message("assistant", "no"),)),))
    (t,) = made.encode([item], max_tokens=999).trees
    heard = [BEGIN_AUDIO, *[AUDIO] * 25, BEGIN_AUDIO, *[AUDIO] * 50]
    assert t.prompt.tolist() == [BOS, INST, *heard, *spelled("[AUDIO]?"), END_INST]
    assert t.branches[0].ids.tolist() == [*spelled("no"), EOS]
    waves = [decode_sound(m.media, 16000) for m in t.media]
    own = made.files._retrieve_input_features(
        waves, 200, sampling_rate=16000, padding=True, truncation=False, pad_to_multiple_of=32000, return_tensors="pt"
    )
    assert np.array_equal(np.concatenate([m.arrays()["input_features"] for m in t.media]), own.numpy())


def test_what_mistral_common_refuses_is_dropped_by_name() -> None:
    made = speaker(voxtral_files().name)
    heard, briefly = Message("user", sounds(SHORT)), Message("system", "Be brief.")
    answers = (Response((Message("assistant", "no"),)),)
    twice = Message("user", "And?")
    encoded = made.encode([Item("a", (briefly, heard), answers), Item("b", (twice, twice), answers)], max_tokens=999)
    assert [d.detail for d in encoded.drops] == [
        "Voxtral reads no system message beside sounds",
        "after the system message roles must alternate between user and assistant",
    ]


def test_a_saved_folder_is_read_alike_and_keeps_the_vocabulary_that_servers_read(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    first = speaker(voxtral_files().name)
    first.files.save_pretrained(tmp_path)
    again = speaker(str(tmp_path))
    assert again.template == first.template
    assert again.reader is not None
    assert again.reader.medium(in_row("audio", SHORT)).key == first.reader.medium(in_row("audio", SHORT)).key
    assert again.tokenizer("a [INST]")["input_ids"] == first.tokenizer("a [INST]")["input_ids"]
    assert (tmp_path / "tekken.json").read_bytes() == (Path(voxtral_files().name) / "tekken.json").read_bytes()
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "VoxtralProcessor"


@pytest.mark.parametrize(
    "talk",
    [
        [Message("user", "the tin [INST]")],
        [Message("user", (*sounds(SHORT), text("What is it?")))],
        [Message("user", (text("One."), text("Two."), *sounds(LONG, SHORT), text("Three.")))],
        [Message("user", sounds(SHORT)), Message("assistant", "A tone."), Message("user", "Sure?")],
        [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hi."), Message("user", "Bye")],
    ],
)
def test_conversations_are_those_of_mistral_common(talk: list[Message]) -> None:
    pytest.importorskip("mistral_common", reason="compares with mistral-common")
    from transformers import MistralCommonBackend, VoxtralProcessor

    made = speaker(voxtral_files().name)
    (t,) = made.prompt_trees([tuple(talk)])
    tokenizer = MistralCommonBackend.from_pretrained(voxtral_files().name)
    theirs = VoxtralProcessor(made.files.feature_extractor, tokenizer).apply_chat_template(
        [{"role": m.role, "content": _as_theirs(m.content)} for m in talk],
        processor_kwargs={"audio_kwargs": {"pad_to_multiple_of": 32000, "max_source_positions": 200}},
    )
    assert t.prompt.tolist() == theirs["input_ids"][0].tolist()
    if t.media:
        ours = np.concatenate([m.arrays()["input_features"] for m in t.media])
        assert np.allclose(ours, theirs["input_features"].numpy(), atol=1e-5)


def _as_theirs(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [p if "text" in p else {"type": "audio", "base64": b64encode(p["media"].read()).decode()} for p in content]
