"""The boundary of prompt and response: scored tokens decode to the response and one EOS, for every tokenizer kind."""

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tokenizers import (
    CHATML,
    GEMMA,
    LLAMA,
    PHI,
    bpe_tokenizer,
    byte_tokenizer,
    llama_tokenizer,
    merging_tokenizer,
    unigram_tokenizer,
    word_tokenizer,
)

from afzal.records import Comparison, Item, Message, Response
from afzal.tokens import Encoded, Speaker, encode


def _python_tokenizer() -> Any:
    """Bytes without the Rust backend; it ends every text with an EOS."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


MADE: dict[str, Callable[[], Any]] = {
    "byte": byte_tokenizer,
    "byte_bos": lambda: byte_tokenizer(add_bos=True),
    "byte_eos_is_pad": lambda: byte_tokenizer(bos=None, pad="<eos>"),
    "byte_eos_is_bos": lambda: byte_tokenizer(bos="<eos>", add_bos=True),
    "bpe": bpe_tokenizer,
    "bpe_across_spaces": lambda: bpe_tokenizer(pre_split=False, add_bos=True),
    "llama": llama_tokenizer,
    "unigram": unigram_tokenizer,
    "pure_python": _python_tokenizer,
}
REAL = {"gpt2": "tokenizers/gpt2", "neox": "tokenizers/gpt-neox-20b", "stories": "models/stories260k"}
ALPHABETS = (
    "abcdefgh the question",
    " \n\t  \r\n",
    "0123456789.,:;!?-_()[]{}'\"\\/",
    "今天天气很好。你喜欢哪一个",
    "🙂🙃👩‍👩‍👧🏳️‍🌈é́ñ",
    "Оʻзбек ёлка אבג عربي हिन्दी",
    "\x00\x01\x7f\u200b\ufeff\u2028�",
)


def _text(rng: random.Random) -> str:
    runs = rng.randint(0, 5)
    return "".join("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 8))) for _ in range(runs))


def _pairs(n: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < n:
        prompt, response = _text(rng), _text(rng)
        if response:
            pairs.append((prompt, response))
    return pairs


def _tokenizer(name: str, shared: Callable[[], Path]) -> Any:
    if name in MADE:
        return MADE[name]()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared() / "data" / REAL[name])


def _decode(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _texts_hold(name: str, tokenizer: Any, n: int) -> None:
    items = [Item(str(k), p, (Response(r),)) for k, (p, r) in enumerate(_pairs(n, seed=len(name)))]
    encoded = encode(items, tokenizer, max_tokens=100_000)
    assert encoded.drops == []
    rewritten = {loss.item_id for loss in encoded.cuts}
    assert {loss.reason for loss in encoded.cuts} <= {"normalised"}
    head = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    eos = tokenizer.eos_token
    alone = tokenizer([i.prompt for i in items], split_special_tokens=True)["input_ids"]
    for item, tree, prompt in zip(items, encoded.trees, alone, strict=True):
        (branch,) = tree.branches
        response = str(item.responses[0].turns)
        if item.prompt:
            assert tree.prompt.tolist() == (prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt)
        body = tree.prompt.tolist()[len(head) :]
        added = _decode(tokenizer, body + branch.ids.tolist())[len(_decode(tokenizer, body)) :]
        expected = unicodedata.normalize("NFC", response) if item.id in rewritten else response
        assert added == expected + eos, (item.prompt, response)
        assert branch.scored.all()
        assert branch.ids.tolist().count(tokenizer.eos_token_id) == 1
        assert branch.ids[-1] == tokenizer.eos_token_id
        whole = tree.prompt.tolist() + branch.ids.tolist()[:-1]
        if item.prompt and tokenizer.bos_token_id is not None:
            assert whole.count(tokenizer.bos_token_id) == len(head)


def _shared_or_skip(request: pytest.FixtureRequest) -> Callable[[], Path]:
    return lambda: request.getfixturevalue("shared")


@pytest.mark.parametrize("name", [*MADE, *REAL])
def test_scored_ids_decode_to_the_response_and_one_eos(name: str, request: pytest.FixtureRequest) -> None:
    _texts_hold(name, _tokenizer(name, _shared_or_skip(request)), 400)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MADE, *REAL])
def test_ten_thousand_texts(name: str, request: pytest.FixtureRequest) -> None:
    _texts_hold(name, _tokenizer(name, _shared_or_skip(request)), 10_000)


TEMPLATES = {"plain": None, "chatml": CHATML, "llama": LLAMA, "gemma": GEMMA, "phi": PHI}
ANSWERS: dict[str, Callable[[str, str], str]] = {
    "plain": lambda text, eos: text + eos,
    "chatml": lambda text, eos: text + "<|im_end|>",
    "llama": lambda text, eos: f" {text} {eos}",
    "gemma": lambda text, eos: text.strip() + "<end_of_turn>",
    "phi": lambda text, eos: text + "<|end|>",
}
SPEAKERS: dict[str, Callable[[str | None], Any]] = {
    "byte": lambda t: byte_tokenizer(template=t, add_bos=True),
    "bpe": lambda t: bpe_tokenizer(template=t),
    "bpe_across_spaces": lambda t: bpe_tokenizer(template=t, pre_split=False),
    "llama": lambda t: llama_tokenizer(template=t),
}


def _chats_hold(template: str, tokenizer: Any, n: int) -> None:
    pairs = [(p, r) for p, r in _pairs(n, seed=n) if r.strip()]
    items = [
        Item(str(k), (Message("user", p),), (Response((Message("assistant", r),)),)) for k, (p, r) in enumerate(pairs)
    ]
    encoded = encode(items, tokenizer, max_tokens=100_000)
    assert encoded.drops == []
    assert encoded.cuts == []
    for (prompt, response), tree in zip(pairs, encoded.trees, strict=True):
        (branch,) = tree.branches
        expected = ANSWERS[template](response, tokenizer.eos_token)
        unscored = tokenizer.decode(branch.ids[~branch.scored])  # the template's white space, if it is a token
        assert unscored.strip() == ""
        assert branch.scored[len(branch.ids[~branch.scored]) :].all()
        said = Speaker(tokenizer).continuation(tree.prompt.tolist(), branch.ids.tolist())
        assert said == expected, (prompt, response)
        whole = tree.prompt.tolist() + branch.ids.tolist()
        assert whole[1:].count(tokenizer.bos_token_id) == 0
        if template != "plain":
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert tree.prompt.tolist() == asked


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", SPEAKERS)
def test_chats_start_where_the_generation_prompt_ends(name: str, template: str) -> None:
    _chats_hold(template, SPEAKERS[name](TEMPLATES[template]), 150)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEAKERS)
def test_ten_thousand_chats(name: str) -> None:
    for template in TEMPLATES:
        _chats_hold(template, SPEAKERS[name](TEMPLATES[template]), 10_000 // len(TEMPLATES))


@pytest.mark.parametrize(
    ("prompt", "response"),
    [("say the q", "uestion"), ("a", "bc"), ("ab", "c"), ("the end", " is"), ("x\n", "\ny"), ("the", "m")],
)
def test_merges_across_the_boundary_are_split_again(prompt: str, response: str) -> None:
    merges = [("q", "u"), ("qu", "e"), ("a", "b"), ("b", "c"), ("ab", "c"), ("d", " "), ("\n", "\n"), ("e", "m")]
    tokenizer = merging_tokenizer(merges)
    joint, alone = (tokenizer(t)["input_ids"] for t in (prompt + response, prompt))
    assert joint[: len(alone)] != alone, "the case must merge"
    (tree,) = encode([Item("x", prompt, (Response(response),))], tokenizer, max_tokens=64).trees
    assert tree.prompt.tolist() == alone
    assert _decode(tokenizer, tree.branches[0].ids) == response + "<eos>"


def test_golden_ids_of_a_merge() -> None:
    # bytes: a 97, b 98, c 99, space 32; merges: 256 "ab", 257 "abc"; pad 258, bos 259, eos 260
    tokenizer = merging_tokenizer([("a", "b"), ("ab", "c")], add_bos=True)
    item = Item("x", "c ab", (Response("c"), Response(" abc"), Response("ab")), (Comparison(1, 2, "second"),))
    (tree,) = encode([item], tokenizer, max_tokens=64).trees
    assert tree.prompt.tolist() == [259, 99, 32, 256]
    assert [b.ids.tolist() for b in tree.branches] == [[99, 260], [32, 257, 260], [256, 260]]
    assert [(p.i, p.j) for p in tree.preferences] == [(2, 1)]
    assert tree.labels == (None, False, True)


def test_every_branch_follows_the_same_prompt_ids_as_generation() -> None:
    tokenizer = llama_tokenizer()
    for prompt in ("Once upon a time ", "Once", "", "the q", "a\n"):
        item = Item("x", prompt, tuple(Response(r) for r in ("uestion", " there", "\n", "🙂")))
        (tree,) = encode([item], tokenizer, max_tokens=64).trees
        (ids,) = Speaker(tokenizer).encode_prompts([prompt], max_tokens=64)
        assert tree.prompt.tolist() == ids.tolist()
        assert len(tree.branches) == 4


def test_spelled_out_special_tokens_stay_text() -> None:
    for tokenizer in (llama_tokenizer(), byte_tokenizer(bos="<s>", eos="</s>", add_bos=True)):
        item = Item("x", "<s> is not <s>", (Response("</s> is not </s>"),))
        encoded = encode([item], tokenizer, max_tokens=200)
        (tree,) = encoded.trees
        ids = tree.prompt.tolist() + tree.branches[0].ids.tolist()
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids.count(tokenizer.eos_token_id) == 1
        said = Speaker(tokenizer).continuation(tree.prompt.tolist(), tree.branches[0].ids.tolist())
        assert said == "</s> is not </s></s>"
        assert encoded.notes == ("a special token is spelled out in the text of 1 item: read as plain characters",)


def test_a_special_token_that_cannot_be_kept_apart_is_dropped() -> None:
    tokenizer = word_tokenizer(["hello", "world"])  # <eos> is a word of the vocabulary itself
    encoded = encode([Item("x", "hello", (Response(" <eos>"), Response(" world")))], tokenizer, max_tokens=9)
    assert [(loss.reason, loss.unit) for loss in encoded.drops] == [("special_token_in_text", "response")]
    assert [b.ids.tolist() for b in encoded.trees[0].branches] == [[3, 1]]
    encoded = encode([Item("x", "hello <eos>", (Response(" world"),))], tokenizer, max_tokens=9)
    assert [(loss.reason, loss.unit) for loss in encoded.drops] == [("special_token_in_text", "item")]


def test_what_a_tokenizer_cannot_spell_is_dropped_by_reason() -> None:
    items = [Item("a", "hello", (Response(" world"),)), Item("b", "hello", (Response(" zebra"),))]
    items.append(Item("c", "hello", (Response("world"),)))  # would read "helloworld", two words it does not have
    encoded = encode(items, word_tokenizer(["hello", "world"]), max_tokens=9)
    assert [t.item_id for t in encoded.trees] == ["a"]
    assert _reasons(encoded) == [("b", "not_reversible"), ("c", "boundary")]


def test_a_normal_form_is_recorded(shared: Path) -> None:
    tokenizer = _tokenizer("neox", lambda: shared)
    encoded = encode([Item("x", "Say ", (Response("cafe\u0301"),))], tokenizer, max_tokens=9)
    assert [(c.reason, c.action) for c in encoded.cuts] == [("normalised", "cut")]
    assert _decode(tokenizer, encoded.trees[0].branches[0].ids) == "café<|endoftext|>"


def test_lone_surrogates_are_dropped() -> None:
    items = [Item("a", "x\ud800", (Response("y"),)), Item("b", "x", (Response("y\udfff"), Response("z")))]
    encoded = encode(items, byte_tokenizer(), max_tokens=9)
    assert _reasons(encoded) == [("a", "bad_unicode"), ("b", "bad_unicode")]
    assert [len(t.branches) for t in encoded.trees] == [1]


def test_continuation_keeps_the_leading_space_and_survives_half_characters() -> None:
    tokenizer = llama_tokenizer()
    before, ids = tokenizer("Say")["input_ids"], tokenizer.convert_tokens_to_ids(["▁t", "he"])
    assert tokenizer.decode(ids) == "the"
    assert Speaker(tokenizer).continuation(before, ids) == " the"
    assert Speaker(tokenizer).continuation(np.asarray(before), np.asarray(ids)) == " the"
    smile = tokenizer("😀", add_special_tokens=False)["input_ids"][-4:]
    assert Speaker(tokenizer).continuation([*before, *smile[:2]], smile[2:]) == "\ufffd\ufffd"
    assert Speaker(tokenizer).continuation(before, []) == ""


def test_an_empty_prompt_is_what_begins_a_document() -> None:
    cases = {True: byte_tokenizer(add_bos=True), False: byte_tokenizer(bos=None)}
    for has_bos, tokenizer in cases.items():
        (tree,) = encode([Item("x", "", (Response("y"),))], tokenizer, max_tokens=9).trees
        assert tree.prompt.tolist() == [tokenizer.bos_token_id if has_bos else tokenizer.eos_token_id]


def test_a_tokenizer_that_appends_eos_gives_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 258)]
    )
    assert tokenizer("a")["input_ids"] == [257, 97, 258]
    (tree,) = encode([Item("x", "a", (Response("b"),))], tokenizer, max_tokens=9).trees
    assert (tree.prompt.tolist(), tree.branches[0].ids.tolist()) == ([257, 97], [98, 258])


def test_eos_can_be_named() -> None:
    (tree,) = encode([Item("x", "a", (Response("b"),))], byte_tokenizer(), max_tokens=9, eos=257).trees
    assert tree.branches[0].ids.tolist() == [98, 257]


def test_batched_equals_one_by_one() -> None:
    items = [Item(str(k), p, (Response(r), Response(r + "!"))) for k, (p, r) in enumerate(_pairs(60, seed=3))]
    for tokenizer in (llama_tokenizer(), bpe_tokenizer(pre_split=False)):
        together = encode(items, tokenizer, max_tokens=20)
        apart = [encode([item], tokenizer, max_tokens=20) for item in items]
        assert [t.key(k) for t in together.trees for k in range(len(t.branches))] == [
            t.key(k) for e in apart for t in e.trees for k in range(len(t.branches))
        ]
        assert together.cuts == [loss for e in apart for loss in e.cuts]


def _reasons(encoded: Encoded) -> list[tuple[str, str]]:
    return [(loss.item_id, loss.reason) for loss in encoded.drops]
