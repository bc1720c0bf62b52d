"""Texts of a branch as ids: together if the joints allow it, white space that moves, and why a text cannot be said."""

from __future__ import annotations

from typing import Any

import pytest
from helpers_tokenizers import CHATML, byte_tokenizer, merging_tokenizer, word_tokenizer

from afzal.tokens import segment_encoding as module
from afzal.tokens.codec import Codec
from afzal.tokens.layout import Chunk, Layout, Segment
from afzal.tokens.segment_encoding import EncodedAnswer

EOS, END = 258, 260  # of a byte tokenizer with ChatML


def said(text: str, scored: bool = True, markers: bool = True) -> Segment:
    return Segment((Chunk(text, markers),), scored)


def encoded(tokenizer: Any, prompt: str, *segments: Segment) -> EncodedAnswer:
    """One answer to a prompt, both as rendered text."""
    codec, layout = Codec(tokenizer), Layout((Chunk(prompt, True),), (segments,))
    answer = EncodedAnswer(0, segments)
    table = module.encode_jointly([layout], codec)
    before = table[Chunk(prompt, True)]
    module.encode_segments([layout], [before], [[answer]], codec, table)
    return answer


def spelled(answer: EncodedAnswer) -> list[tuple[str, bool]]:
    return [(s.text, s.scored) for s in answer.segments]


def test_every_prefix_of_prompt_and_segments_is_encoded_once():
    layout = Layout((Chunk("p", True),), ((said("a"), said("b", False)), (said("a"),)))
    table = module.encode_jointly([layout], Codec(byte_tokenizer()))
    assert table == {Chunk(t, True): list(t.encode()) for t in ("p", "pa", "pab")}


def test_texts_with_and_without_markers_are_not_encoded_as_one():
    codec = Codec(byte_tokenizer(template=CHATML))
    layout = Layout((Chunk("p", True),), ((said("<|im_end|>", markers=False),), (said("<|im_end|>"),)))
    table = module.encode_jointly([layout], codec)
    assert table == {Chunk("p", True): [112], Chunk("p<|im_end|>", True): [112, END]}
    plain = Layout((Chunk("<|im_end|>", False),), ((said("q", markers=False),),))
    (short, long) = module.encode_jointly([plain], codec).values()
    assert (len(short), len(long)) == (10, 11)  # the marker's characters
    two = Layout((Chunk("p", True), Chunk("q", True)), ((said("a"),),))
    assert module.encode_jointly([two], codec) == {}


def test_segments_are_cut_where_their_texts_end():
    answer = encoded(byte_tokenizer(), "p", said("ab"), said("\n", False), said("cd"))
    assert answer.parts == [[97, 98], [10], [99, 100]]
    assert answer.exact
    # a token of several bytes, none of which crosses a joint
    answer = encoded(merging_tokenizer([("a", "b"), ("c", "d")]), "p", said("ab"), said("\n", False), said("cd"))
    assert answer.parts == [[256], [10], [257]]


@pytest.mark.parametrize(
    ("merges", "segments", "expected", "parts"),
    [
        # one token holds white space of the template and the first character of the answer
        ([("\n", "d")], ["c", "x\n", "d"], ["c", "x", "\nd"], [[99], [120], [256]]),
        ([("\n", "d")], ["c", "\n", "de"], ["c", "\nde"], [[99], [256, 101]]),
        ([("\n", "\n"), ("\n\n", "d")], ["c", "x\n\n", "d"], ["c", "x", "\n\nd"], [[99], [120], [257]]),
        # what is no white space stays with the template
        ([("x", "d")], ["c", "x", "d"], ["c", "x", "d"], [[99], [120], [100]]),
        # and the answer's own characters stay with the answer
        ([("c", "x")], ["c", "x", "d"], ["c", "x", "d"], [[99], [120], [100]]),
        ([("c", "\n")], ["c", "\n", "d"], ["c", "\n", "d"], [[99], [10], [100]]),
    ],
)
def test_white_space_goes_to_the_answer_that_shares_a_token_with_it(merges, segments, expected, parts):
    given = [said(text, k % 2 == 0) for k, text in enumerate(segments)]
    answer = encoded(merging_tokenizer(merges), "p", *given)
    assert spelled(answer) == [(text, text not in ("x", "x\n", "\n")) for text in expected]
    assert answer.parts == parts
    assert answer.exact


def test_a_joint_is_found_at_some_distance_from_its_guess():
    """The text before the joint takes fewer tokens alone than within the whole, or more."""
    merges = [("a", "b"), ("ab", "\n"), ("\n", "d")]
    answer = encoded(merging_tokenizer(merges), "p", said("c"), said("abab\n\n", False), said("d"))
    assert "".join(s.text for s in answer.segments) == "cabab\n\nd"
    assert answer.parts
    decode = merging_tokenizer(merges).decode
    assert [decode(ids) for ids in answer.parts] == [s.text for s in answer.segments]
    assert [s.scored for s in answer.segments] == [True, False, True]


def test_a_joint_is_found_after_a_long_prompt_and_a_long_answer():
    answer = encoded(merging_tokenizer([("\n", "d")]), "p" * 12, said("c" * 9), said("x\n", False), said("d"))
    assert spelled(answer) == [("c" * 9, True), ("x", False), ("\nd", True)]
    assert answer.parts == [[99] * 9, [120], [256]]


def test_an_answer_that_merges_with_its_prompt_is_encoded_by_itself():
    tokenizer = merging_tokenizer([("a", "b"), ("b", "c")])
    assert encoded(tokenizer, "a", said("b")).parts == [[98]]
    assert encoded(tokenizer, "a", said("bc"), said("\n", False)).parts == [[257], [10]]


def test_an_answer_of_which_a_part_cannot_be_said_is_none():
    tokenizer = word_tokenizer(["a", "world"])
    plain = [said(text, k != 1, markers=False) for k, text in enumerate((" world", " zebra", " world"))]
    assert encoded(tokenizer, "a", plain[0], plain[2]).parts == [[3], [3]]
    assert encoded(tokenizer, "a", *plain).parts is None


@pytest.mark.parametrize(
    ("segments", "parts", "kept", "exact"),
    [
        ([said("ab")], [[97, 98]], True, True),
        ([said("ab")], [[97, 99]], False, True),
        ([said("a"), said("x", False), said("b")], [[97], [120], [99]], False, True),
        ([said("a"), said("x", False), said("b")], [[97], [121], [98]], True, True),  # it is not learned
        ([said("<eos>", markers=False)], [[EOS]], False, True),
        ([said("<eos>")], [[EOS]], True, True),
        ([said("e\u0301")], [list("\u00e9".encode())], True, False),  # another normal form of the same text
    ],
)
def test_ids_that_do_not_say_the_text_are_cleared(segments, parts, kept, exact):
    answer, good = EncodedAnswer(0, tuple(segments), parts), EncodedAnswer(1, (said("z"),), [[122]])
    module._clear_inexact([([112], answer), ([112], good)], Codec(byte_tokenizer()))
    assert answer.parts == (parts if kept else None)
    assert answer.exact is exact
    assert good.parts == [[122]]


def test_which_white_space_may_move():
    move = module._move_space
    before, after = said("x \n", False), said("d")
    assert move(before, after, 3) == (before, after)
    assert move(before, after, 1) == (said("x", False), said(" \nd"))
    assert move(before, after, 0) is None  # the x
    assert move(said("x ", True), after, 1) is None
    assert move(before, said("d", False), 1) is None


def test_a_special_token_in_a_persons_text_is_never_accepted():
    codec = Codec(byte_tokenizer(template=CHATML))
    assert module.respects_markers(Chunk("a", True), [97, EOS], codec)
    assert module.respects_markers(Chunk("a", False), [97], codec)
    assert not module.respects_markers(Chunk("a", False), [97, EOS], codec)
    assert module.encode_continuation([Chunk("a", False), Chunk("<|im_end|>", True)], codec) == [97, END]
    assert module.encode_continuation([], codec) == []


def test_a_continuation_that_cannot_be_said_is_none():
    codec = Codec(word_tokenizer(["a", "world"]))
    assert module.encode_continuation([Chunk(" world", False)], codec) == [3]
    assert module.encode_continuation([Chunk(" world", False), Chunk(" zebra", False)], codec) is None


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (" <eos>", "special_token_in_text", ""),
        (" world zebra", "not_reversible", "the tokenizer writes"),
        ("world", "boundary", ""),
    ],
)
def test_why_an_answer_cannot_be_said(text, reason, detail):
    codec = Codec(word_tokenizer(["hello", "world"]))
    found, words = module.failure_reason(EncodedAnswer(0, (said(text, markers=False),)), codec)
    assert found == reason
    assert words.startswith(detail)
    assert bool(words) == bool(detail)


@pytest.mark.parametrize(
    ("text", "written", "named"),
    [
        ("abc", "abd", "'d' for 'c'"),
        ("abc", "abcd", "'d' for ''"),
        ("abcd", "abc", "'' for 'd'"),
        ("x", "y" * 30, f"'{'y' * 20}' for 'x'"),
    ],
)
def test_the_first_difference_of_a_text_that_is_written_otherwise(text, written, named):
    assert module._first_difference(text, written) == f"the tokenizer writes {named}"
