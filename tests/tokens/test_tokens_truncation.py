"""Cuts: no empty response, one prompt for all branches, every cut recorded."""

import numpy as np
import pytest
from helpers_tokenizers import CHATML, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Message, Response, preferences
from afzal.tokens import encode
from afzal.tokens.truncation import budget, truncate_prompt

PLAIN = byte_tokenizer(add_bos=True)
CHAT = byte_tokenizer(template=CHATML, eos="<|im_end|>")

text = st.text("ab \n🙂", min_size=0, max_size=40)


@st.composite
def items(draw: st.DrawFn) -> Item:
    k = draw(st.integers(1, 4))
    answers = [draw(text) for _ in range(k)]
    votes = tuple(Comparison(i, j, "first") for i in range(k) for j in range(i + 1, k) if draw(st.booleans()))
    if draw(st.booleans()):
        return Item("t", draw(text), tuple(Response(a) for a in answers), votes)
    turns = [(Message("assistant", a), Message("user", draw(text)), Message("assistant", draw(text))) for a in answers]
    prompt = (Message("user", draw(text)),)
    return Item("c", prompt, tuple(Response(t[: draw(st.sampled_from([1, 3]))]) for t in turns), votes)


@settings(max_examples=100, deadline=None)
@given(st.lists(items(), max_size=4), st.integers(2, 80))
def test_cut_trees_keep_their_promises(given_items: list[Item], max_tokens: int) -> None:
    for tokenizer, chat in ((PLAIN, False), (CHAT, True)):
        chosen = [i for i in given_items if i.is_chat == chat]
        whole = {t.prompt.tobytes(): t for t in encode(chosen, tokenizer, max_tokens=10_000).trees}
        encoded = encode(chosen, tokenizer, max_tokens=max_tokens)

        def lost(unit: str, losses=encoded.drops) -> int:
            return sum(loss.unit == unit for loss in losses)

        by_item = [d for d in encoded.drops if d.unit == "item"]
        assert len(encoded.trees) + len(by_item) == len(chosen)
        kept = [i for i in chosen if encode([i], tokenizer, max_tokens=max_tokens).trees]
        assert sum(len(t.branches) for t in encoded.trees) + lost("response") == sum(len(i.responses) for i in kept)
        assert sum(len(t.preferences) for t in encoded.trees) + lost("pair") == sum(len(preferences(i)) for i in kept)
        for tree in encoded.trees:
            assert len(tree.prompt) >= 1
            for branch in tree.branches:
                assert len(tree.prompt) + len(branch.ids) <= max_tokens
                assert len(branch.ids) == len(branch.scored) >= 1
                assert branch.scored[0]
            for pair in tree.preferences:
                assert not np.array_equal(tree.branches[pair.i].ids, tree.branches[pair.j].ids)
        for item, tree in zip(kept, encoded.trees, strict=True):
            uncut = next(t for t in whole.values() if t.item_id == item.id and _ends_with(t.prompt, tree.prompt))
            assert len(uncut.prompt) >= len(tree.prompt)
        cut = [c for c in encoded.cuts if c.reason == "response_cut"]
        ends = sum(int(b.ids[-1] == tokenizer.eos_token_id) for t in encoded.trees for b in t.branches)
        if not chat:  # in a chat an inner turn may end right at the cut
            assert ends == sum(len(t.branches) for t in encoded.trees) - len(cut)


def _ends_with(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether ``part`` is the right end of ``whole``, apart from a BOS kept in front."""
    n = len(part) - 1
    return n == 0 or np.array_equal(whole[-n:], part[1:])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 200))
def test_the_budget_protects_responses_up_to_half(prompt: int, longest: int, max_tokens: int) -> None:
    p, c = budget(prompt, longest, max_tokens)
    assert 1 <= p <= prompt
    assert 1 <= c <= longest
    assert p + c <= max_tokens
    if prompt + longest <= max_tokens:
        assert (p, c) == (prompt, longest)
    else:
        assert p + c == max_tokens, "no room is left unused"
        assert c >= min(longest, max_tokens // 2)
        assert p == prompt or c <= max(max_tokens // 2, 1), "a prompt is cut only for the responses' half"


def test_the_prompt_is_cut_once_for_all_branches_and_keeps_its_bos() -> None:
    item = Item("x", "0123456789", (Response("ab"), Response("abcdefgh")), (Comparison(0, 1, "first"),), "f:7")
    encoded = encode([item], PLAIN, max_tokens=10)
    (tree,) = encoded.trees
    assert PLAIN.decode(tree.prompt) == "<bos>6789"
    assert [PLAIN.decode(b.ids) for b in tree.branches] == ["ab<eos>", "abcde"]
    assert [(c.reason, c.unit, c.where, c.action) for c in encoded.cuts] == [
        ("prompt_cut", "item", "f:7", "cut"),
        ("response_cut", "response", "f:7", "cut"),
    ]
    assert encoded.cuts[0].detail == "5 of 11 prompt tokens kept"
    assert encoded.cuts[1].detail == "response 1: 5 of 9 tokens kept, no EOS"
    assert encoded.counts("cut") == {"prompt_cut": 1, "response_cut": 1}


def test_short_prompts_leave_their_room_to_the_responses() -> None:
    (tree,) = encode([Item("x", "0", (Response("abcdefghijkl"),))], PLAIN, max_tokens=10).trees
    assert PLAIN.decode(tree.prompt) == "<bos>0"
    assert PLAIN.decode(tree.branches[0].ids) == "abcdefgh"


def test_pairs_that_became_identical_are_dropped() -> None:
    votes = (Comparison(0, 1, "first"), Comparison(0, 2, "first"))
    item = Item("x", "0", (Response("abcdefgh1"), Response("abcdefgh2"), Response("zz")), votes)
    encoded = encode([item], PLAIN, max_tokens=8)
    assert [(d.reason, d.unit, d.detail) for d in encoded.drops] == [
        ("identical_after_cut", "pair", "responses 0 and 1")
    ]
    assert [(p.i, p.j) for p in encoded.trees[0].preferences] == [(0, 2)]
    same = Item("y", "0", (Response("a"), Response("a")), (Comparison(0, 1, "first"),))
    assert encode([same], PLAIN, max_tokens=8).counts("dropped") == {"identical_pair": 1}


def test_an_item_without_preferences_is_kept() -> None:
    item = Item("x", "0", (Response("a"), Response("")), (Comparison(0, 1, "first"),))
    encoded = encode([item], PLAIN, max_tokens=8)
    assert [(d.reason, d.unit) for d in encoded.drops] == [("empty_response", "response"), ("response_dropped", "pair")]
    assert (len(encoded.trees), encoded.trees[0].preferences) == (1, ())
    only_empty = encode([Item("x", "0", (Response(""), Response("")))], PLAIN, max_tokens=8)
    assert [(d.reason, d.unit) for d in only_empty.drops] == [("empty_response", "item")]


def test_cutting_a_prompt() -> None:
    assert truncate_prompt([9, 1, 2, 3], 4, bos=9) == [9, 1, 2, 3]
    assert truncate_prompt([9, 1, 2, 3], 3, bos=9) == [9, 2, 3]
    assert truncate_prompt([9, 1, 2, 3], 1, bos=9) == [3]
    assert truncate_prompt([9, 1, 2, 3], 3, bos=None) == [1, 2, 3]


def test_no_room_is_refused() -> None:
    with pytest.raises(AfzalError, match="max_tokens is 1"):
        encode([], PLAIN, max_tokens=1)
