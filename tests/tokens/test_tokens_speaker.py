"""What a speaker says by itself: where answers end, what begins a document, how much room there is."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_tokenizers import CHATML, GEMMA, byte_tokenizer, llama_tokenizer, word_tokenizer

from afzal.errors import AfzalError
from afzal.records import Item, Message
from afzal.tokens import Speaker, any_chat
from afzal.tokens import speaker as module

PAD, BOS, EOS, START, END = 256, 257, 258, 259, 260  # of a byte tokenizer with ChatML


def chatml(**fields: Any) -> Speaker:
    return Speaker(byte_tokenizer(template=CHATML), **fields)


def test_where_answers_end():
    speaker = chatml()
    assert speaker.turn_end() == END
    assert (speaker.response_end(chat=True), speaker.response_end(chat=False)) == (END, EOS)
    assert (speaker.ends(chat=True), speaker.ends(chat=False)) == ([EOS, END], [EOS])
    stated = chatml(stated_end=7)
    assert (stated.response_end(chat=True), stated.response_end(chat=False)) == (7, 7)
    # generation also stops where the model was taught to before
    assert (stated.ends(chat=True), stated.ends(chat=False)) == ([7, EOS, END], [7, EOS])
    assert chatml(stated_end=0).response_end(chat=False) == 0  # an id, not a missing value
    own = chatml(model_ends=(9, BOS))
    assert (own.ends(chat=True), own.ends(chat=False)) == ([9, EOS, END], [9, BOS, EOS])
    plain = Speaker(byte_tokenizer())  # its transcript template has no marker of its own
    assert plain.turn_end() == EOS


def test_a_tokenizer_without_eos_ends_conversations_by_the_marker_alone():
    tokenizer = byte_tokenizer(template=CHATML)
    tokenizer.eos_token = None
    speaker = Speaker(tokenizer)
    assert (speaker.ends(chat=True), speaker.ends(chat=False)) == ([END], [])
    assert speaker.response_end(chat=True) == END
    with pytest.raises(AfzalError, match="no EOS token"):
        speaker.response_end(chat=False)


def test_ends_as_texts_leave_out_what_has_no_token():
    assert chatml().end_texts(chat=True) == ["<eos>", "<|im_end|>"]
    assert chatml(model_ends=(9999,)).end_texts(chat=False) == ["<eos>"]


def test_room_is_bounded_by_the_context():
    assert chatml().limit_tokens(500) == 500
    assert chatml(context=100).limit_tokens(500) == 100
    assert chatml(context=100).limit_tokens(50) == 50


def test_what_begins_a_document_is_the_tokenizers_prefix_or_bos_or_the_end():
    assert chatml().empty_prompt() == [BOS]
    assert Speaker(byte_tokenizer(add_bos=True)).empty_prompt() == [BOS]
    without = Speaker(byte_tokenizer(bos=None))
    assert without.bos is None
    assert without.empty_prompt() == [without.tokenizer.eos_token_id]
    chat = Speaker(byte_tokenizer(bos=None, template=CHATML))
    assert chat.empty_prompt() == [chat.tokenizer.eos_token_id]  # and not the end of a turn
    zero = byte_tokenizer()
    zero.bos_token = zero.convert_ids_to_tokens(0)
    assert Speaker(zero).empty_prompt() == [0]  # an id, not a missing value


def test_which_tokenizers_lose_the_space_before_an_answer():
    assert not chatml().drops_blank()
    assert not Speaker(word_tokenizer(["b"])).drops_blank()  # it cannot spell the word at all
    speaker = Speaker(llama_tokenizer())
    assert speaker.drops_blank()
    before, ids = speaker.tokenizer("ab")["input_ids"], speaker.codec.continuations([" cd"], markers=False)[0]
    assert ids is not None
    assert speaker.continuation(before, ids) == " cd"
    assert speaker.codec.decode([ids]) == ["cd"]


def test_texts_that_depend_on_what_precedes_keep_their_place_among_the_others():
    speaker = chatml()
    pairs = [([97], [98, 99]), ([0xC3], [0xA9]), ([97], [100])]  # the second completes a character
    assert speaker.continuations(pairs) == ["bc", speaker.codec.decode([[0xA9]])[0], "d"]


def test_a_speaker_makes_its_parts_once_and_says_which_template_it_uses():
    speaker = Speaker(byte_tokenizer())
    assert speaker.codec is speaker.codec
    assert speaker.renderer is speaker.renderer
    assert speaker.notice
    assert chatml().notice is None
    assert chatml().template == CHATML
    assert Speaker(byte_tokenizer(template=CHATML), GEMMA).template == GEMMA


def test_what_is_saved_with_a_model_is_its_processor_or_its_tokenizer():
    assert chatml().files.eos_token_id == EOS
    reader: Any = SimpleNamespace(processor="processor")
    assert chatml(reader=reader).files == "processor"


def test_prompts_are_cut_to_the_limit_and_never_without_one(monkeypatch):
    speaker, text = chatml(), "a" * 3000
    (whole,) = speaker.encode_prompts([text])
    assert len(whole) == 3000
    (tree,) = speaker.prompt_trees([text], max_tokens=100)
    assert (len(tree.prompt), tree.branches) == (100, ())
    assert [len(p) for p in speaker.encode_prompts([text], max_tokens=100)] == [100]
    remarks: Counter[str] = Counter()
    before = Item("x", (Message("user", "Q"), Message("assistant", "<think>why</think>A"), Message("user", "R")), ())
    dropping = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    chat = Speaker(byte_tokenizer(template=CHATML), dropping)
    assert len(chat.encode_prompts([before], remarks=remarks)) == 1
    assert sum(remarks.values()) == 1
    picture = SimpleNamespace(media=("picture",), prompt=whole)
    monkeypatch.setattr(module, "prompt_trees", lambda *_: [tree, picture])
    with pytest.raises(AfzalError, match="images or sounds"):
        speaker.encode_prompts([text, text])


def test_one_conversation_makes_the_template_decide():
    text, chat = Item("a", "Q", ()), Item("b", (Message("user", "Q"),), ())
    assert any_chat([text, chat])
    assert not any_chat([text])
    assert not any_chat([])
