"""Images and sounds: the log-probs of every family are those of a plain `transformers` forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_multimodal import FAMILIES, made, picture, tone

from afzal.media import Media, in_row, media_part
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.logprobs import score
from afzal.model.media import freeze_towers, placeholder_ids, towers
from afzal.model.probe import choose_sharing
from afzal.model.speakers import speaker_of
from afzal.records import Item, Message, Response
from afzal.tokens.batch import collate, expand
from afzal.tokens.media import decode_image, decode_sound
from afzal.tokens.tree import Tree

pytest.importorskip("PIL", reason="needs the extra vision")
pytest.importorskip("soundfile", reason="needs the extra audio")

ANSWERS = ("A red one.", "blue")


def medium(kind: str, number: int) -> Media:
    if kind == "image":
        return in_row("image", picture(number, 30 + 20 * number, 40))
    return in_row("audio", tone(300 + 200 * number, 0.3 + 0.1 * number))


def asked(kind: str, *numbers: int, text: str = "What is this?") -> tuple[Message, ...]:
    parts = [media_part(medium(kind, k)) for k in numbers]
    return (Message("user", (*parts, {"type": "text", "text": text})),)


def item(prompt: Any, name: str = "a") -> Item:
    return Item(name, prompt, tuple(Response((Message("assistant", text),)) for text in ANSWERS))


def by_transformers(model: Any, processor: Any, one: Item, t: Tree) -> tuple[list[list[int]], torch.Tensor]:
    """Ids and log-probs of the item's answers as a user of `transformers` gets them, one conversation at a time."""
    kind = next(m.kind for m in one.prompt[0].content[0].values() if isinstance(m, Media))
    media = [p["media"] for p in one.prompt[0].content if "media" in p]
    parts = [{"type": p["type"], **({"text": p["text"]} if "text" in p else {})} for p in one.prompt[0].content]
    given: dict[str, Any] = {"return_tensors": "pt", "add_special_tokens": False}
    if kind == "image":
        given["images"] = [[decode_image(m) for m in media]]
    else:
        rate = processor.feature_extractor.sampling_rate
        given |= {"audio": [decode_sound(m, rate) for m in media], "sampling_rate": rate}
    rows, logps = [], []
    for branch, text in zip(t.branches, ANSWERS, strict=True):
        talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        written = processor.tokenizer.apply_chat_template(talk, tokenize=False).rstrip("\n")
        inputs = processor(text=[written], **given)
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0]
        n = len(branch.ids)
        logps.append(scores[-n - 1 : -1].gather(1, ids[-n:, None])[:, 0])
        rows.append(ids.tolist())
    return rows, torch.cat(logps)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_transformers_shared_and_unshared(family: str) -> None:
    kind = FAMILIES[family][0]
    model, processor = made(family)
    speaker = speaker_of(model, processor)
    items = [item(asked(kind, 0)), item(asked(kind, 1, 2, text="And these?"), "b")]
    trees = speaker.encode(items, max_tokens=1000).trees
    assert [len(t.media) for t in trees] == [1, 2]
    expected = []
    for one, t in zip(items, trees, strict=True):
        rows, logps = by_transformers(model, processor, one, t)
        assert rows == [[*t.prompt.tolist(), *b.ids.tolist()] for b in t.branches]
        assert all(b.scored.all() for b in t.branches)
        expected.append(logps)
    wanted = torch.cat(expected)
    with torch.no_grad():
        apart = score(model, collate(trees, "unshared"))
        assert int(apart.lengths.sum()) == sum(int(b.scored.sum()) for t in trees for b in t.branches)
        assert torch.allclose(apart.token_logps, wanted, atol=1e-4)
        sharing, why = choose_sharing(model, media_trees=trees)
        assert (sharing, "gemma3" in why) == (("unshared", True) if family == "gemma3" else ("shared", False))
        together = score(model, collate(trees, sharing)).token_logps
    assert torch.allclose(together, wanted, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_matters_and_rows_of_text_beside_it_do_not(family: str) -> None:
    kind = FAMILIES[family][0]
    model, processor = made(family)
    speaker = speaker_of(model, processor)
    marker = next(iter(speaker.reader.markers().values()))
    said = (Message("user", f"The word {marker} is text."),)
    items = [item(asked(kind, 0)), item(said, "text"), item(asked(kind, 1), "c")]
    encoded = speaker.encode(items, max_tokens=1000)
    trees = encoded.trees
    assert encoded.notes == ("a special token is spelled out in the text of 1 item: read as plain characters",)
    assert not set(trees[1].prompt.tolist()) & set(placeholder_ids(model.config))
    assert not trees[1].media
    sharing = choose_sharing(model)[0]
    with torch.no_grad():
        together = score(model, collate(trees, sharing)).logps
        alone = torch.cat([score(model, collate([t], sharing)).logps for t in trees])
        blank = [replace(t, media=tuple(m.without_content() for m in t.media)) for t in trees]
        unseen = score(model, collate(blank, sharing)).logps
    assert torch.allclose(together, alone, atol=1e-4)
    changed = (together - unseen).abs()
    assert (changed[[0, 1, 4, 5]] > 1e-4).all()
    assert (changed[[2, 3]] < 1e-4).all()
    assert len({t.key(0) for t in (*trees, *blank)}) == 5  # the text shows nothing, blank or not


def test_two_pictures_under_one_text_share_neither_key_nor_prompt() -> None:
    model, processor = made("llava")
    speaker = speaker_of(model, processor)
    first, second, again = (speaker.encode([item(asked("image", k))], max_tokens=99).trees[0] for k in (0, 1, 0))
    assert np.array_equal(first.prompt, second.prompt)
    assert first.key(0) != second.key(0)
    assert first.prompt_key != second.prompt_key
    assert (first.key(0), first.prompt_key) == (again.key(0), again.prompt_key)


def test_media_are_counted_never_cut_and_unknown_ones_refused() -> None:
    model, processor = made("llava")
    speaker = speaker_of(model, processor)
    long = speaker.encode([item(asked("image", 0, text="word " * 40))], max_tokens=60)
    assert long.counts("dropped") == {"media_too_long": 1}
    sound = speaker.encode([item(asked("audio", 0))], max_tokens=99)
    assert sound.counts("dropped") == {"media_not_supported": 1}
    answer = Item("a", (Message("user", "Draw."),), (Response(tuple(asked("image", 0))),))
    assert speaker.encode([answer], max_tokens=99).counts("dropped") == {"media_in_response": 1}
    forgetful = replace(speaker, chat_template="{% for m in messages %}{{ m.role }}{% endfor %}")
    lost = forgetful.encode([item(asked("image", 0))], max_tokens=99)
    assert lost.counts("dropped") == {"media_mismatch": 1}
    assert "1 x image in the row, 0 in the rendered prompt" in lost.drops[0].detail
    texts = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"  # a template that fails on parts
    blind = replace(speaker, reader=None, chat_template=texts)
    assert blind.encode([item(asked("image", 0))], max_tokens=99).counts("dropped") == {"media_not_supported": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_training_leave_the_towers_alone(family: str) -> None:
    model, _ = made(family)
    names = list(towers(model))
    assert names
    freeze_towers(model)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(any(n.startswith(f"{tower}.") for tower in names) for n in frozen)
    adapted = add_adapter(model, Adapter("lora", 2, 4.0, excluded=names))
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert not [n for n in trained if any(f".{tower}." in n for tower in names)]
    everywhere = add_adapter(made(family)[0], Adapter("lora", 2, 4.0))
    assert [n for n, p in everywhere.named_parameters() if p.requires_grad and any(f".{t}." in n for t in names)]


def test_one_picture_is_read_once_for_all_answers() -> None:
    model, processor = made("llava")
    speaker = speaker_of(model, processor)
    (t,) = speaker.encode([item(asked("image", 0))], max_tokens=99).trees
    assert choose_sharing(model)[0] == "shared"
    shared, apart = collate([t], "shared"), collate([t], "unshared")
    assert len(shared.media["pixel_values"]) == 1
    assert len(apart.media["pixel_values"]) == len(expand([t])) == 2
