"""Leaderboards from verdicts: entries without a number are named, order-only judges are found, real boards match."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from afzal import judge, report
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import (
    Verdict,
    Verdicts,
    length_controlled_as_plain,
    length_controlled_rates,
    rank_correlation,
    rank_models,
    read,
    weighed_as_plain,
)
from afzal.judge.judge_board import order_consistency
from afzal.judge.verdicts import MIRRORED


def verdicts(*games: tuple[str, str, str]) -> Verdicts:
    """Verdicts ``(winner, loser, "win" | "tie")``, each on its own prompt."""
    outcome = {"win": "first", "tie": "tie", "none": "none"}
    return Verdicts([Verdict(f"p{k}", f"p{k}", a, b, outcome[how], "j") for k, (a, b, how) in enumerate(games)])


def test_points_by_hand():
    said = verdicts(("a", "b", "win"), ("a", "b", "tie"), ("b", "a", "win"), ("b", "c", "win"), ("c", "b", "tie"))
    board = judge.rank_models(said, resamples=20)
    assert board.names == ("a", "b", "c")
    assert (board.wins, board.ties, board.losses) == ((1, 2, 0), (1, 2, 1), (1, 1, 1))
    places = {board.names[p.model]: p for p in board.board.places}
    assert places["b"].win_rate == pytest.approx(3 / 5)
    assert places["b"].comparisons == 5


def test_no_verdict_counts_for_nobody():
    said = verdicts(("a", "b", "win"), ("b", "a", "win"), ("a", "b", "none"))
    board = judge.rank_models(said, resamples=5)
    assert (board.verdicts, board.no_verdict) == (2, 1)
    assert "1 verdicts name neither a winner nor a tie" in " ".join(
        judge.models_as_plain(board, "half", "x")["findings"]
    )


def test_groups_that_never_met_are_named():
    board = judge.rank_models(verdicts(("a", "b", "win"), ("b", "a", "win"), ("c", "d", "tie")))
    body = judge.models_as_plain(board, "half", "x")
    assert board.board is None
    assert "(a, b; c, d)" in body["findings"][0]
    assert {line["value"] for line in body["lines"]} == {None}


def test_a_model_that_never_loses_gets_no_number():
    board = judge.rank_models(verdicts(("a", "b", "win"), ("a", "c", "win"), ("b", "c", "win"), ("c", "b", "win")))
    body = judge.models_as_plain(board, "half", "x")
    assert "a never lost" in body["findings"][0]
    assert body["lines"][0]["name"] == "a"
    assert body["lines"][0]["win_rate"] == 1.0
    assert body["lines"][0]["value"] is None


def test_hundreds_of_models_are_not_all_listed():
    pairs = [(f"m{2 * n:03}", f"m{2 * n + 1:03}") for n in range(20)]
    apart = judge.rank_models(verdicts(*((a, b, "tie") for a, b in pairs)))
    (finding,) = judge.models_as_plain(apart, "half", "x")["findings"]
    assert "20 groups of models were never compared" in finding
    assert "m010, m011; and 14 more)" in finding
    winless = judge.rank_models(verdicts(*(("winner", b, "win") for _, b in pairs)))
    (finding,) = judge.models_as_plain(winless, "half", "x")["findings"]
    assert "winner never lost, and m001, m003, m005, m007, m009, m011, and 14 more never won" in finding


def test_a_judge_of_only_the_order_is_at_a_half():
    said, gold = [], {}
    for k in range(40):
        item, gold[f"p{k}"] = f"p{k}", "first" if k % 2 else "second"
        said += [
            Verdict(item, item, "x", "y", "first", "order", 0),
            Verdict(item, item, "x", "y", "second", "order", 1),
        ]
        said += [Verdict(item, item, "x", "y", gold[item], "right", shown) for shown in (0, 1)]
    board = judge.rank_judges(Verdicts(said, gold), resamples=50)
    assert [line.name for line in board.lines] == ["right", "order"]
    right, order = board.lines
    assert (right.accuracy.value, right.consistency.consistent, right.consistency.orders.slot_bias) == (1.0, 1.0, 0.0)
    assert (order.accuracy.value, order.consistency.consistent, order.consistency.orders.slot_bias) == (0.5, 0.0, 1.0)
    assert board.separable == board.pairs == 1


def test_two_items_on_which_a_judge_is_right_do_not_make_it_perfect():
    gold = {"p": "first", "q": "second"}
    right = [Verdict(item, item, "x", "y", gold[item], "right", 0) for item in gold]
    wrong = [Verdict(item, item, "x", "y", MIRRORED[gold[item]], "wrong", 0) for item in gold]
    board = judge.rank_judges(Verdicts(right + wrong, gold), resamples=50)
    best, worst = board.lines
    assert (best.accuracy.value, best.accuracy.low) == (1.0, pytest.approx(0.342, abs=1e-3))
    assert (worst.accuracy.value, worst.accuracy.high) == (0.0, pytest.approx(0.658, abs=1e-3))
    assert board.separable == 0
    said = judge.judges_as_plain(board, "x")["findings"][0]
    assert "right is first, but not told apart from wrong" in said


def test_judges_that_are_level_share_a_rank():
    gold = {"p": "first", "q": "second", "r": "first"}
    said = [Verdict(item, item, "x", "y", gold[item], name, 0) for name in ("b", "a") for item in gold]
    said += [Verdict(item, item, "x", "y", "tie", "c", 0) for item in gold]
    lines = judge.rank_judges(Verdicts(said, gold), resamples=50).lines
    assert [(x.name, x.rank, x.best_rank, x.worst_rank) for x in lines] == [
        ("b", 1, 1, 2),
        ("a", 1, 1, 2),
        ("c", 3, 3, 3),
    ]


def test_judges_need_the_truth():
    with pytest.raises(AfzalError, match="needs the truth"):
        judge.rank_judges(verdicts(("a", "b", "win")))


def test_all_files_say_the_same(tmp_path):
    said = verdicts(("a", "b", "win"), ("b", "a", "win"), ("a", "b", "win"), ("b", "<b>c", "tie"))
    body = judge.models_as_plain(judge.rank_models(said, resamples=20), "half", "votes & more")
    page = report.write_board(tmp_path / "out", body)
    plain = json.loads((tmp_path / "out/leaderboard.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out/leaderboard.csv").open()))
    assert [row["name"] for row in rows] == [line["name"] for line in plain["lines"]]
    assert [float(row["value"]) for row in rows] == [line["value"] for line in plain["lines"]]
    text = page.read_text()
    assert "<b>c" not in text
    assert "&lt;b&gt;c" in text
    assert (tmp_path / "out/leaderboard.svg").read_text().startswith("<svg")


def pandalm_like(path, rows: int = 12) -> str:
    names = ["m1_m2", "m2_m3", "m1_m3"]
    said = [
        {
            "instruction": f"i{k % 5}",
            "input": "",
            "cmp_key": names[k % 3],
            "annotator1": 1 + (k % 4 == 0),
            "annotator2": 1 + (k % 2 == 0),
        }
        for k in range(rows)
    ]
    path.write_text(json.dumps(said))
    return str(path)


def test_the_command(tmp_path, capsys):
    source = pandalm_like(tmp_path / "votes.json")
    assert main(["leaderboard", source, "--out", str(tmp_path / "board")]) == 0
    said = capsys.readouterr().out
    assert "Leaderboard of models: votes.json" in said
    assert "verdicts 24" in said
    assert f"page: {tmp_path / 'board' / 'leaderboard.html'}" in said
    assert main(["leaderboard", source, "--json", "--judge", "annotator2"]) == 0
    assert dict(json.loads(capsys.readouterr().out)["facts"])["verdicts"] == "12"


def test_what_has_no_numbers_ends_with_1(tmp_path, capsys):
    path = tmp_path / "votes.jsonl"
    rows = [{"model_a": a, "model_b": b, "winner": "model_a", "question_id": 1} for a, b in (("x", "y"), ("x", "z"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["leaderboard", str(path)]) == 1
    assert "x never lost, and y and z never won" in capsys.readouterr().out


def test_an_unknown_judge_is_reported(tmp_path, capsys):
    assert main(["leaderboard", pandalm_like(tmp_path / "v.json"), "--judge", "annotator3"]) == 2
    assert "annotator1, annotator2" in capsys.readouterr().err


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_models_with_ties_rank_by_wins(tmp_path, ties):
    said = verdicts(("a", "b", "win"), ("b", "a", "win"), ("a", "b", "tie"), ("a", "b", "win"))
    board = judge.rank_models(said, ties, resamples=10)
    assert board.board.theta[0] > board.board.theta[1]


def arena(path: Path, games: list[tuple[str, str, str]]) -> str:
    rows = [{"question_id": k, "model_a": a, "model_b": b, "winner": w} for k, (a, b, w) in enumerate(games)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_ties_that_do_not_occur_cannot_be_fitted(tmp_path, capsys, ties):
    source = arena(tmp_path / "votes.jsonl", [("x", "y", "model_a"), ("x", "y", "model_b")])
    assert main(["leaderboard", source, "--ties", ties]) == 2
    assert "there are no ties to fit" in capsys.readouterr().err
    # nor must they occur in the leaderboard beside
    other = arena(tmp_path / "tied.jsonl", [("x", "y", w) for w in ("model_a", "model_b", "tie")])
    assert main(["leaderboard", other, "--ties", ties, "--beside", source]) == 0


def test_a_model_compared_with_itself_is_left_out_and_counted(tmp_path, capsys):
    games = [("x", "y", "model_a"), ("x", "y", "model_b"), ("x", "x", "model_a")]
    assert main(["leaderboard", arena(tmp_path / "votes.jsonl", games), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert dict(body["facts"])["verdicts"] == "2"
    assert "Left out: 1 verdict on answers that do not name two models." in body["findings"]


def test_judges_have_no_ties_to_fit(tmp_path, capsys):
    source = arena(tmp_path / "votes.jsonl", [("x", "y", "tie")])
    assert main(["leaderboard", source, "--of", "judges", "--ties", "davidson"]) == 2
    assert "--ties davidson needs models" in capsys.readouterr().err


def test_models_that_always_tie_share_a_rank_and_have_no_width():
    board = judge.rank_models(verdicts(*[(a, b, "tie") for a, b in combinations("abc", 2)] * 5), resamples=20)
    body = judge.models_as_plain(board, "half", "x")
    assert [(x["rank"], x["value"], x["low"], x["high"]) for x in body["lines"]] == [(1, 0.0, None, None)] * 3
    assert body["findings"][0] == "a, b and c share the first place. 0 of 3 differences between two models exclude 0."


def test_a_few_verdicts_against_the_others_do_not_show_a_reversed_judge():
    many = [Verdict(f"p{k}", f"p{k}", "a", "b", "first", "most") for k in range(40)]
    few = [Verdict(f"p{k}", f"p{k}", "a", "b", "second", "few") for k in range(3)]
    lots = [Verdict(f"p{k}", f"p{k}", "a", "b", "second", "turned") for k in range(15)]
    assert weighed_as_plain(Verdicts([*many, *few]))["findings"] == []
    (finding,) = weighed_as_plain(Verdicts([*many, *few, *lots]))["findings"]
    assert finding == "turned names the weaker model more often than the stronger one."


def test_many_verdicts_on_a_few_prompts_do_not_show_a_reversed_judge():
    """Twenty verdicts on four prompts: over prompts p = 1/16, which is above .05 / 2."""
    many = [Verdict(f"p{k}", f"p{k}", "a", "b", "first", "most") for k in range(40)]
    on_few = [Verdict(f"p{k % 4}", f"{k}", "a", "b", "second", "few") for k in range(20)]
    assert weighed_as_plain(Verdicts([*many, *on_few]))["findings"] == []


def test_24_judges_of_llmbar(shared, capsys):
    source = str(shared / "data/annot/llmbar_gold_vs_judges.jsonl")
    assert main(["leaderboard", source, "--of", "judges"]) == 0
    said = capsys.readouterr().out
    assert "218 of 276 pairs of judges can be told apart" in said
    assert "18 of 24 judges prefer a slot" in said
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["llmbar"]
    order = [line.split()[0] for line in said.splitlines()[2:26]]
    assert order == [line["judge"] for line in reference["leaderboard_of_judges"]["order"]]


def test_five_models_of_pandalm(shared, capsys):
    assert main(["leaderboard", str(shared / "data/annot/pandalm_human3.json"), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["pandalm"]
    for line in body["lines"]:
        known = reference["leaderboard"][line["name"]]
        assert line["value"] == pytest.approx(known["bt_half"], abs=1e-4)
        assert [line["low"], line["high"]] == pytest.approx(known["bt_half_interval_prompts"], abs=0.01)
        assert (line["rank"], line["win_rate"]) == (known["rank"], pytest.approx(known["win_rate"], abs=1e-4))
    assert "6 of 10 differences" in body["findings"][0]
    assert len(body["differences"]) == 10


@pytest.mark.parametrize("turned", ["as given", "annotator3 turned round"])
def test_annotators_are_weighed_on_pandalm(shared, tmp_path, capsys, turned):
    """With one annotator reversed, reliability r becomes 1 - r; strengths and likelihood stay."""
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    if turned != "as given":
        for row in rows:
            row["annotator3"] = {0: 0, 1: 2, 2: 1}[row["annotator3"]]
    (tmp_path / "votes.json").write_text(json.dumps(rows))
    assert main(["leaderboard", str(tmp_path / "votes.json"), "--resamples", "2", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["pandalm"]
    known = reference["crowd_bt_models_as_players"][f"{turned}, ridge 1.0"]
    assert body["weighed"]["strengths"] == pytest.approx(known["theta"], abs=1e-3)
    assert list(body["weighed"]["reliability"].values()) == pytest.approx(known["eta"], abs=1e-3)
    assert body["weighed"]["log_likelihood"] == pytest.approx(known["loglik_minus_penalty"], abs=1e-3)
    assert any("annotator3 names the weaker" in line for line in body["findings"]) == (turned != "as given")
    assert body["tables"][-1]["title"] == "Reliability"


def test_two_games_by_hand():
    """Truth 1, 1, 2, 2: right twice; the first slot twice; no verdict and right; a tie twice."""
    table = np.array([[1, 1], [1, 2], [-1, 2], [0, 0]])
    result = order_consistency(table, np.array([1, 1, 2, 2]))
    assert (result.first_order, result.second_order, result.both_right) == (0.5, 0.5, 0.25)
    assert (result.consistent, result.consistent_of_two) == (0.5, 2 / 3)
    assert (result.right_where_consistent, result.right_by_halves) == (0.5, 0.375)
    assert result.none_as_label[0] == 0.5
    assert (result.orders.always_first, result.orders.always_second) == (1, 0)
    assert order_consistency(np.array([[1, -2]]), np.array([1])) is None


def test_a_slot_bias_on_one_prompt_is_one_observation():
    table, truth = np.array([[1, 2]] * 20 + [[1, -2]]), np.ones(21)
    assert order_consistency(table, truth, ["p"] * 20 + ["q"]).orders.slot_p == 1.0
    assert order_consistency(table, truth).orders.slot_p < 1e-5


def test_equal_lengths_of_a_judge_that_reads_only_lengths():
    """The longer answer wins except in one pair each way: at equal lengths both models are at a half."""
    said = []
    for k in range(40):
        longer = 10 if k % 2 else -10
        wins = longer > 0 if k < 36 else longer < 0
        said.append(Verdict(f"q{k}", f"q{k}", "a", "b", "first" if wins else "second", "j", lengths=(50 + longer, 50)))
    lines = {x.model: x for x in length_controlled_rates(Verdicts(said), resamples=20)}
    assert lines["a"].pairs == 40
    assert lines["a"].control.controlled.value == pytest.approx(0.5, abs=1e-6)
    assert lines["a"].control.slope.value == pytest.approx(lines["b"].control.slope.value, abs=1e-6)
    assert lines["a"].control.slope.value > 1
    only = length_controlled_rates(Verdicts(said[:36]), resamples=20)
    assert [(x.model, x.pairs, x.control) for x in only] == [("a", 36, None), ("b", 36, None)]
    assert [row[3] for row in length_controlled_as_plain(only)["tables"][0]["rows"]] == ["not known"] * 2
    with pytest.raises(AfzalError, match="the lengths of the answers are not known"):
        length_controlled_rates(Verdicts([Verdict("q", "q", "a", "b", "first")]))


def test_a_leaderboard_compared_with_its_mirror():
    said = [Verdict(f"q{k}", f"q{k}", a, b, o) for k, (a, b, o) in enumerate(_round(("a", "b", "c")))]
    turned = [replace(v, outcome=MIRRORED[v.outcome]) for v in said]
    boards = [rank_models(Verdicts(v), resamples=2) for v in (said, turned)]
    assert rank_correlation(boards[0], boards[0]) == {"models": 3, "spearman": 1.0, "kendall": 1.0}
    assert rank_correlation(*boards)["kendall"] == -1.0


def _round(names):
    """The earlier name beats each later one four times out of five."""
    for a, b in combinations(names, 2):
        yield from [(a, b, "first")] * 4
        yield a, b, "second"


def test_scores_of_prometheus_become_verdicts(tmp_path):
    rows = [
        {"idx": 1, "response_source": "x", "gpt4_score": [5, 3, None]},
        {"idx": 2, "response_source": "x", "gpt4_score": [1, 1, 1]},
        {"idx": 1, "response_source": "y", "gpt4_score": [4, 3, 2]},
        {"idx": 2, "response_source": "y", "gpt4_score": [2, 1, 1]},
    ]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    said = read([str(path)])
    assert (said.format, said.rows) == ("Prometheus scores", 4)
    assert [(v.prompt, v.first, v.second, v.outcome) for v in said.verdicts] == [
        ("1", "x", "y", "first"),
        ("1", "x", "y", "tie"),
        ("1", "x", "y", "none"),
        ("2", "x", "y", "second"),
        ("2", "x", "y", "tie"),
        ("2", "x", "y", "tie"),
    ]
