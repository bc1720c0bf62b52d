"""Judges in a comparison: checked by hand, next to people, cached, and refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import model_folder
from transformers import AutoModelForCausalLM

from afzal import config, data
from afzal.compare import compare, plan
from afzal.compare.judge_agreement import compare_judges
from afzal.compare.measure import Answers
from afzal.compare.summary import Cost, Point
from afzal.errors import AfzalError
from afzal.records import Comparison
from afzal.report import comparison_judges as page

LENGTH = str(Path(__file__).parents[1] / "helpers_length.py") + ":length"


def settings(out: Path, **changes: Any) -> config.CompareConfig:
    methods = [{"name": "a", "run": "a-{seed}"}, {"name": "b", "run": "b-{seed}"}]
    given = {"model": "m", "prompts": "p", "rewards": {"gold": "x:y"}, "methods": methods, "seeds": [0, 1]}
    given |= {"samples": 2, "judges": {"long": "rule:longest"}, "out": str(out)}
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in (given | changes).items()])


def point(texts: list[list[str]], gold: list[list[float]], draws: int = 1) -> Point:
    shape = np.shape(gold)
    reward = {"gold": np.array(gold, float)}
    return Point(
        1, Answers(texts, np.full(shape, 3), np.zeros(shape, bool), np.zeros(shape), reward, 3.0), Cost(), draws
    )


def chosen() -> dict[str, dict[int, Point | None]]:
    """Three prompts, two answers each. Answer 0 of the first policy of a pair meets answer 1 of the second."""
    a = point([["longer", "x"], ["longer", "x"], ["same", "x"]], [[1, 0], [1, 0], [0, 0]])
    b = point([["x", "long"], ["x", "longest"], ["x", "came"]], [[0, 0], [0, 3], [0, 1]])
    start = point([["", ""]] * 3, [[0, 0]] * 3)
    return {"a": {0: a, 1: a}, "b": {0: b, 1: None}, "start": {0: start, 1: start}}


PROMPTS = ["one", "two", "three"]


def row(summary: dict[str, Any], ours: str, theirs: str, judge: int = 0) -> dict[str, Any]:
    return next(w for w in summary["judges"][judge]["wins"] if (w["ours"], w["theirs"]) == (ours, theirs))


def test_wins_by_a_judge_match_counting_by_hand(tmp_path):
    """a against b, seed 0 only: longer > long, longer < longest, same = came; against the start a wins all six."""
    summary = compare_judges(settings(tmp_path), chosen(), PROMPTS, lambda line: None)
    ab, ba = row(summary, "a", "b"), row(summary, "b", "a")
    assert [ab[k] for k in ("win", "tie", "loss", "no_verdict", "value", "n")] == [1, 1, 1, 0, 0.5, 3]
    assert [ba[k] for k in ("win", "tie", "loss")] == [1, 1, 1]
    assert (ba["low"], ba["high"]) == pytest.approx((1 - ab["high"], 1 - ab["low"]))
    start = row(summary, "a", "start")
    assert [start[k] for k in ("win", "loss", "value", "high")] == [6, 0, 1.0, 1.0]
    assert [row(summary, "start", "a")[k] for k in ("win", "loss", "value", "low")] == [0, 6, 0.0, 0.0]
    assert start["low"] == pytest.approx(0.4385, abs=1e-4)  # Wilson's of 3 of 3: the seeds answer the same prompts
    assert summary["judges"][0]["summary"]["pairs"] == 3 + 6 + 3


def test_the_true_reward_is_a_judge_of_the_same_pairs(tmp_path):
    """On a against b it says a, b, b, and length a, b, tie: 2 of 3 agree. On a against the start, in both seeds, a, a,
    tie and a, a, a: 4 of 6. On b against the start it says three ties and length says b: none. So 6 of 12, and all 6
    for which both name a winner."""
    said = compare_judges(settings(tmp_path), chosen(), PROMPTS, lambda line: None)["judge_agreement"]
    assert [(r["first"], r["second"]) for r in said] == [("long", "gold")]
    assert (said[0]["same"]["value"], said[0]["same"]["pairs"], said[0]["same"]["n"]) == (0.5, 12, 3)
    assert (said[0]["same_winner"]["value"], said[0]["same_winner"]["pairs"]) == (1.0, 6)


def test_best_of_n_meets_answers_of_other_draws(tmp_path):
    """Answer 0 of best-of-2 was chosen from draws 0 and 1, so the first independent answer of the other is number 2."""
    best = point([["b0", "b1"]] * 3, [[0, 0]] * 3, draws=2)
    other = point([["c0", "c1", "c2", "c3"]] * 3, [[0] * 4] * 3)
    compare_judges(settings(tmp_path), {"a": {0: best}, "start": {0: other}}, PROMPTS, lambda line: None)
    items = data.read(str(tmp_path / "judged" / "pairs.jsonl")).items
    assert [[r.turns for r in item.responses] for item in items] == [["b0", "c2"]] * 3
    assert {r.source for item in items for r in item.responses} == {"a", "start"}


def test_people_are_a_judge_next_to_the_others(tmp_path):
    compare_judges(settings(tmp_path / "first"), chosen(), PROMPTS, lambda line: None)
    items = list(data.read(str(tmp_path / "first" / "judged" / "pairs.jsonl")).items)
    votes = tmp_path / "votes.jsonl"
    said = [Comparison(0, 1, "first", annotator="ali"), Comparison(0, 1, "first", annotator="umi")]
    data.write([type(i)(i.id, i.prompt, i.responses, tuple(said)) for i in items[:3]], votes, "afzal")
    made = settings(tmp_path / "out", judges={"long": "rule:longest", "people": f"people:{votes}"})
    summary = compare_judges(made, chosen(), PROMPTS, lambda line: None)
    people = row(summary, "a", "b", 1)
    assert [people[k] for k in ("win", "tie", "loss", "no_verdict", "value")] == [3, 0, 0, 0, 1.0]
    nobody = row(summary, "b", "start", 1)
    assert (nobody["no_verdict"], nobody["value"], nobody["low"]) == (3, None, None)
    beside = summary["judges"][0]["summary"]["people"]
    assert (beside["agreement"]["value"], beside["ceiling"]["value"]) == (pytest.approx(1 / 3), 1.0)
    assert "people" not in summary["judges"][1]["summary"]
    pair = next(r for r in summary["judge_agreement"] if (r["first"], r["second"]) == ("long", "people"))
    assert (pair["same"]["value"], pair["same"]["pairs"]) == (pytest.approx(1 / 3), 3)


def test_a_judge_is_asked_again_only_if_it_or_the_answers_changed(tmp_path, monkeypatch):
    from afzal.compare import judge_agreement as room

    asked = []
    really = room.judge_items
    monkeypatch.setattr(
        room, "judge_items", lambda spec, items, **more: (asked.append(spec), really(spec, items, **more))[1]
    )
    once = compare_judges(settings(tmp_path), chosen(), PROMPTS, lambda line: None)
    assert compare_judges(settings(tmp_path), chosen(), PROMPTS, lambda line: None) == once
    assert asked == ["rule:longest"]
    compare_judges(settings(tmp_path, judges={"long": "rule:shortest"}), chosen(), PROMPTS, lambda line: None)
    compare_judges(settings(tmp_path, judge_prompts=2), chosen(), PROMPTS, lambda line: None)
    assert asked == ["rule:longest", "rule:shortest", "rule:longest"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judges": {"gold": "rule:longest"}}, "the same name as the true reward"),
        ({"judges": {"a b": "rule:longest"}}, "not 'a b'"),
        ({"judges": {"j": "${a}"}}, "cannot be a judge in it"),
        ({"judges": ["rule:longest"]}, "{name: judge.yaml"),
        ({"judges": {}, "judge_prompts": 4}, "no effect: there are no judges"),
    ],
)
def test_settings_of_judges_are_refused_with_a_way_out(tmp_path, changes, said):
    with pytest.raises(AfzalError, match=said):
        settings(tmp_path, **changes)


def two_models(folder: Path) -> tuple[Path, Path]:
    start, other = model_folder(folder / "start"), model_folder(folder / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.save_pretrained(other)
    return start, other


def whole(tmp_path: Path, **changes: Any) -> config.CompareConfig:
    start, other = two_models(tmp_path)
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"question {k}"}) + "\n" for k in range(6)))
    methods = [{"name": "other", "label": "O <b>", "run": str(other)}]
    given = {"model": str(start), "prompts": str(asked), "rewards": {"length": LENGTH}, "methods": methods}
    given |= {"judges": {"longest": "rule:longest", "shortest": "rule:shortest"}, "sample_tokens": 8, "samples": 2}
    given |= {"seeds": [0], "device": "cpu", "out": str(tmp_path / "out"), "show_prompts": 1, **changes}
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in given.items()])


def test_a_comparison_with_judges_from_settings_to_page(tmp_path):
    made = whole(tmp_path)
    assert "judge longest: rule:longest" in plan(made)
    html = compare(made, say=lambda line: None).read_text()
    body = json.loads((tmp_path / "out" / "compare.json").read_text())
    longest, shortest = (row(body, "other", "start", k) for k in (0, 1))
    assert longest["value"] == pytest.approx(1 - shortest["value"])
    assert longest["win"] + longest["tie"] + longest["loss"] == 6
    pairs = data.read(str(tmp_path / "out" / "judged" / "pairs.jsonl")).items
    lengths = [[len(str(r.turns)) for r in item.responses] for item in pairs]
    assert longest["win"] == sum(a > b for a, b in lengths)
    same = {(r["first"], r["second"]): r["same"]["value"] for r in body["judge_agreement"]}
    assert same["longest", "length"] == 1.0
    assert 'id="judges"' in html
    assert "longest: all pairs of policies" in html
    assert "O &lt;b&gt;" in html


def test_a_missing_judge_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(AfzalError, match="judges: mine: there is no judge") as error:
        compare(whole(tmp_path, judges={"mine": "nowhere"}), say=lambda line: None)
    assert "judge.yaml" in error.value.remedy
    assert not (tmp_path / "out" / "measured").exists()


def test_a_judge_that_prefers_another_policy_than_the_reward_is_named():
    win = lambda a, b, low, high: {"ours": a, "theirs": b, "value": (low + high) / 2, "low": low, "high": high}  # noqa: E731
    judge = {"name": "j", "wins": [win("a", "start", 0.6, 0.8), win("start", "a", 0.2, 0.4)]}
    body = {"rewards": ["gold"], "methods": [{"name": "a", "label": "A"}], "judges": [judge]}
    against = [win("a", "start", 0.1, 0.3), win("start", "a", 0.7, 0.9)]
    assert page.disagreements({**body, "wins": against}) == ["j prefers A to the start; gold says the opposite."]
    unclear = [win("a", "start", 0.1, 0.51), win("start", "a", 0.49, 0.9)]
    assert page.disagreements({**body, "wins": unclear}) == []
