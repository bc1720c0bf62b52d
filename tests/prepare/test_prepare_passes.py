"""Passes over items: omitted items are recorded with the step, and the order is that of the list."""

from dataclasses import replace

import pytest

from afzal import config
from afzal.drops import Drop, counts
from afzal.errors import AfzalError
from afzal.prepare.passes import Pass, apply_passes, of_part, of_source, on_axis
from afzal.records import Comparison, Item, Response


def item(k: int, *axes: str) -> Item:
    votes = tuple(Comparison(0, 1, "first", axis=axis) for axis in axes)
    return Item(f"i{k}", f"prompt {k}", (Response("a"), Response("b")), votes, where=f"f:{k}")


def without(name: str) -> Pass:
    """Drops one item, and marks those that it has seen."""

    def apply(items):
        kept = [replace(i, prompt=f"{i.prompt}, {name}") for i in items if i.id != name]
        return kept, [Drop(i.where, i.id, "named") for i in items if i.id == name]

    return Pass(f"no {name}", apply)


def test_each_pass_takes_what_the_one_before_left():
    kept, dropped = apply_passes([item(0), item(1), item(2)], [without("i1"), without("i0"), without("i1")])
    assert [i.prompt for i in kept] == ["prompt 2, i1, i0, i1"]
    assert [(d.item_id, d.stage) for d in dropped] == [("i1", "no i1"), ("i0", "no i0")]
    assert apply_passes([item(0)], []) == ([item(0)], [])


def test_an_axis_keeps_its_opinions_only():
    kept, dropped = on_axis([item(0, "x", "y"), item(1, "y")], "x", "f")
    assert [[v.axis for v in i.votes] for i in kept] == [["x"]]
    assert [(d.where, d.reason, d.detail, d.is_complete) for d in dropped] == [("f:1", "not_on_axis", "x", True)]
    with pytest.raises(AfzalError, match="axis=x or axis=y"):
        on_axis([item(0, "x", "y")], "z", "f")


def test_the_settings_decide_which_passes_there_are():
    made = lambda **given: config.make("dpo", model="m", data="d", **given)  # noqa: E731
    stages = lambda passes: [p.stage for p in passes]  # noqa: E731
    assert stages(of_source(made(), "d")) == ["audit"]
    assert stages(of_source(made(axis="x"), "d")) == ["read", "audit"]
    assert stages(of_source(made(axis="x", clean=False), "d")) == ["read"]
    assert stages(of_part({})) == ["samples"]


def test_an_axis_is_chosen_before_repeats_are_looked_for():
    """Items that differ only on another axis are the same item once an axis is chosen."""
    twins = [item(0, "x"), replace(item(0, "x", "y"), id="twin")]
    given = config.make("dpo", model="m", data="d", axis="x")
    kept, dropped = apply_passes(twins, of_source(given, "d"))
    assert [i.id for i in kept] == ["i0"]
    assert [(d.item_id, d.reason, d.stage) for d in dropped] == [("twin", "duplicate_item", "audit")]


def test_parts_and_cuts_are_counted_apart():
    told = [
        Drop("f:1", "a", "bad", unit="row"),
        Drop("f:2", "b", "twice"),
        Drop("f:3", "c", "empty", unit="response"),
        Drop("f:4", "d", "long", unit="item", action="cut"),
    ]
    assert counts(told) == {"dropped": {"bad": 1, "twice": 1}, "parts": {"empty": 1}, "cut": {"long": 1}}
    assert [d.is_complete for d in told] == [True, True, False, False]
