"""Verdict files of other tools: the answer that each names, in both orders; an unreadable entry is no verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afzal import judge
from afzal.errors import AfzalError


def read(folder: Path, rows: list[dict[str, Any]], name: str = "verdicts.jsonl") -> judge.Verdicts:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return judge.read([str(path)])


def outcomes(said: judge.Verdicts) -> list[str]:
    return [v.outcome for v in said.verdicts]


def alpaca(preference: float | None) -> dict[str, Any]:
    """Fields of AlpacaEval's annotations.json."""
    about = {"instruction": "Say hi.", "output_1": "no", "output_2": "hi", "annotator": "clear_judge"}
    return {**about, "generator_1": "base", "generator_2": "ours", "preference": preference}


def test_alpaca_eval(tmp_path):
    said = read(tmp_path, [alpaca(p) for p in (1, 2, 1.5, 0, None, 1.25)])
    assert said.format == "AlpacaEval annotations"
    assert outcomes(said) == ["first", "second", "tie", "tie", "none", "first"]
    assert said.verdicts[5].probability == 0.75
    assert (said.verdicts[0].first, said.verdicts[0].second, said.verdicts[0].judge) == ("base", "ours", "clear_judge")
    assert len({v.item for v in said.verdicts}) == 1


def test_the_win_rate_of_alpaca_eval_is_its_own(tmp_path):
    """Mean of preference - 1 for the second generator; draws count half, rows without a verdict are left out."""
    board = judge.rank_models(read(tmp_path, [alpaca(p) for p in (2, 2, 2, 1, 1.5, None)]), resamples=10)
    ours = board.names.index("ours")
    assert (board.wins[ours], board.ties[ours], board.losses[ours], board.no_verdict) == (3, 1, 1, 1)


def test_fastchat_judgements(tmp_path):
    """Both games name the model, whichever side it was shown on."""
    row = {"question_id": 81, "model_1": "a", "model_2": "b", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    said = read(tmp_path, [{**row, "g1_winner": "model_1", "g2_winner": "model_2"}])
    assert outcomes(said) == ["first", "second"]
    assert [v.shown_first for v in said.verdicts] == [0, 1]
    assert {v.judge for v in said.verdicts} == {"gpt-4/pair-v2"}
    said = read(tmp_path, [{**row, "g1_winner": "tie", "g2_winner": "error"}])
    assert outcomes(said) == ["tie", "none"]


def test_votes_of_an_arena(tmp_path):
    words = ["model_a", "model_b", "tie", "tie (bothbad)"]
    said = read(
        tmp_path, [{"question_id": 1, "model_a": "a", "model_b": "b", "winner": w} for w in words], "people.jsonl"
    )
    assert outcomes(said) == ["first", "second", "tie", "both_bad"]
    assert {v.judge for v in said.verdicts} == {"people"}


def test_votes_of_newer_arenas_say_both_bad_and_hold_the_answers(tmp_path):
    talks = {
        f"conversation_{side}": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
        for side, answer in (("a", "four"), ("b", "eleven char"))
    }
    row = {"question_id": 1, "model_a": "a", "model_b": "b", **talks}
    said = read(tmp_path, [row | {"winner": word} for word in ("both_bad", "bothbad", "tie")])
    assert outcomes(said) == ["both_bad", "both_bad", "tie"]
    assert {v.lengths for v in said.verdicts} == {(4, 11)}
    told = read(tmp_path, [alpaca(1), alpaca(None), {k: v for k, v in alpaca(2).items() if k != "output_1"}])
    assert [v.lengths for v in told.verdicts] == [(2, 2), (2, 2), None]


def test_arena_hard(tmp_path):
    """The first game has the baseline as A, the second the model."""
    row = {"uid": "q1", "model": "ours", "judge": "gpt-4.1", "category": "hard"}
    said = read(tmp_path, [{**row, "games": [{"score": "A>>B"}, {"score": "A>B"}]}])
    assert (said.verdicts[0].first, said.verdicts[0].second) == ("ours", "baseline")
    assert outcomes(said) == ["second", "first"]  # the baseline won as A, then the model won
    said = read(tmp_path, [{**row, "games": [{"score": None}, {"score": "B=A"}]}])
    assert outcomes(said) == ["none", "tie"]


def test_judgebench(tmp_path):
    row = {"pair_id": "p1", "source": "math", "question": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B"}
    said = read(tmp_path, [{**row, "judgments": [{"decision": "A>B"}, {"decision": "B>A"}]}], "some_judge.jsonl")
    assert outcomes(said) == ["first", "first"]  # the second game was played in the other order
    assert said.gold == {"p1": "first"}
    said = read(tmp_path, [{**row, "judgments": [{"decision": "A>B"}, {"decision": "A>B"}]}])
    assert outcomes(said) == ["first", "second"]  # always the first slot


def test_llmbar(tmp_path):
    row = {"id": "Natural/0", "input": "?", "output_1": "x", "output_2": "y", "label": 2}
    said = read(tmp_path, [{**row, "judges": {"m/Vanilla": ["2", "2"], "m/CoT": ["1", None]}}])
    assert outcomes(said) == ["second", "second", "first", "none"]
    assert said.gold == {"Natural/0": "second"}


def test_pandalm(tmp_path):
    row = {"idx": 1, "instruction": "Do.", "input": "", "cmp_key": "llama_opt", "response1": "", "response2": "b"}
    said = read(tmp_path, [{**row, "annotator1": 1, "annotator2": 2, "annotator3": 0}])
    assert outcomes(said) == ["first", "second", "tie"]  # an empty answer is judged like any other
    assert [v.judge for v in said.verdicts] == ["annotator1", "annotator2", "annotator3"]


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_a_missing_vote_of_pandalm_is_no_vote(tmp_path, nothing):
    """A column with missing values holds 1.0 for 1, or "1.0" in a CSV file."""
    row = {"idx": 1, "instruction": "Do.", "input": "", "cmp_key": "llama_opt", "response1": "a", "response2": "b"}
    made = [{**row, "annotator1": 1.0, "annotator2": nothing, "annotator3": "2.0"}]
    said = read(tmp_path, made)
    assert [(v.judge, v.outcome) for v in said.verdicts] == [("annotator1", "first"), ("annotator3", "second")]
    from afzal import data

    (one,) = data.read(str(tmp_path / "verdicts.jsonl")).items
    assert [(v.annotator, v.outcome) for v in one.votes] == [("annotator1", "first"), ("annotator3", "second")]


def test_rows_of_afzal_whose_responses_name_their_model(tmp_path):
    row = {
        "prompt": "Hi?",
        "responses": [{"text": "a", "source": "m1"}, {"text": "b", "source": "m2"}],
        "votes": [
            {"first": 0, "second": 1, "outcome": "second", "annotator": "dil", "shown_first": 1},
            {"first": 0, "second": 1, "outcome": "both_bad", "annotator": "ali"},
        ],
    }
    from afzal import data
    from afzal.records import Comparison, Item, Response

    votes = tuple(Comparison(**vote) for vote in row["votes"])
    answers = tuple(Response(r["text"], r["source"]) for r in row["responses"])
    path = tmp_path / "rows.jsonl"
    data.write([Item("x", row["prompt"], answers, votes)], path, "afzal")
    said = judge.read([str(path)])
    assert [(v.first, v.second, v.outcome, v.judge, v.shown_first) for v in said.verdicts] == [
        ("m1", "m2", "second", "dil", 1),
        ("m1", "m2", "both_bad", "ali", None),
    ]


@pytest.mark.parametrize("preference", ["first", 3, -1, 0.5])
def test_an_unreadable_preference_names_its_row(tmp_path, preference):
    with pytest.raises(AfzalError, match=r"verdicts\.jsonl:2"):
        read(tmp_path, [alpaca(1), alpaca(preference)])


@pytest.mark.parametrize("winner", ["A", "Model_1", "", None, 1, "model_3"])
def test_an_unknown_winner_is_refused(tmp_path, winner):
    row = {"question_id": 1, "model_1": "a", "model_2": "b", "judge": "j", "g1_winner": winner, "g2_winner": "tie"}
    with pytest.raises(AfzalError, match="has the unknown verdict"):
        read(tmp_path, [row])


def test_a_missing_field_is_named(tmp_path):
    broken = {k: v for k, v in alpaca(1).items() if k != "generator_2"}
    with pytest.raises(AfzalError, match="lacks the field 'generator_2'"):
        read(tmp_path, [alpaca(1), broken])


def test_files_of_two_formats_are_not_mixed(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(json.dumps(alpaca(1)) + "\n")
    two.write_text(json.dumps({"question_id": 1, "model_a": "a", "model_b": "b", "winner": "tie"}) + "\n")
    with pytest.raises(AfzalError, match="different formats"):
        judge.read([str(one), str(two)])


def test_pairs_without_models_are_no_verdicts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(AfzalError, match="no verdicts on models"):
        judge.read([str(path)])
