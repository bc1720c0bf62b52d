"""The judge's card: verdict files, a policy as a judge, self-preference, calibration, categories, cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import command_line, model_folder, one_thread, settings

from afzal import data, judging
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import summary, summary_text, validation
from afzal.judge.card import card, pairs_to_read
from afzal.judge.games import Ruling, games_of, pairs_of
from afzal.judge.people import labels_on
from afzal.judge.recorded import from_file, judges_in
from afzal.judging import judges
from afzal.records import Comparison, Item, Response


def item(k: int, votes: str = "", category: str | None = None) -> Item:
    """Two answers of a and b; each letter of ``votes`` is one person's: f, s or t."""
    words = {"f": "first", "s": "second", "t": "tie"}
    said = tuple(Comparison(0, 1, words[v], annotator=f"p{n}") for n, v in enumerate(votes))  # pyright: ignore[reportArgumentType]
    extra = {} if category is None else {"category": category}
    return Item(f"i{k}", f"q{k}", (Response(f"one {k}", "a"), Response(f"two {k}", "b")), said, extra=extra)


def write_lines(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_table_of_verdicts_is_a_judge_for_each_column(tmp_path):
    table = [{"idx": "i0", "x": "1", "y": ["1", None]}, {"idx": "i1", "x": "Tie", "y": [2, 2]}]
    path = write_lines(tmp_path / "t.jsonl", table)
    assert judges_in(path) == ["x", "y"]
    items = [item(k) for k in range(3)]
    pairs = pairs_of(items)
    games, rulings = from_file(path, "x", items, pairs)
    assert [r.outcome for r in rulings] == ["first", "tie", "none"]
    assert rulings[2].why == "the file holds no verdict on this pair"
    games, rulings = from_file(path, "y", items, pairs)
    assert [(g.pair.item, g.swapped, r.outcome) for g, r in zip(games, rulings, strict=True)] == [
        (0, False, "first"),
        (0, True, "none"),
        (1, False, "second"),
        (1, True, "second"),
        (2, False, "none"),
    ]


def test_a_mapping_of_judges_and_what_is_no_verdict(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", [{"id": "i0", "judges": {"GPT/CoT": ["2", "1"]}}])
    assert judges_in(path) == ["GPT/CoT"]
    spec = judges.resolve_judge(f"verdicts:{path}")
    assert (spec.name, spec.settings) == ("GPT/CoT", None)
    bad = write_lines(tmp_path / "bad.jsonl", [{"id": "i0", "judges": {"j": "maybe"}}])
    with pytest.raises(AfzalError, match="'maybe' is not one of 1, first"):
        from_file(bad, "j", [item(0)], pairs_of([item(0)]))
    three = write_lines(tmp_path / "three.jsonl", [{"id": "i0", "judges": {"j": [1, 2, 1]}}])
    with pytest.raises(AfzalError, match="j has 3 verdicts"):
        from_file(three, "j", [item(0)], pairs_of([item(0)]))
    with pytest.raises(AfzalError, match="holds no verdicts of j on these items"):
        from_file(three, "j", [item(7)], pairs_of([item(7)]))
    none = write_lines(tmp_path / "none.jsonl", [{"id": "i0", "x": "some text"}])
    with pytest.raises(AfzalError, match="holds no verdicts of judges"):
        judges_in(none)


def test_several_judges_of_a_file_must_be_named(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", [{"idx": "i0", "x": "1", "y": "2"}])
    with pytest.raises(AfzalError, match="the file has 2 judges"):
        judges.resolve_judge(f"verdicts:{path}")
    with pytest.raises(AfzalError, match="no judge 'z' in the file"):
        judges.resolve_judge(f"verdicts:{path}:z")
    one, two = (judges.resolve_judge(f"verdicts:{path}:{name}") for name in "xy")
    assert one.fingerprint != two.fingerprint


def test_verdicts_that_were_written_are_read_back(tmp_path):
    """A judge and its own verdict file give the same result, whatever was asked."""
    source = tmp_path / "rows.jsonl"
    data.write([item(k, "fs"[k % 2] * 3) for k in range(6)], source, "afzal")
    (tmp_path / "taste.py").write_text(
        "def odd(prompt, answer):\n    return answer.startswith('one') == ('3' in prompt)\n"
    )
    arguments = ["judge", str(source), "--resamples", "20"]
    assert main([*arguments, "--judge", f"{tmp_path}/taste.py:odd", "--out", str(tmp_path / "a")]) == 0
    spec = f"verdicts:{tmp_path}/a/verdicts.jsonl"
    assert main([*arguments, "--judge", spec, "--out", str(tmp_path / "b")]) == 0
    one, two = (json.loads((tmp_path / x / "summary.json").read_text())[0] for x in "ab")
    assert {**one, "sha256": ""} == {**two, "sha256": ""}
    assert one["models"]["win"] == 1


def yaml(path: Path, **values: object) -> str:
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return str(path)


def test_a_policy_prefers_the_answers_it_was_trained_on(tmp_path):
    """The verdict is the sign of the implicit reward gap, its probability the gap's sigmoid; swapped roles mirror."""
    with one_thread():
        assert main(command_line("dpo", settings(tmp_path, tmp_path / "run", epochs=1.0))) == 0
        items = [item(k) for k in range(4)]
        ask = {"cache": tmp_path / "none.sqlite", "resamples": 10}
        of_run = judging.judge_items(f"policy:{tmp_path}/run", items, **ask)
        start = {"kind": "policy", "model": f"{tmp_path}/run", "reference": f"{tmp_path}/model"}
        same = judging.judge_items(yaml(tmp_path / "same.yaml", **start, beta=0.1), items, **ask)
        strong = judging.judge_items(yaml(tmp_path / "strong.yaml", **start, beta=0.2), items, **ask)
        turned = {"kind": "policy", "model": f"{tmp_path}/model", "reference": f"{tmp_path}/run"}
        mirror = judging.judge_items(yaml(tmp_path / "mirror.yaml", **turned), items, **ask)
    p, q, weak = ([r.p_first for r in said.rulings] for said in (of_run, mirror, same))
    assert p == weak
    assert of_run.judge.settings.reference == f"{tmp_path}/model"  # as the run's settings say
    assert all(abs(value - 0.5) > 1e-6 for value in p)
    assert [a + b for a, b in zip(p, q, strict=True)] == pytest.approx([1.0] * 4, abs=1e-6)
    assert [r.outcome for r in of_run.rulings] == ["first" if value > 0.5 else "second" for value in p]
    logit = lambda value: math.log(value / (1 - value))  # noqa: E731
    assert [logit(r.p_first) for r in strong.rulings] == pytest.approx([2 * logit(v) for v in p], rel=1e-4)
    assert of_run.judge.fingerprint != mirror.judge.fingerprint


def test_a_policy_needs_a_reference(tmp_path):
    folder = model_folder(tmp_path / "model")
    with pytest.raises(AfzalError, match="the policy's reference is not known"):
        judges.resolve_judge(f"policy:{folder}")
    with pytest.raises(AfzalError, match="is not a policy"):
        judges.resolve_judge(yaml(tmp_path / "r.yaml", kind="rule", rule="longest", beta=0.2))


def said_by(items: list[Item], outcomes: str, orders: str = "first", **more) -> tuple:
    """Pairs, games and rulings of a judge that gives these outcomes in turn (f, s, t, n)."""
    words = {"f": "first", "s": "second", "t": "tie", "n": "none"}
    pairs = pairs_of(items)
    games = games_of(pairs, orders)  # pyright: ignore[reportArgumentType]
    rulings = [Ruling(words[o], why="refused" if o == "n" else "", **more) for o in outcomes]  # pyright: ignore[reportArgumentType]
    return pairs, games, rulings


def test_agreement_with_people_by_hand():
    """Three people; the judge says f, t, n: agreement 3/9 on all labels, 3/6 on those with a verdict."""
    items = [item(0, "fff"), item(1, "sst"), item(2, "sss")]
    pairs, games, rulings = said_by(items, "ftn")
    people = labels_on(items, pairs)
    known = summary.summary("j", items, pairs, games, rulings, summary.JudgeContext(people), resamples=20)["people"]
    assert known["agreement"]["value"] == pytest.approx(4 / 9)
    assert (known["verdicts_only"]["value"], known["verdicts_only"]["pairs"]) == (pytest.approx(4 / 6), 6)
    assert (known["without_ties"]["value"], known["without_ties"]["pairs"]) == (1.0, 3)
    majority = known["with_the_majority"]
    assert majority["agreement"]["value"] == pytest.approx(1 / 3)
    assert majority["verdicts_only"]["value"] == pytest.approx(1 / 2)
    # classes first (1 of 1 right), second (never said, 2 missed), tie (said once, wrongly)
    assert majority["recall"] == pytest.approx(1 / 3)
    assert majority["precision"] == pytest.approx(1 / 3)
    # on the first two pairs the judge does as well as a person would, on the third it says nothing
    assert known["minus_ceiling"]["value"] == pytest.approx(-1 / 3)


def test_self_preference_is_compared_on_the_same_pairs():
    """The judge gives its own answers 3 of 4 points; people give the same answers 1 of 4."""
    items = [item(0, "f"), item(1, "s"), item(2, "s"), item(3, "s")]
    pairs, games, rulings = said_by(items, "fffs")
    other = np.array([0.5, 0.5, np.nan, 0.5])
    known = summary.JudgeContext(labels_on(items, pairs), {"ruler": other}, own="a")
    own = summary.summary("j", items, pairs, games, rulings, known, resamples=50)["own_answers"]
    assert own["share"]["value"] == 0.75
    assert own["beside"]["people"]["difference"]["value"] == 0.5
    assert (own["beside"]["ruler"]["difference"]["value"], own["beside"]["ruler"]["difference"]["pairs"]) == (
        pytest.approx(1 / 6),
        3,
    )
    turned = summary.summary("j", items, pairs, games, rulings, summary.JudgeContext(own="b"), resamples=50)[
        "own_answers"
    ]
    assert turned["share"]["value"] == 0.25
    assert not turned["beside"]


def test_the_judges_own_model_is_known_by_name(tmp_path):
    named = judges.resolve_judge(yaml(tmp_path / "j.yaml", kind="http", url="http://x/v1", model="org/a"))
    assert judges.own_source(named, [item(0)]) == "a"
    other = judges.resolve_judge(yaml(tmp_path / "k.yaml", kind="http", url="http://x/v1", model="org/a", own="b"))
    assert judges.own_source(other, [item(0)]) == "b"
    stranger = judges.resolve_judge(yaml(tmp_path / "l.yaml", kind="http", url="http://x/v1", model="org/z"))
    assert judges.own_source(stranger, [item(0)]) is None


def test_cost_by_hand():
    items = [item(0), item(1)]
    pairs, games, rulings = said_by(items, "fs", tokens=(1_000_000, 500_000))
    body = summary.summary("j", items, pairs, games, rulings, summary.JudgeContext(prices=(0.5, 2.0)), resamples=5)
    assert body["cost"] == pytest.approx(2 * 0.5 + 1 * 2.0)
    assert "tokens: 2,000,000 in requests, 1,000,000 in replies, cost 3.00" in summary_text.lines(body)[-1]
    free = summary.summary("j", items, pairs, games, rulings, resamples=5)
    assert "cost" not in free


def test_calibration_of_stated_probabilities():
    """People agree with every certain verdict: the Brier score is (1 - p)^2."""
    items = [item(k, "fff" if k % 2 else "sss") for k in range(8)]
    pairs = pairs_of(items)
    games = games_of(pairs, "first")
    rulings = [Ruling("first" if k % 2 else "second", 0.9 if k % 2 else 0.1) for k in range(8)]
    known = summary.JudgeContext(labels_on(items, pairs))
    calibration = summary.summary("j", items, pairs, games, rulings, known, resamples=5)["calibration"]
    assert calibration["brier"] == pytest.approx(0.01)
    assert calibration["ece"] == pytest.approx(0.1)
    assert [(b["n"], b["right"]) for b in calibration["bins"]] == [(8, 1.0)]
    hard = summary.summary("j", items, pairs, games, [Ruling(r.outcome) for r in rulings], known, resamples=5)
    assert "calibration" not in hard


def test_categories_add_up():
    items = [item(0, "f", "code"), item(1, "s", "code"), item(2, "f", "chat")]
    pairs, games, rulings = said_by(items, "fff")
    body = summary.summary(
        "j", items, pairs, games, rulings, summary.JudgeContext(labels_on(items, pairs)), resamples=5
    )
    lines = {line["category"]: line for line in body["by_category"]}
    assert {name: line["pairs"] for name, line in lines.items()} == {"chat": 1, "code": 2}
    assert (lines["chat"]["agreement"]["value"], lines["code"]["agreement"]["value"]) == (1.0, 0.5)
    assert lines["code"]["win_rate"]["value"] == 1.0
    assert "code: 2 pairs, win rate 100.0%" in "\n".join(summary_text.lines(body))


def test_pairs_to_read_come_with_both_orders_and_what_people_said():
    items = [item(0, "fff"), item(1, "sst"), item(2, "sss"), item(3, "fff"), item(4, "fff")]
    pairs, games, rulings = said_by(items, "ff" + "ff" + "ff" + "fs" + "nf", "both")
    worst = pairs_to_read(pairs, games, rulings, labels_on(items, pairs))
    assert [(w["why"], w["prompt"]) for w in worst] == [
        ("people prefer the other", "q2"),
        ("people prefer the other", "q1"),
        ("each order names a different winner", "q3"),
        ("no verdict", "q4"),
    ]
    assert worst[1]["people"] == "2 x second, 1 x tie"
    assert worst[2]["verdicts"] == "first shown first: first; second shown first: second"
    assert worst[3]["verdicts"] == "first shown first: no verdict; second shown first: first"


def test_the_card_holds_every_part_in_all_of_its_forms(tmp_path):
    source = tmp_path / "rows.jsonl"
    data.write([item(k, "fst"[k % 3] * 3, "x|y" if k % 2 else "<b>") for k in range(12)], source, "afzal")
    assert main(["judge", str(source), "--judge", "rule:longest", "--out", str(tmp_path), "--resamples", "20"]) == 0
    whole = json.loads((tmp_path / "judge_card.json").read_text())
    assert whole["summary"]["pairs"] == 12
    assert [table["title"] for table in whole["tables"]] == ["Verdicts", "Alternative-annotator test", "By category"]
    markdown, page = ((tmp_path / f"judge_card.{end}").read_text() for end in ("md", "html"))
    for title in ("Verdicts", "Alternative-annotator test", "By category"):
        assert f"## {title}" in markdown
        assert f"<h2>{title}</h2>" in page
    assert "&lt;b&gt;" in page
    assert "| &lt;b\\> |" in markdown
    assert "x\\|y" in markdown  # no more cells than the table has
    assert "<b>" not in page + markdown


def test_a_card_of_nothing_but_silence():
    items = [item(0, "fff")]
    pairs, games, rulings = said_by(items, "n")
    body_of_silence = summary.summary(
        "j", items, pairs, games, rulings, summary.JudgeContext(labels_on(items, pairs)), resamples=5
    )
    body = card(body_of_silence, {"kind": "rule"}, pairs_to_read(pairs, games, rulings, None))
    assert body["findings"] == ["Not judged: j gave no verdict in 1 game."]
    assert validation.self_preference(np.array([1]), np.array([np.nan]), {}, ["q"], resamples=5, seed=0) is None


def test_pairs_without_a_verdict_are_in_no_win_rate():
    """The judge is silent on the only pair whose first answer is longer."""
    items = [
        replace(item(k, "fff"), responses=(Response("long" if k == 0 else "s", "a"), Response("two", "b")))
        for k in range(4)
    ]
    pairs, games, rulings = said_by(items, "nffs")
    known = summary.JudgeContext(labels_on(items, pairs))
    body = summary.summary("j", items, pairs, games, rulings, known, resamples=20)
    assert (body["models"]["win_rate"]["n"], body["models"]["win_rate_of_the_longer"]) == (3, 0.0)
    assert summary_text.verdict(body).endswith("on 3 prompts by j")
    said = card(body, {"kind": "rule"}, pairs_to_read(pairs, games, rulings, None))["findings"]
    assert "1 of 4 games have no verdict: their pairs count as neither wins nor losses, and agree with nobody." in said
    assert said[-1] == "It agrees with people 50.0 points less often than one of them does, which may be chance."


def seated(swapped: bool) -> dict:
    """Eight pairs of a and b on eight prompts; with ``swapped``, b is named first in some of them.

    If a is longer (by 4 characters) it wins 3 of 4, if shorter 2 of 4. One person votes on the first five, like the
    judge except on the third; a ruler gives a quarter of a point to every answer of a.
    """
    longer, wins = (True, False) * 4, (True, False, True, True, False, True, True, False)
    items, words, ruler = [], [], []
    for k, (long, won) in enumerate(zip(longer, wins, strict=True)):
        answers = (Response("a" * (6 if long else 2), "a"), Response("b" * (2 if long else 6), "b"))
        swap, voted = swapped and k % 3 == 1, won and k != 2
        votes = (Comparison(0, 1, "first" if voted != swap else "second", annotator="p"),) if k < 5 else ()
        about = {"category": "longer" if long else "shorter"}
        items.append(Item(f"i{k}", f"q{k}", answers[::-1] if swap else answers, votes, extra=about))
        words.append("f" if won != swap else "s")
        ruler.append(0.75 if swap else 0.25)
    pairs, games, rulings = said_by(items, "".join(words))
    known = summary.JudgeContext(labels_on(items, pairs), {"ruler": np.array(ruler)}, own="a")
    return summary.summary("j", items, pairs, games, rulings, known, resamples=50)


def test_the_win_rate_at_equal_lengths_by_hand():
    """Only two gaps, so the fit meets both shares: log-odds ln 3 and 0, halfway between them ln 3 / 2."""
    body = seated(swapped=False)
    models = body["models"]
    assert (models["win"], models["loss"], models["win_rate"]["value"]) == (5, 3, 5 / 8)
    assert models["length_controlled"]["value"] == pytest.approx(3**0.5 / (1 + 3**0.5))
    reach = math.tanh(4 / (4 * (8 / 7) ** 0.5))
    assert models["length_controlled"]["slope"]["value"] == pytest.approx(math.log(3) / 2 / reach)
    assert models["win_rate_of_the_longer"] == 0.5
    assert (body["longer_wins"]["value"], body["longer_wins"]["pairs"]) == (5 / 8, 8)
    rates = {line["category"]: line["win_rate"]["value"] for line in body["by_category"]}
    assert rates == {"longer": 3 / 4, "shorter": 2 / 4}


def test_the_people_corrected_win_rate_by_hand():
    """On five prompts the points of judge and person have covariance .2 and variance .3: weight 2 / 3. Their means are
    .6 and .4, and the judge's is 5 / 8 on all eight prompts."""
    corrected = seated(swapped=False)["models"]["with_people"]
    assert (corrected["prompts"], corrected["power"]) == (5, pytest.approx(2 / 3))
    assert corrected["corrected"]["value"] == pytest.approx(2 / 3 * 5 / 8 + 0.4 - 2 / 3 * 0.6)


def test_it_does_not_matter_which_model_a_pair_names_first():
    one, two = seated(swapped=False), seated(swapped=True)
    assert one["first_wins"] != two["first_wins"]
    for part in ("models", "longer_wins", "people", "by_category", "own_answers"):
        assert one[part] == two[part]


def test_the_probability_of_a_pair_is_the_mean_over_its_games():
    """0.9 in one order and 0.7 in the other average to 0.8, and people name the first: Brier 0.04."""
    items = [item(k, "f") for k in range(4)]
    pairs = pairs_of(items)
    games = games_of(pairs, "both")
    rulings = [Ruling("first", 0.7 if game.swapped else 0.9) for game in games]
    known = summary.JudgeContext(labels_on(items, pairs))
    calibration = summary.summary("j", items, pairs, games, rulings, known, resamples=5)["calibration"]
    assert calibration["brier"] == pytest.approx(0.04)


def test_pairs_left_out_of_shares_of_winners():
    """The first pair has answers of equal length, and most people call the second a tie: neither shows which wins."""
    even = replace(item(0, "fff"), responses=(Response("same", "a"), Response("size", "b")))
    longer = replace(item(1, "ttt"), responses=(Response("longer", "a"), Response("long", "b")))
    items = [even, longer, item(2, "sss")]
    pairs, games, rulings = said_by(items, "fff")
    body = summary.summary(
        "j", items, pairs, games, rulings, summary.JudgeContext(labels_on(items, pairs)), resamples=5
    )
    assert (body["longer_wins"]["value"], body["longer_wins"]["pairs"]) == (1.0, 1)
    majority = body["people"]["with_the_majority"]
    assert (majority["without_ties"]["value"], majority["without_ties"]["pairs"]) == (0.5, 2)
    assert majority["agreement"]["value"] == pytest.approx(1 / 3)
    # the judge names only one of three classes: precision 1 of 3, recall 1 of 1
    assert [majority[key] for key in ("precision", "recall", "f1")] == pytest.approx([1 / 9, 1 / 3, 1 / 6])
