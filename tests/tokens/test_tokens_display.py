"""Tokens by role, readable with colours and without."""

import io
from pathlib import Path

import pytest
from helpers_tokenizers import CHATML, bpe_tokenizer, byte_tokenizer, llama_tokenizer
from rich.console import Console

from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Message, Response
from afzal.tokens.display import TokenDisplay, display_tokens

CHAT = Item(
    "c1",
    (Message("user", "Q [bold]"),),
    (
        Response((Message("assistant", "A\\"), Message("user", "R"), Message("assistant", "B\n"))),
        Response((Message("assistant", ""),)),
    ),
    (Comparison(0, 1, "first"),),
    "f.jsonl:1",
)


def _printed(shown: TokenDisplay, *, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=400, force_terminal=colour, color_system="standard" if colour else None).print(
        shown.markup, highlight=False
    )
    return stream.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> str:
    byte_tokenizer(template=CHATML, eos="<|im_end|>").save_pretrained(tmp_path)
    return str(tmp_path)


def test_shown_without_colour(model: str) -> None:
    plain = _printed(display_tokens([CHAT], model, 1, 99))
    assert plain.splitlines() == [
        "tokens:  prompt|  [scored]  (not scored)  <<EOS>>",
        "",
        "chat template: the tokenizer's own",
        "",
        "item c1  prompt: 27 tokens",
        "  prompt:   <|im_start|>|u|s|e|r|↵|Q| |[|b|o|l|d|]|<|im_end|>|↵|<|im_start|>|a|s|s|i|s|t|a|n|t|↵|",
        "response 0: desirable, 27 tokens, 6 scored",
        "  scored:   [A][\\][<|im_end|>]",
        "  unscored: (↵)(<|im_start|>)(u)(s)(e)(r)(↵)(R)(<|im_end|>)(↵)(<|im_start|>)(a)(s)(s)(i)(s)(t)(a)(n)(t)(↵)",
        "  scored:   [B][↵]",
        "  EOS:      <<<|im_end|>>>",
        "",
        "1 of 1 items became tokens",
        "dropped: 1 empty_response (f.jsonl:1: response 1)",
        "dropped: 1 response_dropped (f.jsonl:1: responses 0 and 1)",
    ]


def test_shown_in_colour(model: str) -> None:
    painted = _printed(display_tokens([CHAT], model, 1, 99), colour=True)
    assert "\x1b[32m[A]" in painted
    assert "\x1b[33m(↵)(<|im_start|>)(u)" in painted
    assert "\x1b[2m<|im_start|>|" in painted
    assert "\x1b[1;7;31m<<<|im_end|>>>" in painted


def test_ids_beside_the_tokens(model: str) -> None:
    assert "[A{65}]" in _printed(display_tokens([CHAT], model, 1, 99, ids=True))


def test_only_the_first_are_shown_but_all_are_counted(model: str) -> None:
    items = [Item(f"t{k}", "ab", (Response("x" * 9 * k), Response("y"))) for k in range(4)]
    plain = _printed(display_tokens(items, model, 2, 20))
    assert "item t1" in plain
    assert "item t2" not in plain
    assert "chat template" not in plain
    assert "4 of 4 items became tokens" in plain
    assert "cut: 2 response_cut" in plain
    assert "dropped: 1 empty_response" in plain


def test_preferred_labelled_and_split_characters(tmp_path: Path) -> None:
    llama_tokenizer().save_pretrained(tmp_path)
    item = Item("x", "Say", (Response(" 🙂🙂😀"), Response(" the")), (Comparison(0, 1, "second"),))
    plain = _printed(display_tokens([item], str(tmp_path), 1, 99))
    assert "response 1: preferred, 3 tokens, 3 scored" in plain
    assert "response 0: not preferred, " in plain
    assert "  scored:   [ t][he]" in plain
    assert "[<0xF0>]" in plain
    assert plain.splitlines()[3].startswith("  prompt:   <s>|")


def test_the_built_in_template_is_named(tmp_path: Path) -> None:
    bpe_tokenizer().save_pretrained(tmp_path)
    assert "using the built-in 'plain'" in _printed(display_tokens([CHAT], str(tmp_path), 1, 99))


def test_no_tokenizer_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(AfzalError, match="nothing' does not exist"):
        display_tokens([CHAT], str(tmp_path / "nothing"), 1, 99)
