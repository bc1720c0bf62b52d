"""The picture of a comparison, with and without what draws it."""

from __future__ import annotations

import sys

import pytest

from afzal import report
from afzal.report import comparison_views


def body() -> dict:
    figure = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1, "n": 2}  # noqa: E731
    total = {"sum": 4.0, "count": 2, "mean": 2.0}
    cost = {"seconds": 1.0, "tokens": 10, "generated": 0}
    point = {"seed": 0, "step": 5, "rewards": {"gold": total}, "reward_se": 0.1, "kl": total, "kl_se": 0.1}
    point |= {"tokens": total, "unended": total, "gain": figure(1.0), "win": figure(0.5), "drawn_per_answer": 2.0}
    point |= {"cost": cost}

    def figures(kl: float, gold: float) -> dict:
        names = (
            "gain",
            "win",
            "tokens",
            "unended",
            "drawn_per_answer",
            "seconds",
            "trained_tokens",
            "generated_tokens",
        )
        return {"seeds": 2, "steps": [5, 5], "rewards": {"gold": figure(gold)}, "kl": figure(kl)} | {
            n: figure(0.5) for n in names
        }

    curve = [{"step": 0, **figures(0.0, 1.0)}, {"step": 5, **figures(2.0, 3.0)}]
    one = {"name": "a", "label": "A & <i>", "kind": "train", "needs": [], "kl_is_bound": False, "points": [point]}
    one |= {"curve": curve, "judged": figures(2.0, 3.0), "turned": []}
    one |= {"matched": [{"kl": 1.0, "reached": 2, "of": 2, **figure(2.0)}]}
    other = {**one, "name": "b", "label": "B", "matched": [{"kl": 1.0, "reached": 2, "of": 2, **figure(2.05)}]}
    return {
        "rewards": ["gold"],
        "seeds": [0, 1],
        "prompts": 2,
        "matched_kl": [1.0],
        "start": figures(0.0, 1.0),
        "start_points": [{**point, "step": 0}],
        "methods": [one, other],
        "differences": [{"kl": 1.0, "ours": "a", "theirs": "b", "value": -0.05, "low": -0.11, "high": 0.01, "n": 2}],
        "wins": [{"ours": "a", "theirs": "start", **figure(0.6)}],
        "samples": [
            {
                "prompt": "p",
                "answers": [
                    {"label": "A", "text": "<script>x</script>", "rewards": {"gold": 1.0}, "tokens": 3, "unended": True}
                ],
            }
        ],
        "settings": {"model": "m", "samples": 1, "sample_tokens": 4, "temperature": 1.0},
        "runs": {},
        "versions": {},
        "hardware": {},
    }


def test_methods_are_told_apart_by_their_paired_difference_not_by_two_intervals():
    """The intervals of a, 1.9 to 2.1, and b, 1.95 to 2.15, overlap; what counts is the difference, turned for b."""
    close = body()
    assert comparison_views.findings(close)[0].endswith(
        "The difference on the same prompts, 0.0500 [\N{MINUS SIGN}0.010, 0.110], does not tell them apart."
    )
    clear = {**body(), "differences": [{**body()["differences"][0], "low": -0.07, "high": -0.03}]}
    assert comparison_views.findings(clear)[0].endswith(
        "The difference on the same prompts, 0.0500 [0.030, 0.070], tells them apart."
    )
    alone = {**body(), "differences": [{**body()["differences"][0], "low": None, "high": None}]}
    assert "apart" not in comparison_views.findings(alone)[0]


def test_a_level_that_some_seeds_do_not_reach_is_not_comparable():
    one, other = body()["methods"]
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    some = {**one, "matched": [{"kl": 1.0, "reached": 1, "of": 2, **nothing}]}
    none = {**other, "matched": [{"kl": 1.0, "reached": 0, "of": 2, **nothing}]}
    rows = comparison_views.matched({**body(), "methods": [some, none]})["rows"]
    assert [row[1] for row in rows] == [("not comparable", "1 of 2 seeds reach it"), ("not reached", "")]
    said = comparison_views.findings({**body(), "methods": [some, none]})[0]
    assert said == "Too few methods reach a common KL with every seed, so no order can be given."


def test_the_page_escapes_answers_and_says_when_intervals_overlap(tmp_path):
    report.write_comparison(tmp_path, body())
    page = (tmp_path / "compare.html").read_text()
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<script" not in page
    assert "A &amp; &lt;i&gt;" in page
    assert "At a KL of 1.00 nats B has the most gold, 2.050" in page
    assert "does not tell them apart" in page
    assert "cut off" in page


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    assert report.write_comparison(tmp_path, body())[1] == []
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    page, notes = report.write_comparison(tmp_path, body())
    assert page.exists()
    assert not (tmp_path / "compare.png").exists()
    assert "pip install 'afzal[plots]'" in notes[0]
