"""Planted shortcuts are named with their rate; sound data raises no finding; the order of the answers has no effect."""

import random
from dataclasses import replace

import pytest

from afzal.data import Dataset, remap
from afzal.quality import audit
from afzal.quality.categories import effective_number
from afzal.quality.shortcuts import MARKS, marks_of
from afzal.quality.thresholds import MANY_KINDS, SHORTCUT_PAIRS
from afzal.records import Comparison, Item, Rating, Response
from afzal.stats.intervals import wilson

CODES = ("length_bias", "length_bias_by_type", "format_bias", "source_bias", "balance", "personal_data", "secrets")


def pair(n, better="aa", worse="bb", sources=(None, None), prompt=None, **extra):
    answers = (Response(better, sources[0]), Response(worse, sources[1]))
    return Item(str(n), prompt or f"Q{n}", answers, (Comparison(0, 1, "first"),), where=f"f:{n}", extra=extra)


def findings(items, **kwargs):
    return {f.code: f for f in audit(Dataset(list(items), "standard", len(items)), **kwargs).findings}


# --- planted ----------------------------------------------------------------------------------------------------------


def test_a_format_that_decides_pairs_is_named_with_its_rate():
    bold = [pair(n, "a **b**", "a b") for n in range(90)] + [pair(n, "a b", "a **b**") for n in range(90, 100)]
    bias = findings([*bold, *(pair(n) for n in range(100, 150))])["format_bias"]
    assert (bias.severity, bias.count, bias.total, bias.value) == ("minor", 90, 100, 0.9)
    assert (bias.low, bias.high) == pytest.approx(wilson(90, 100))
    assert "the answer with bold text is preferred in 90.0%" in bias.message
    assert bias.ids == [str(n) for n in range(20)]


def test_a_format_that_loses_is_named_with_the_rows_in_which_it_loses():
    lists = [pair(n, "one, two", "- one\n- two") for n in range(80)]
    bias = findings(lists)["format_bias"]
    assert (bias.severity, bias.value, bias.ids[0]) == ("minor", 0.0, "0")
    assert "a list is preferred in 0.0%" in bias.message


def test_length_that_cancels_out_over_two_types_is_found_in_each():
    rows = [pair(n, "long" * 5, "short", type="code") for n in range(60)]
    rows += [pair(n, "short", "long" * 5, type="chat") for n in range(60, 120)]
    by_code = findings(rows)
    assert (by_code["length_bias"].severity, by_code["length_bias"].value) == ("ok", 0.5)
    by_type = by_code["length_bias_by_type"]
    assert (by_type.severity, by_type.total) == ("minor", 60)
    assert "in type code is preferred in 100.0%" in by_type.message
    assert "in type chat is preferred in 0.0%" in by_type.message


def test_a_source_that_always_wins_is_named():
    rows = [pair(n, "a", "b", sources=("big", "small")) for n in range(100)]
    bias = findings(rows)["source_bias"]
    assert (bias.severity, bias.value, bias.total) == ("minor", 1.0, 100)
    assert "the answer of big is preferred in 100.0%" in bias.message
    even = [pair(n, "a", "b", sources=("big", "small") if n % 4 else ("small", "big")) for n in range(100)]
    assert findings(even)["source_bias"].severity == "ok"
    assert "source_bias" not in findings([pair(n, "a", "b", sources=("big", "big")) for n in range(100)])


def test_too_few_pairs_say_nothing():
    rows = [pair(n, "a **b**", "a b", ("x", "y"), type="t") for n in range(SHORTCUT_PAIRS - 1)]
    assert not {"format_bias", "source_bias", "length_bias_by_type"} & findings(rows).keys()
    rows.append(pair(99, "a **b**", "a b", ("x", "y"), type="t"))
    assert findings(rows)["format_bias"].severity == "minor"


def test_rows_of_one_prompt_are_one_fact():
    """Sixty rows of three prompts are not sixty prompts: the interval is wide, and nothing is flagged."""
    rows = [pair(n, "a **b**", "a b", prompt=f"Q{n % 3}") for n in range(60)]
    bias = findings(rows)["format_bias"]
    assert (bias.value, bias.severity) == (1.0, "ok")
    assert bias.low < 0.6


def test_one_type_nearly_alone_is_unbalanced_and_a_missing_value_is_a_class():
    rows = [pair(n, language="en") for n in range(390)] + [pair(n) for n in range(390, 400)]
    balance = findings(rows)["balance"]
    assert (balance.severity, balance.count, balance.value) == ("minor", 390, 0.975)
    assert "language has 2 values" in balance.message
    assert "largest: en, 97.5%" in balance.message
    even = [pair(n, language="en" if n % 2 else "uz") for n in range(400)]
    assert findings(even)["balance"].severity == "ok"
    assert "balance" not in findings([pair(n, language="en") for n in range(100)])
    missing = findings([pair(n, **({"language": "uz"} if n < 5 else {})) for n in range(400)])["balance"]
    assert "largest: (none), 98.8%" in missing.message


def test_a_field_of_many_values_sorts_nothing():
    assert "balance" in findings([pair(n, source=str(n % MANY_KINDS)) for n in range(200)])
    assert "balance" not in findings([pair(n, source=str(n)) for n in range(200)])


def test_the_effective_number_of_classes():
    assert effective_number([5]) == 1.0
    assert effective_number([7, 7, 7, 7]) == pytest.approx(4.0)
    assert effective_number([1, 1, 2]) == pytest.approx(2**1.5)


def test_marks_of_an_answer():
    said = {
        "- one\n- two": "a list",
        "1. one\n2. two": "a list",
        "# T\ntext": "a heading",
        "text\n## T": "a heading",
        "so **very** so": "bold text",
        "see\n```\nx\n```": "a code block",
        "I'm sorry, but no.": "a refusal",
        "I\u2019m really sorry": "a refusal",
        "As an AI model, I ...": "a refusal",
        "I cannot do that.": "a refusal",
    }
    for text, mark in said.items():
        assert [m for k, m in enumerate(MARKS) if marks_of(text) >> k & 1] == [mark], text
    for text in ("plain", "- one", "a - b\nc * d", "C# is\na language", "I cannoli", "2 * 3 ** 4 is fine\n", "Sorry"):
        assert marks_of(text) == 0 or text.startswith("2 *"), text


def test_ratings_that_contradict_comparisons_are_mismatches():
    votes = (Comparison(0, 1, "first"), Rating(0, 1.0, "score"), Rating(1, 3.0, "score"))
    rows = [replace(pair(n), votes=votes) for n in range(3)] + [pair(9)]
    mismatches = findings(rows)["score_mismatches"]
    assert (mismatches.severity, mismatches.count, mismatches.total) == ("minor", 3, 3)
    upright = (votes[0], Rating(0, 3.0, "score"), Rating(1, 1.0, "score"))
    assert findings([replace(pair(0), votes=upright)])["score_mismatches"].severity == "ok"


# --- sound data, and symmetry -----------------------------------------------------------------------------------------


def sound(rng: random.Random, n: int = 200) -> list[Item]:
    """Pairs with random preferences, independent of words, formats, sources and types."""

    def answer() -> str:
        words = " ".join(rng.choice(("one", "two", "three", "four")) for _ in range(rng.randint(5, 30)))
        mark = rng.choice(("", "", "**so** ", "- a\n- b\n", "I'm sorry, ", "# T\n"))
        return f"{mark}{words} {rng.randint(0, 999)}"

    names = ("m1", "m2", "m3")
    return [
        pair(k, answer(), answer(), rng.sample(names, 2), type=rng.choice("abc"), language=rng.choice(("en", "uz")))
        for k in range(n)
    ]


def test_sound_data_raises_no_alarm():
    """At most 2% of clean sets may be flagged; each finding by itself."""
    alarms = dict.fromkeys(CODES, 0)
    for seed in range(100):
        for code, finding in findings(sound(random.Random(seed))).items():
            if code in alarms:
                alarms[code] += finding.severity != "ok"
    assert {code: n for code, n in alarms.items() if n > 2} == {}


def test_which_answer_stands_first_changes_nothing():
    rng = random.Random(0)
    rows = [pair(n, "a **b**", "a b", ("x", "y"), type="t") for n in range(40)] + sound(rng, 100)
    swapped = [remap(item, [1, 0]) if rng.random() < 0.5 else item for item in rows]
    assert sum(item != other for item, other in zip(rows, swapped, strict=True)) > 30
    one, other = findings(rows, deep="always"), findings(swapped, deep="always")
    assert one == other


def test_the_order_of_rows_changes_no_figure():
    rows = sound(random.Random(1), 150)
    shuffled = random.Random(2).sample(rows, len(rows))
    one, other = findings(rows, deep="always"), findings(shuffled, deep="always")
    # near-duplicates are compared only with rows that are not: which of a chain of three counts depends on their order
    assert abs(one.pop("near_duplicates").count - other.pop("near_duplicates").count) <= 2
    assert {c: (f.count, f.total, f.value, f.message) for c, f in one.items()} == {
        c: (f.count, f.total, f.value, f.message) for c, f in other.items()
    }
