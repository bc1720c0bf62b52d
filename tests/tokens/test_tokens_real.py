"""Tokens of real rows: HH-RLHF as published through a SentencePiece-like tokenizer with 512 tokens."""

import gzip
import json
from itertools import takewhile
from pathlib import Path

import pytest

from afzal.records import Comparison, Item, Message, Response
from afzal.tokens import Speaker, encode

pytestmark = pytest.mark.shared
TURN = "\n\nAssistant:"


def _rows(shared: Path) -> list[dict[str, str]]:
    with gzip.open(shared / "data/pref/hh_rlhf_harmless_a.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _as_text(n: int, row: dict[str, str]) -> Item:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(row["chosen"], row["rejected"], strict=False))
    common = "".join(character for character, _ in same)
    at = common.rfind(TURN) + len(TURN) if TURN in common else 0
    answers = (Response(row["chosen"][at:]), Response(row["rejected"][at:]))
    return Item(str(n), common[:at], answers, (Comparison(0, 1, "first"),), f"hh:{n + 1}")


def _stories(shared: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "data/models/stories260k")


@pytest.mark.parametrize("max_tokens", [pytest.param(512, marks=pytest.mark.slow), 64])
def test_every_hh_row_is_accounted_for(shared: Path, max_tokens: int) -> None:
    items = [_as_text(n, row) for n, row in enumerate(_rows(shared))]
    tokenizer = _stories(shared)
    encoded = encode(items, tokenizer, max_tokens=max_tokens, eos=1)
    dropped = [d for d in encoded.drops if d.unit == "item"]
    assert len(items) == 1492
    assert len(encoded.trees) + len(dropped) == len(items)
    kept = {t.item_id for t in encoded.trees}
    assert sorted([*kept, *(d.item_id for d in dropped)], key=int) == [i.id for i in items]
    lost = {unit: sum(d.unit == unit and d.item_id in kept for d in encoded.drops) for unit in ("response", "pair")}
    assert sum(len(t.branches) for t in encoded.trees) + lost["response"] == 2 * len(kept)
    assert sum(len(t.preferences) for t in encoded.trees) + lost["pair"] == len(kept)
    cut = {(c.item_id, c.detail.split(":")[0]) for c in encoded.cuts if c.reason == "response_cut"}
    for tree in encoded.trees:
        assert tree.prompt[0] == 1
        assert 1 not in tree.prompt[1:]
        for k, branch in enumerate(tree.branches):
            assert 1 <= len(branch.ids) <= max_tokens - len(tree.prompt)
            if (tree.item_id, f"response {k}") not in cut and len(tree.branches) == 2:
                assert (branch.ids == 1).sum() == 1
                assert branch.ids[-1] == 1


def test_the_text_of_every_uncut_hh_row_comes_back(shared: Path) -> None:
    items = [_as_text(n, row) for n, row in enumerate(_rows(shared)[:600])]
    tokenizer = _stories(shared)
    encoded = encode(items, tokenizer, max_tokens=100_000)
    assert encoded.cuts == []
    by_id = {item.id: item for item in items}
    for tree in encoded.trees:
        item = by_id[tree.item_id]
        if len(tree.branches) == 2:
            for branch, response in zip(tree.branches, item.responses, strict=True):
                whole = tokenizer.decode([*tree.prompt[1:], *branch.ids])
                assert whole == f"{item.prompt}{response.turns}</s>"


def test_a_prompt_is_what_the_tokenizer_alone_makes_of_it(shared: Path) -> None:
    tokenizer = _stories(shared)
    prompts = [item.prompt for item in (_as_text(n, row) for n, row in enumerate(_rows(shared)[:100]))]
    ours = Speaker(tokenizer).encode_prompts(prompts, max_tokens=100_000)
    assert [p.tolist() for p in ours] == tokenizer(prompts)["input_ids"]


def test_hh_as_conversations(shared: Path) -> None:
    items = []
    for n, row in enumerate(_rows(shared)[:300]):
        prompt, *answers = (_turns(text) for text in (_as_text(n, row).prompt.removesuffix(TURN), *row.values()))
        if prompt and all(a[: len(prompt)] == prompt and a[len(prompt) :] for a in answers):
            items.append(Item(str(n), prompt, tuple(Response(a[len(prompt) :]) for a in answers)))
    assert len(items) > 250
    tokenizer = _stories(shared)
    encoded = encode(items, tokenizer, max_tokens=100_000)
    by_id = {item.id: item for item in items}
    assert encoded.counts("dropped").keys() <= {"empty_response", "no_assistant_turn", "no_response_left"}
    for tree in encoded.trees:
        responses = [r.turns for r in by_id[tree.item_id].responses]
        if len(tree.branches) != len(responses):
            continue
        for branch, turns in zip(tree.branches, responses, strict=True):
            said = "".join(str(m.content) for m in turns if m.role == "assistant")
            ids = branch.ids[branch.scored]
            assert tokenizer.decode([*tokenizer("x", add_special_tokens=False)["input_ids"], *ids]) == f"x{said}</s>"


def _turns(text: str) -> tuple[Message, ...]:
    turns = []
    for part in text.split("\n\n"):
        for sign, role in (("Human: ", "user"), ("Assistant: ", "assistant")):
            if part.startswith(sign):
                turns.append([role, part.removeprefix(sign)])
                break
        else:
            if turns:
                turns[-1][1] += "\n\n" + part
    return tuple(Message(role, content) for role, content in turns)
