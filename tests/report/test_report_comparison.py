"""The picture of a comparison, with and without what draws it."""

from __future__ import annotations

import sys

import pytest

from afzal import report


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


def test_the_page_escapes_answers_and_says_when_intervals_overlap(tmp_path):
    report.write_comparison(tmp_path, body())
    page = (tmp_path / "compare.html").read_text()
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<script" not in page
    assert "A &amp; &lt;i&gt;" in page
    assert "At a KL of 1.00 nats B has the most gold, 2.050" in page
    assert "do not tell them apart" in page
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
