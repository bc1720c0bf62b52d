"""Splits that do not leak, and writing that reads back the same."""

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.data import plan, read, remap, split, without, write
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Message, Rating, Response, preferences, prompt_key

FIRST = (Comparison(0, 1, "first"),)


def item(prompt, *answers, votes=FIRST, **kwargs):
    return Item(kwargs.pop("id", f"{prompt}/{answers}"), prompt, tuple(map(Response, answers)), votes, **kwargs)


def chat(*texts):
    return tuple(Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts))


def reply(text):
    return (Message("assistant", text),)


def said(items):
    return [(i.prompt, [r.turns for r in i.responses], i.votes) for i in items]


# --- splits ---------------------------------------------------------------------------------------------------------


def many(n, per_prompt=2):
    return [item(f"P{k}", f"a{k}{j}", f"b{k}{j}") for k in range(n) for j in range(per_prompt)]


def test_a_split_never_divides_a_prompt_and_loses_nothing():
    items = many(200)
    train, held_out = split(items, 0.2, seed=0)
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, items))
    assert not {prompt_key(i) for i in train} & {prompt_key(i) for i in held_out}
    assert 40 <= len(held_out) <= 120
    assert [i for i in items if i in held_out] == held_out


def test_prompts_that_differ_in_case_and_white_space_stay_together():
    for seed in range(20):
        _, held_out = split([item("Sky?", "a", "b"), item(" sky? ", "c", "d"), item("Sea?", "e", "f")], 0.5, seed)
        assert sum(i.prompt.strip().lower() == "sky?" for i in held_out) in (0, 2)


def test_order_and_more_rows_move_no_item():
    items = many(100)
    held_out = {i.id for i in split(items, 0.3, seed=1)[1]}
    shuffled = random.Random(0).sample(items, len(items))
    assert {i.id for i in split(shuffled, 0.3, seed=1)[1]} == held_out
    assert {i.id for i in split(many(150), 0.3, seed=1)[1]} >= held_out
    assert {i.id for i in split(many(150), 0.3, seed=1)[0]} >= {i.id for i in items} - held_out
    assert {i.id for i in split(items, 0.3, seed=2)[1]} != held_out


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 0.999999])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_neither_side_is_empty_with_two_prompts_or_more(n, fraction):
    for seed in range(10):
        train, held_out = split(many(n, 1), fraction, seed)
        assert train
        assert held_out


def groups(*sizes):
    return [item(f"P{g}", f"a{g}.{k}", f"b{g}.{k}") for g, size in enumerate(sizes) for k in range(size)]


@pytest.mark.parametrize(
    "sizes", [(38, 1, 1), (38, 2), (20, 10, 5, 3, 1, 1), (30, *[1] * 10), (4,) * 10, (9, 9, 9, 9, 4)]
)
def test_the_share_is_of_items_not_of_groups(sizes):
    """A tenth of 40 items is 4: never a larger group, never more than 8 in all, and 4 on average where possible."""
    shares = [len(split(groups(*sizes), 0.1, seed)[1]) for seed in range(40)]
    assert max(shares) <= 8
    assert min(shares) >= 1


def test_if_every_group_is_large_the_smallest_one_is_held_out():
    for seed in range(10):
        assert len(split(groups(20, 12, 30), 0.1, seed)[1]) == 12


def test_the_share_is_met_on_average():
    rng = random.Random(0)
    items = groups(*[rng.choice([1, 1, 2, 5]) for _ in range(300)])
    shares = [len(split(items, 0.2, seed)[1]) / len(items) for seed in range(60)]
    assert 0.18 < sum(shares) / len(shares) < 0.22


def test_the_ends_of_the_range():
    items = many(5)
    assert split(items, 0.0, 0) == (items, [])
    assert split(items, 1.0, 0) == ([], items)
    assert split([], 0.5, 0) == ([], [])
    assert len(split([items[0]], 0.01, 0)[0]) == 1
    with pytest.raises(ValueError, match=r"not 1\.5"):
        split(items, 1.5, 0)


def test_dialogues_that_quote_one_another_do_not_leak(tmp_path):
    rows = []
    for k in range(40):
        opening = [{"role": "user", "content": f"Q{k}"}]
        longer = [*opening, {"role": "assistant", "content": f"good {k}"}, {"role": "user", "content": "more"}]
        for prompt in (opening, longer):
            answers = {side: [{"role": "assistant", "content": f"{side} {k}"}] for side in ("chosen", "rejected")}
            rows.append({"prompt": prompt, **answers})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, held_out = split(read(path).items, 0.5, 0)
    assert not {i.prompt[0].content for i in train} & {i.prompt[0].content for i in held_out}


def test_plain_texts_can_be_held_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"story {n}"}) for n in range(50)))
    train, held_out = split(read(path).items, 0.2, 0)
    assert len(train) > 30
    assert len(held_out) > 3


# --- renumbering ----------------------------------------------------------------------------------------------------


def test_removing_an_answer_renumbers_its_votes():
    votes = (Comparison(0, 2, "second", shown_first=2), Comparison(1, 2, "first"), Rating(2, 5.0, "score"))
    left = without(item("P", "a", "b", "c", votes=votes), {1})
    assert [r.turns for r in left.responses] == ["a", "c"]
    assert left.votes == (Comparison(0, 1, "second", shown_first=1), Rating(1, 5.0, "score"))


@given(st.permutations(range(4)))
def test_permuting_answers_permutes_preferences(order):
    votes = (Comparison(0, 1, "first"), Comparison(2, 0, "second", probability=0.2), Comparison(3, 1, "first", 2.0))
    before = item("P", "a", "b", "c", "d", votes=votes)
    after = remap(before, list(order))
    names = [r.turns for r in after.responses]
    told = {(names[p.i], names[p.j], p.p, p.margin) for p in preferences(after)}
    assert told == {("abcd"[p.i], "abcd"[p.j], p.p, p.margin) for p in preferences(before)}


# --- writing --------------------------------------------------------------------------------------------------------

TEXT_PAIRS = [
    item("The sky is", " blue.", " green."),
    item("Q", " a\u2028b", " c", votes=(Comparison(0, 1, "first", strength=1.5, probability=0.75, weight=2.0),)),
]
CHAT_PAIRS = [
    item(chat("Sky?"), reply("Blue."), reply("Green.")),
    item(chat("Hi", "Hello", "Sky?"), reply("Blue."), reply("Green."), extra={"tools": [{"name": "f"}]}),
]
TURNS_PAIR = item(chat("Sky?"), (*reply("Blue."), Message("user", "Sure?"), *reply("Yes.")), reply("Green."))
LABELLED = [
    item("Sky is", " blue.", votes=(Rating(0, 1.0, "label"),)),
    item("Sky is", " red.", votes=(Rating(0, 0.0, "label", 0.5),)),
]
ANSWERS = [item("Sky is", " blue.", votes=())]


@pytest.mark.parametrize(
    ("target", "items", "format"),
    [
        ("trl", TEXT_PAIRS, "standard"),
        ("trl", LABELLED, "unpaired"),
        ("trl", ANSWERS, "prompt_completion"),
        ("trl", [item("", "Once upon a time.", votes=())], "text"),
        ("conversational", [*CHAT_PAIRS, TURNS_PAIR], "conversational"),
        ("conversational", [item(chat("Sky?"), reply("Blue."), votes=(Rating(0, 1.0, "label"),))], "unpaired"),
        ("conversational", [item(chat("Sky?"), reply("Blue."), votes=())], "prompt_completion"),
        ("openai", CHAT_PAIRS, "openai"),
        ("afzal", [*TEXT_PAIRS, *CHAT_PAIRS, TURNS_PAIR, *LABELLED, *ANSWERS], "afzal"),
    ],
)
def test_what_is_written_reads_back_the_same(tmp_path, target, items, format):
    path = tmp_path / "out" / "a.jsonl"
    assert write(items, path, target) == len(items)
    back = read(path)
    assert back.format == format
    assert said(back.items) == said(items)
    assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]
    again = tmp_path / "b.jsonl.gz"
    write(back.items, again, target)
    assert gzip.decompress(again.read_bytes()) == path.read_bytes() or target == "afzal"


texts = st.text(min_size=1, max_size=8).filter(lambda s: s.strip() and not any(0xD800 <= ord(c) < 0xE000 for c in s))
finite = st.floats(-1e6, 1e6)
comparisons = st.builds(
    Comparison,
    first=st.just(0),
    second=st.integers(1, 2),
    outcome=st.sampled_from(["first", "second", "tie", "both_bad"]),
    strength=st.none() | finite,
    probability=st.none() | st.floats(0, 1),
    weight=st.floats(0, 10),
    annotator=st.none() | texts,
    axis=st.none() | texts,
    shown_first=st.none() | st.integers(0, 2),
    seconds=st.none() | finite,
)
ratings = st.builds(
    Rating,
    response=st.integers(0, 2),
    value=finite,
    kind=st.sampled_from(["score", "rank", "label"]),
    weight=st.floats(0, 10),
    annotator=st.none() | texts,
)
replies = st.lists(texts, min_size=3, max_size=3)
items_strategy = st.builds(
    lambda prompt, answers, votes, talk, group, extra: Item(
        "id",
        chat(prompt) if talk else prompt,
        tuple(Response(reply(a) if talk else a, source="m") for a in answers),
        tuple(votes),
        "file.jsonl:1",
        group,
        extra,
    ),
    texts,
    replies,
    st.lists(comparisons | ratings, max_size=4),
    st.booleans(),
    texts | st.just(""),
    st.dictionaries(texts, st.integers() | st.booleans() | texts, max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(items_strategy, min_size=1, max_size=4))
def test_afzals_own_format_loses_nothing(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("native") / "a.jsonl"
    write(items, path, "afzal")
    assert read(path).items == items


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_any_texts_survive_trl(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("trl") / "a.jsonl"
    items = [item(f"Q {p}", f" {c}", f" {r}") for p, c, r in rows]
    write(items, path, "trl")
    assert said(read(path, format="standard").items) == said(items)


TIE = item(chat("Sky?"), reply("Blue."), reply("Azure."), votes=(Comparison(0, 1, "tie"),))
BOTH_BAD = item(chat("Sky?"), reply("Red."), reply("Green."), votes=(Comparison(0, 1, "both_bad"),))
SOFT = item(chat("Sky?"), reply("Red."), reply("Green."), votes=(Comparison(0, 1, "first", probability=0.8),))


@pytest.mark.parametrize(
    ("target", "bad", "reason"),
    [
        ("conversational", TIE, "tie"),
        ("conversational", BOTH_BAD, "both_bad"),
        ("conversational", item(chat("Q"), reply("a"), reply("b"), votes=()), "no_preference"),
        ("trl", CHAT_PAIRS[0], "dialogue"),
        ("conversational", TEXT_PAIRS[0], "plain_text"),
        ("openai", TEXT_PAIRS[0], "plain_text"),
        ("openai", TIE, "tie"),
        ("openai", SOFT, "soft_label"),
        ("openai", TURNS_PAIR, "user_turn_in_response"),
        ("openai", item(chat("Q"), reply("a"), votes=(Rating(0, 1.0, "label"),)), "unpaired"),
        ("openai", item(chat("Q"), reply("a"), votes=()), "no_preference"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_or_counted(tmp_path, target, bad, reason):
    good = {"trl": TEXT_PAIRS[0], "conversational": CHAT_PAIRS[0], "openai": CHAT_PAIRS[0]}[target]
    path = tmp_path / "a.jsonl"
    with pytest.raises(AfzalError) as caught:
        write([good, bad], path, target)
    assert reason in caught.value.why
    assert not path.exists()
    assert write([good, bad], path, target, skip_unholdable=True) == 1
    assert [drop.reason for drop in plan([good, bad], target).skipped] == [reason]


def test_several_votes_and_answers_become_pairs_with_probabilities():
    votes = tuple(Comparison(0, 1, o, annotator=a) for o, a in (("first", "x"), ("first", "y"), ("second", "z")))
    made = plan([item("Q", " a", " b", votes=votes)], "trl")
    assert made.rows == [{"prompt": "Q", "chosen": " a", "rejected": " b", "p_chosen": pytest.approx(2 / 3)}]
    assert "the names of annotators" in made.left_out
    ranked = item("Q", " a", " b", " c", votes=tuple(Rating(k, r, "rank") for k, r in enumerate((2, 0, 1))))
    rows = plan([ranked], "trl").rows
    assert [(r["chosen"], r["rejected"]) for r in rows] == [(" b", " a"), (" c", " a"), (" b", " c")]
    assert all(r["weight"] == pytest.approx(1 / 3) for r in rows)


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(AfzalError, match="nothing to write"):
        write([], tmp_path / "a.jsonl", "trl")
    with pytest.raises(ValueError, match="unknown target"):
        write(TEXT_PAIRS, tmp_path / "a.jsonl", "csv")
