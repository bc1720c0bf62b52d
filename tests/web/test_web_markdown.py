"""Markdown as a tree: known elements only, and no working links."""

from __future__ import annotations

import json

import pytest
from helpers_web import job, opened

from afzal.web.markdown import LONGEST, TAGS, tree


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("plain", [["p", "plain"]]),
        ("*a* **b** `c` ~~d~~", [["p", ["em", "a"], " ", ["strong", "b"], " ", ["code", "c"], " ", ["s", "d"]]]),
        ("# h\n\n- x\n- y", [["h1", "h"], ["ul", ["li", ["p", "x"]], ["li", ["p", "y"]]]]),
        ("```py\n<b>x</b>\n```", [["pre", "<b>x</b>\n"]]),
        ("a\nb  \nc", [["p", "a", "\n", "b", ["br"], "c"]]),
        ("[text](https://e.example/x)", [["p", "text", " (https://e.example/x)"]]),
        ("![cat](https://e.example/x.png)", [["p", "[image: cat]"]]),
        ("[x](javascript:alert(1))", [["p", "[x](javascript:alert(1))"]]),
        ("<script>alert(1)</script>", [["p", "<script>alert(1)</script>"]]),
        ("a <img src=x onerror=alert(1)> b", [["p", "a <img src=x onerror=alert(1)> b"]]),
        ("> q\n\n---", [["blockquote", ["p", "q"]], ["hr"]]),
        (
            "|a|b|\n|-|-|\n|1|2|",
            [["table", ["thead", ["tr", ["th", "a"], ["th", "b"]]], ["tbody", ["tr", ["td", "1"], ["td", "2"]]]]],
        ),
        ("", []),
    ],
)
def test_texts_become_trees(text, nodes):
    assert tree(text) == nodes


@pytest.mark.parametrize(
    "text", ["[" * 5000, "*" * 20_000, "> " * 2000 + "x", "- " * 2000 + "x", "<a " * 3000, "`" * 9999]
)
def test_only_known_tags_stand_in_a_tree(text):
    def tags(node):
        if isinstance(node, list):
            yield node[0]
            for child in node[1:]:
                yield from tags(child)

    assert {tag for node in tree(text) for tag in tags(node)} <= TAGS


def test_a_very_long_text_is_shown_as_it_is():
    assert tree("x" * LONGEST) is not None
    assert tree("x" * (LONGEST + 1)) is None


def test_texts_are_plain_unless_markdown_is_asked_for(tmp_path):
    rows = [{"prompt": "*p*", "chosen": "*a*", "rejected": "*b*"}]
    with opened(job(tmp_path, rows)) as folder:
        assert "tree" not in json.dumps(folder.session.next("ann"))
    (tmp_path / "again").mkdir()
    with opened(job(tmp_path / "again", rows, text="markdown")) as folder:
        asked = folder.session.next("ann")
        assert asked["prompt"][0]["parts"] == [{"type": "text", "text": "*p*", "tree": [["p", ["em", "p"]]]}]
