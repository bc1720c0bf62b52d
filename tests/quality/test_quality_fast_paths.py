"""The shortcuts that make a check fast give the same results as the slow ways."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from dataclasses import replace

import pytest

from afzal.data import Reading
from afzal.data.dataset import Dataset, fingerprint
from afzal.quality import audit
from afzal.quality.columns import Column, Names, clusters
from afzal.quality.item_facts import ItemTable, read_item
from afzal.quality.private import private_kinds
from afzal.quality.shortcuts import MARKS, marks_of
from afzal.records import Comparison, Item, Message, Rating, Response, Vote, folded_prompt, turns_to_json, vote_values
from afzal.stats.intervals import Cluster


def test_every_character_is_folded_as_split_and_casefold_do():
    text = [f"A{chr(code)}b {chr(code)}" for code in range(0x3100)] + ["two  blanks", " at ends ", "a\tb", ""]
    assert [folded_prompt(Item("", t, ())) for t in text] == [" ".join(t.casefold().split()) for t in text]


@pytest.mark.parametrize("gold", [(), (Comparison(0, 1, "second"),)])
def test_the_fingerprint_of_texts_is_that_of_their_json(gold):
    said = ('say "hi"\n\\ \x01', "o\u02bbzbek \u2028", "half \ud800")
    votes = [(), (Comparison(0, 1, "first"),), (Comparison(0, 1, "tie", annotator="ann", id="7"),)]
    items = [Item("", said[0], (Response(said[1]), Response(said[2])), v) for v in (*votes, votes[1])]
    for text in (*said, "plain \u00e9 \x7f", "", "one\ntwo", "a\tb", 'a "b', "a\\b"):
        items += [Item("", "p", (Response("a"), Response(text))), Item("", text, (Response("a"),))]
    items = [replace(item, gold=gold) for item in items]
    digest = hashlib.sha256()
    for item in items:
        content = [
            item.prompt,
            [turns_to_json(r.turns) for r in item.responses],
            [vote_values(v) for v in item.votes],
            *([[vote_values(v) for v in gold]] if gold else []),
        ]
        digest.update((json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
    assert fingerprint(items) == digest.hexdigest()


def test_a_text_prompt_with_answers_of_messages_is_not_taken_for_texts():
    item = Item("", "Hi", (Response((Message("assistant", "Hello"),)),))
    assert not item.is_plain
    assert read_item(item).texts == ("Hello",)
    assert len(fingerprint([item])) == 64


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("call +998 90 123 45 67 now", "phone number"),
        ("(212) 456-7890", "phone number"),
        ("pay 4111 1111 1111 1111", "card number"),
        ("378282246310005", "card number"),
        ("GB82 WEST 1234 5698 7654 32", "IBAN"),
        ("key hf_abcdefghijklmnopqrstuvwxyz0123456789", "access key"),
        ("github_pat_abcdefghij0123456789ABCD", "access key"),
    ],
)
def test_what_is_private_is_found_after_any_characters(text, kind):
    for before in ("", "\u00e9\u4e2d\U0001f600 ", "a_b_c 1234 - ", "1\n2\n3. "):
        assert kind in private_kinds(before + text), before


def test_lists_are_two_lines_that_begin_as_items_do():
    slow = re.compile(r"^\s{0,3}(?:[-*\u2022]|\d{1,2}[.)])\s", re.MULTILINE)
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices("\n\n\n -*1.)a\t\r", k=rng.randrange(14)))
        listed = "\n" in text and len(slow.findall(text)) > 1
        assert bool(marks_of(text) & 1 << MARKS.index("a list")) is listed, repr(text)


def test_votes_that_rows_share_are_judged_once_and_other_votes_by_themselves():
    shared = (Comparison(0, 1, "first"),)
    votes = [shared, shared, (Comparison(0, 1, "second", annotator="ann"),), shared, (Comparison(0, 1, "both_bad"),)]
    table = ItemTable()
    told = [table.read(Item(str(k), "p", (Response("a"), Response("b")), v)) for k, v in enumerate(votes)]
    assert [[(q.i, q.j) for q in each.pairs] for each in told] == [[(0, 1)], [(0, 1)], [(1, 0)], [(0, 1)], []]
    assert [each.vote_facts.both_bad for each in told] == [0, 0, 0, 0, 1]
    assert told[2].vote_facts.annotators == {"ann"}
    assert told[0].vote_facts is told[1].vote_facts


@pytest.mark.parametrize(("items", "characters"), [(1, 2**20), (7, 2**20), (256, 50)])
def test_items_looked_at_in_batches_of_any_size_say_the_same(monkeypatch, items, characters):
    rng, rows = random.Random(3), []
    votes: list[tuple[Vote, ...]] = [
        (Comparison(0, 1, "first"),),
        (Comparison(0, 1, "tie"),),
        (Comparison(0, 1, "first", strength=-1.0, annotator="ann"), Comparison(0, 1, "second")),
        (Rating(0, 1.0, "label"), Rating(1, 0.0, "label")),
        (),
    ]
    for k in range(300):
        texts = [rng.choice(["", " ", "yes", "yes ", "yes sir", "no\n- a\n- b", "call +1 212 444 0199"]) for _ in "pab"]
        prompt, *answers = [f"{texts[0]} {k % 40}", *texts[1:]]
        extra = {"type": rng.choice("xyz")} if k % 3 else {}
        said = tuple(Response(text, rng.choice((None, "m", "n"))) for text in answers)
        rows.append(Item(str(k % 290), prompt, said, rng.choice(votes), f"f:{k}", "", extra))
    if items != 1:
        rows.append(Item("talk", (Message("user", "q"),), (Response((Message("assistant", "a"),)),)))
    dataset = Dataset(rows, "standard", len(rows))
    whole = audit(dataset)
    assert {"minor", "major"} <= {finding.severity for finding in whole.findings}
    module = sys.modules["afzal.quality.audit"]  # in the package its name refers to its function
    monkeypatch.setattr(module, "BATCH", items)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", characters)
    assert audit(dataset) == whole


def test_the_same_words_with_other_tools_are_no_duplicate():
    said = (Response((Message("assistant", "a"),)), Response((Message("assistant", "b"),)))
    rows = [
        Item(str(k), (Message("user", "q"),), said, (Comparison(0, 1, "first"),), extra={"tools": tools})
        for k, tools in enumerate(([{"name": "x"}], [{"name": "y"}], [{"name": "x"}]))
    ]
    (duplicates,) = [f for f in audit(Dataset(rows, "chat", 3)).findings if f.code == "duplicate_items"]
    assert (duplicates.count, duplicates.ids) == (1, ["2"])


def test_names_are_found_by_their_number():
    names, told = Names(), ["a", "", "\u00e9\ud800", "bc"]
    names.extend(told[:1])
    names.extend(told[1:])
    names.append("d")
    assert [names[k] for k in range(5)] == [*told, "d"]


def test_rows_alone_in_their_prompt_are_clusters_in_their_order():
    groups = clusters(Column("q", [5, 7, 5, 8]), [1, 0, 0, 1], Column("d", [2.0, 1.0, 1.0, 0.5]))
    assert groups == [Cluster(2.0, 3.0, 5.0), Cluster(0.0, 1.0, 1.0), Cluster(0.5, 0.5, 0.25)]


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "p", "chosen": "c", "rejected": "r", "prompt": "q"}',
        '{"prompt": "p", "chosen": "c", "rejected": "r", "x": NaN}',
        '{"prompt": "p", "chosen": "c", "rejected": "r"} x',
        '{"prompt": "p", "chosen": "c", "rejected": "\\ud800"}',
        '["prompt"]',
    ],
)
def test_a_faulty_line_among_sound_ones_is_named(tmp_path, line):
    sound = '{"prompt": "p", "chosen": "c", "rejected": "r"}'
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([sound, line, sound, f"  {sound}  "]) + "\n")
    reading = Reading(file, on_error="drop")
    assert [item.where.rpartition(":")[2] for item in reading.items()] == ["1", "3", "4"]
    assert [drop.where.rpartition(":")[2] for drop in reading.losses.first] == ["2"]


def test_rows_of_other_names_are_read_with_all_they_hold(tmp_path):
    """Rows with only the format's fields take a shortcut; the next row may have more."""
    base = {"prompt": "p", "chosen": "c", "rejected": "r"}
    rows = [base, base | {"id": "mine"}, base | {"source": "s"}, base | {"system": "Be kind."}, base]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = list(Reading(file).items())
    assert items[1].id == "mine"
    assert items[2].extra == {"source": "s"}
    assert [item.is_chat for item in items] == [True] * 5  # one system message makes conversations of all
    file.write_text("".join(json.dumps(row) + "\n" for row in (*rows[:3], base | {"chosen": " "})))
    reading = Reading(file)
    assert [item.id for item in reading.items()] == ["rows.jsonl:1", "mine", "rows.jsonl:3"]
    assert reading.drop_counts == {"empty_response": 1}
