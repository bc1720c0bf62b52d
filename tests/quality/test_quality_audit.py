"""Degenerate data sets, each named with its count; and the figures of sound ones."""

import json
from dataclasses import asdict

import pytest

from afzal.data import read
from afzal.errors import AfzalError
from afzal.quality import audit, clean, contradictions
from afzal.quality.audit import quantile
from afzal.records import Comparison, Item, Rating, Response


def load(folder, rows, **kwargs):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path, **kwargs)


def pair(n, chosen=None, rejected=None, **more):
    return {"prompt": f"Q{n}", "chosen": chosen or f" aa{n}", "rejected": rejected or f" bb{n}", **more}


def finding(dataset, code):
    return next((f for f in audit(dataset).findings if f.code == code), None)


SOUND = [pair(n, f" {'x' * (n % 4 + 1)}{n}", f" {'y' * (4 - n % 4)}{n}") for n in range(20)]


def test_sound_data_has_no_finding_above_ok(tmp_path):
    result = audit(load(tmp_path, SOUND))
    assert result.worst == "ok"
    assert (result.rows, result.kept, result.items, result.pairs, result.prompts) == (20, 20, 20, 20, 20)
    assert result.responses_per_item == {"2": 20}
    json.dumps(asdict(result), allow_nan=False)


# name: (rows put before 20 sound ones, code, severity, count)
DEGENERATE = {
    "identical pair": ([pair("i", " same", " same"), pair("j", " same ", " same")], "identical_pairs", "major", 2),
    "all identical": ([pair("i", " x", " x")] * 40, "identical_pairs", "major", 40),
    "contradictory": ([pair("c", " x", " y"), pair("c", " y", " x")], "contradictions", "major", 1),
    "cycle": ([pair("c", " x", " y"), pair("c", " y", " z"), pair("c", " z", " x")], "cycles", "major", 1),
    "duplicate": ([pair("d")] * 2, "duplicate_items", "minor", 1),
    "many duplicates": ([pair("d")] * 5, "duplicate_items", "major", 4),
    "duplicate ids": ([pair("d", id="one"), pair("e", id="one"), pair("f", id="two")], "duplicate_ids", "minor", 1),
    "empty answer": ([pair("e", " "), pair("e", None, "\n")], "dropped_rows", "major", 2),
    "over-long": ([pair("l", "word " * 4000)], "over_long", "minor", 1),
    "empty prompt": ([pair(0) | {"prompt": ""}], "empty_prompts", "minor", 1),
    "score mismatch": (
        [pair("s", score_chosen=1, score_rejected=2), pair("t", score_chosen=3, score_rejected=2)],
        "score_mismatches",
        "minor",
        1,
    ),
    "ties": ([pair("t", p=0.5)] * 1, "no_order", "ok", 1),
}


@pytest.mark.parametrize("name", list(DEGENERATE))
def test_a_degenerate_part_is_named_with_its_count(tmp_path, name):
    rows, code, severity, count = DEGENERATE[name]
    dataset = load(tmp_path, rows + SOUND)
    defect = finding(dataset, code)
    assert (defect.severity, defect.count) == (severity, count)
    assert str(count) in defect.message
    assert defect.ids
    assert bool(defect.remedy) == (severity != "ok")
    assert len(defect.ids) <= 20


def test_data_without_any_order_or_with_one_label_only(tmp_path):
    assert finding(load(tmp_path, [pair(n, p=0.5) for n in range(4)]), "no_order").severity == "major"
    good = [{"prompt": f"Q{n}", "completion": "a", "label": True} for n in range(4)]
    only_good = finding(load(tmp_path, good), "label_balance")
    assert (only_good.severity, "train sft" in only_good.remedy) == ("major", True)
    only_bad = finding(load(tmp_path, [row | {"label": False} for row in good]), "label_balance")
    assert (only_bad.severity, "sft" in only_bad.remedy) == ("major", False)
    mixed = [{"prompt": f"Q{n}", "completion": "a", "label": n < 18} for n in range(20)]
    balance = finding(load(tmp_path, mixed), "label_balance")
    assert (balance.severity, balance.count, balance.total, balance.value) == ("minor", 18, 20, 0.9)
    assert "weigh the rarer one up" in balance.remedy
    both = [{"prompt": "Q", "completion": "a", "label": label} for label in (True, False)]
    assert finding(load(tmp_path, both), "contradictions").count == 1


def test_one_prompt_only_cannot_be_held_out(tmp_path):
    assert finding(load(tmp_path, [pair("x", f" a{n}") for n in range(5)]), "one_prompt").severity == "minor"


def test_empty_null_and_missing_are_told_before_anything_is_trained(tmp_path):
    told = {}
    for name, rows in {
        "empty": [],
        "null": [pair(0) | {"chosen": None}, pair(1)],
        "missing column": [{"prompt": "Q", "chosen": "a"}] * 3,
        "other column": [{"prompt": "Q", "good": "a", "bad": "b"}] * 3,
        "all empty": [pair(n, " ") for n in range(3)],
    }.items():
        with pytest.raises(AfzalError) as caught:
            load(tmp_path, rows)
        told[name] = str(caught.value)
    assert "holds no rows" in told["empty"]
    assert "'chosen' is null" in told["null"]
    assert "1 of 2 rows" in told["null"]
    assert "also needs rejected" in told["missing column"]
    assert "chosen=good,rejected=bad" in told["other column"]
    assert "empty_response 3" in told["all empty"]


def test_intervals_of_the_audit_are_over_prompts(tmp_path):
    """Four identical rows per prompt are one observation: the interval is as wide as with one row per prompt."""
    once = [pair(n, " long" * 5) for n in range(30)] + [pair(n, None, " long" * 5) for n in range(30, 40)]
    again = [
        {**row, "chosen": f"{row['chosen']} {k}", "rejected": f"{row['rejected']} {k}"}
        for row in once
        for k in range(4)
    ]
    one, four = (finding(load(tmp_path, rows), "length_bias") for rows in (once, again))
    assert (four.value, four.total) == (one.value, 4 * one.total)
    assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_length_bias_is_a_rate_with_its_wilson_interval(tmp_path):
    rows = [pair(n, " long" * 5) for n in range(30)] + [pair(n, None, " long" * 5) for n in range(30, 40)]
    rows += [pair(n, " ab", " cd") for n in range(40, 50)]  # equal lengths do not count
    bias = finding(load(tmp_path, rows), "length_bias")
    assert (bias.count, bias.total, bias.value, bias.severity) == (30, 40, 0.75, "ok")
    assert (bias.low, bias.high) == pytest.approx((0.5981, 0.8581), abs=1e-4)
    assert finding(load(tmp_path, rows[:30]), "length_bias").severity == "major"


def test_quantiles_take_a_value_that_exists():
    assert [quantile([1, 2, 3, 4], q) for q in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert quantile([], 0.5) == 0
    assert quantile(list(range(1, 101)), 0.95) == 95


# --- votes of several people ------------------------------------------------------------------------------------------


def item(prompt, answers, votes, ident="x"):
    return Item(ident, prompt, tuple(map(Response, answers)), tuple(votes), where=f"f:{ident}")


def test_agreement_counts_pairs_of_votes_whichever_way_round_they_are_written(tmp_path):
    dataset = load(tmp_path, [pair(0)])
    votes = [Comparison(0, 1, "first"), Comparison(1, 0, "second"), Comparison(0, 1, "tie")]
    dataset.items[:] = [item("Q", ["a", "b"], votes), item("R", ["a", "b"], votes[:1])]
    agreement = finding(dataset, "agreement")
    assert (agreement.count, agreement.total, agreement.value) == (1, 3, pytest.approx(1 / 3))
    assert agreement.severity == "minor"
    assert agreement.ids == ["x"]


def test_disagreement_within_an_item_is_no_contradiction():
    votes = [Comparison(0, 1, "first"), Comparison(0, 1, "second"), Comparison(0, 1, "first")]
    assert contradictions([item("Q", ["a", "b"], votes)]) == []
    against = item("Q", ["b ", "a"], [Comparison(0, 1, "first")], "y")
    ((first, second),) = contradictions([item("Q", ["a", "b"], votes), against])
    assert {first.id, second.id} == {"x", "y"}
    assert contradictions([item("Q", ["a", "b"], votes), item("R", ["b", "a"], votes)]) == []


def test_pairs_stated_both_ways_are_no_cycle(tmp_path):
    rows = [pair("c", f" {a}", f" {b}") for a, b in ("xy", "yx", "yz", "zy")]
    dataset = load(tmp_path, rows)
    assert finding(dataset, "contradictions").count == 2
    assert finding(dataset, "cycles").count == 0


def test_both_bad_is_counted_apart_from_ties(tmp_path):
    dataset = load(tmp_path, [pair(0)])
    dataset.items[:] = [item("Q", ["a", "b"], [Comparison(0, 1, o)], str(n)) for n, o in enumerate(["both_bad", "tie"])]
    result = audit(dataset)
    assert (result.both_bad, result.ties, result.pairs) == (1, 1, 1)


# --- cleaning -------------------------------------------------------------------------------------------------------

FIRST = Comparison(0, 1, "first")


def test_clean_removes_identical_pairs_and_duplicates_and_accounts_for_both():
    keep = item("Q", [" a", " b"], [FIRST], "1")
    items = [
        keep,
        item("Q", [" a", " b"], [FIRST], "2"),
        item("Q", [" b", " a"], [Comparison(0, 1, "second")], "3"),
        item("Q", [" b", " a"], [Comparison(1, 0, "first")], "4"),
        item("Q", [" a", " a "], [FIRST], "5"),
        item("Q", [" b", " a"], [FIRST], "6"),  # contradicts: kept
        item("R", [" a", " b"], [FIRST], "7"),
        item("Q", [" a", " b"], [Comparison(0, 1, "first", annotator="z")], "8"),  # another person's vote
    ]
    kept, drops = clean(items)
    assert [i.id for i in kept] == ["1", "6", "7", "8"]
    assert [(d.item_id, d.reason) for d in drops] == [
        ("2", "duplicate_item"),
        ("3", "duplicate_item"),
        ("4", "duplicate_item"),
        ("5", "identical_pair"),
    ]
    assert drops[0].detail == "same as f:1"
    assert kept[0] is keep
    assert clean(kept) == (kept, [])


def test_clean_joins_equal_answers_of_many():
    ratings = [Rating(0, 0.0, "rank"), Rating(1, 2.0, "rank"), Rating(2, 1.0, "rank")]
    ((joined,), (drop,)) = clean([item("Q", ["a", "b", "a "], [*ratings, Comparison(0, 2, "first")])])
    assert [r.turns for r in joined.responses] == ["a", "b"]
    assert joined.votes == (Rating(0, 0.0, "rank"), Rating(1, 2.0, "rank"), Rating(0, 1.0, "rank"))
    assert (drop.reason, drop.unit) == ("identical_answers", "response")


def test_clean_keeps_single_answers_and_leaves_the_input_alone():
    items = [item("Q", ["a"], [], "1"), item("Q", ["b"], [Rating(0, 1.0, "label")], "2"), item("Q", [], [], "3")]
    before = list(items)
    assert clean(items) == (before, [])
