"""A chat with a model that sees or hears: its answers are samples of the model, and depend on the medium."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from helpers_multimodal import FAMILIES, made, picture, tone
from helpers_runs import model_folder

from afzal.config import ChatConfig
from afzal.generate import Sampling, sample
from afzal.generate.chat import ChatModel
from afzal.media import in_row, media_part
from afzal.model.speakers import speaker_of
from afzal.records import Message

pytest.importorskip("PIL", reason="needs the extra vision")


def chatting(folder: Path, family: str) -> ChatModel:
    model, processor = made(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return ChatModel(str(folder), "m", ChatConfig(model=str(folder), max_new_tokens=12, seed=3))


@pytest.mark.parametrize("family", ["llava", "qwen2_audio"])
def test_an_answer_to_a_medium_is_a_sample(tmp_path, family):
    if FAMILIES[family][0] == "audio":
        pytest.importorskip("soundfile", reason="needs the extra audio")
    kind = FAMILIES[family][0]
    one, *others = [picture(k) if kind == "image" else tone(300 + 100 * k) for k in range(8)]
    partner = chatting(tmp_path, family)
    assert partner.reads == {kind}

    def turns(content: bytes) -> list[Message]:
        parts = (media_part(in_row(kind, content)), {"type": "text", "text": "What is this?"})
        return [Message("system", "Be brief."), Message("user", parts)]

    grown = ""

    def on_text(keep: int, text: str) -> None:
        nonlocal grown
        grown = grown[:keep] + text

    reply = partner.answer(turns(one), 7, on_text, Event())
    assert grown == reply.text
    model, processor = made(family)
    speaker = speaker_of(model, processor)
    (tree,) = speaker.prompt_trees([tuple(turns(one))])
    (drawn,) = sample(
        model, [tree], eos=speaker.ends(chat=True), sampling=Sampling(12, 1.0, 1.0, 0), seed=3, numbers=[7]
    )
    assert reply.text == speaker.continuation(tree.prompt.tolist(), drawn.answer.tolist())
    assert reply.tokens == len(drawn.ids)
    texts = [partner.answer(turns(content), 7, lambda keep, text: None, Event()).text for content in others]
    assert set(texts) != {reply.text}


def test_a_text_model_reads_no_media(tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert ChatModel(str(folder), "m", ChatConfig(model=str(folder))).reads == frozenset()
