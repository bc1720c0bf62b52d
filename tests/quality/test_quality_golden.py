"""The output of a check, byte for byte, and its shortcuts against the slow definitions."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from afzal.data import fingerprint, read, remap
from afzal.data.turns import stripped_key
from afzal.quality import audit
from afzal.quality.clean import duplicate_key
from afzal.quality.item_facts import read_item
from afzal.quality.relations import _key
from afzal.records import Comparison, Item, Message, Rating, Response, vote_values

CHECKED = Path(__file__).parent.parent / "fixtures" / "check"


@pytest.mark.parametrize("name", ["pairs", "labels", "votes"])
def test_a_check_says_what_it_has_always_said(name: str):
    """The expected files predate the shortcuts and must not be rewritten; findings added later are not compared."""
    dataset, expected = read(CHECKED / f"{name}.jsonl"), json.loads((CHECKED / f"{name}.json").read_text())
    told = asdict(audit(dataset)) | {"notes": dataset.notes}
    codes = {finding["code"] for finding in expected["findings"]}
    told["findings"] = [finding for finding in told["findings"] if finding["code"] in codes]
    for finding in told["findings"]:
        del finding["threshold"]
    told = {key: value for key, value in told.items() if key in expected}
    said = json.dumps(told, ensure_ascii=False, indent=2).replace(f"{CHECKED}/", "")
    assert said + "\n" == (CHECKED / f"{name}.json").read_text()


def test_the_fixtures_hold_something_to_find():
    files = [json.loads(path.read_text()) for path in CHECKED.glob("*.json")]
    hit = {finding["code"] for told in files for finding in told["findings"] if finding["count"]}
    assert {"cycles", "contradictions", "duplicate_items", "agreement", "label_balance", "score_mismatches"} <= hit


def random_item(rng: random.Random) -> Item:
    """An item from few words, so that items often coincide, with answers in any order."""
    said = [rng.choice(["a", "b", " a"]) for _ in range(rng.choice([2, 2, 3]))]
    chat = rng.random() < 0.3
    turns = [(Message("assistant", text),) if chat else text for text in said]
    places = rng.sample(range(len(said)), 2)
    votes = [
        Comparison(
            *places,
            rng.choice(["first", "second"]),
            probability=rng.choice([None, 0.75]),
            shown_first=rng.choice([None, *places]),
        )
    ]
    votes += [Rating(places[0], rng.choice([1.0, 2.0]), "score")] if rng.random() < 0.3 else []
    prompt = (Message("user", "Q"),) if chat else "Q"
    return Item("", prompt, tuple(Response(t, source=rng.choice([None, "s"])) for t in turns), tuple(votes))


def slow_key(item: Item) -> str:
    """The slow definition of the key: the item with its answers sorted and each vote naming the lower one first."""
    order = sorted(range(len(item.responses)), key=lambda k: repr(stripped_key(item.responses[k].turns)))
    moved = remap(item, [order.index(k) for k in range(len(order))])
    votes = [v.swap() if isinstance(v, Comparison) and v.first > v.second else v for v in moved.votes]
    return fingerprint([replace(moved, votes=tuple(sorted(votes, key=repr)))])


def test_two_items_have_one_key_exactly_when_they_say_the_same():
    rng = random.Random(0)
    items = [random_item(rng) for _ in range(400)]
    keys = [(duplicate_key(item), slow_key(item)) for item in items]
    pairs = dict(keys)
    assert len(pairs) == len({slow for _, slow in keys}) == len(set(keys))
    assert 50 < len(pairs) < len(items)
    # The audit's shortcut if the answers differ in more than white space and so have one order.
    told = [(read_item(item), slow) for item, (_, slow) in zip(items, keys, strict=True)]
    short = {(_key(t), slow) for t, slow in told if len(set(t.answers)) == len(t.answers)}
    assert len(short) == len(dict(short)) == len({slow for _, slow in short})
    assert len(short) > 50


def test_an_item_keeps_all_that_its_place_does_not_change():
    item = random_item(random.Random(1))
    placed = item.placed("id", "a.jsonl:1", "group", {"k": 1})
    assert placed == replace(item, id="id", where="a.jsonl:1", group="group", extra={"k": 1})


def test_a_vote_with_other_numbers_keeps_all_else():
    vote = Comparison(0, 1, "first", 2.0, 0.75, 3.0, "ann", "help", 1, 9.5, "v1", "2026-11-28T10:12Z")
    assert None not in vote_values(vote)
    assert vote.between(4, 5, 4) == replace(vote, first=4, second=5, shown_first=4)
    assert vote.swap() == replace(vote, first=1, second=0, outcome="second", probability=0.25)
    assert vote_values(vote) == ("Comparison", *(getattr(vote, field.name) for field in fields(vote)))
