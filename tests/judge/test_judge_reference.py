"""Figures of real votes and verdicts, out of the commands, against reference values that others computed.

Tolerances: 1e-4 for points, which the reference rounds to four digits; 0.01 for the ends of intervals of means and
0.05 for those of Bradley-Terry strengths, which are drawn. Intervals that ignore prompts are wrong and not compared.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from afzal.cli import main

POINT, MEAN, STRENGTH = 1e-4, 0.01, 0.05


@pytest.fixture(scope="module")
def annot(request) -> Path:
    return _shared(request) / "data/annot"


@pytest.fixture(scope="module")
def reference(request) -> dict[str, Any]:
    return json.loads((_shared(request) / "reference/people-and-judges.json").read_text())


def _shared(request) -> Path:
    found = Path(__file__).parents[2] / "../shared"
    if not found.is_dir():
        pytest.skip("the shared folder is not there")
    return found.resolve()


def said(capsys, *arguments: object) -> Any:
    assert main([str(a) for a in arguments] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def points(found: dict, expected: dict, **names: str) -> None:
    """Figures by our names are those of the reference, by its names."""
    got = {theirs: found[ours] for ours, theirs in names.items()}
    assert got == pytest.approx({theirs: expected[theirs] for theirs in names.values()}, abs=POINT)


def ends(found: dict, expected: list[float], tolerance: float) -> None:
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=tolerance)


@pytest.fixture(scope="module")
def pandalm(annot, tmp_path_factory) -> dict[str, Any]:
    """PandaLM's judges and three yardsticks by ``afzal judge``: the summaries by name, and the folder."""
    out = tmp_path_factory.mktemp("pandalm")
    rows = json.loads((annot / "pandalm_human3.json").read_text())
    one = out / "one.jsonl"
    one.write_text("".join(json.dumps({"idx": row["idx"], "always_1": 1}) + "\n" for row in rows))
    specs = {
        "gpt35": f"verdicts:{annot}/pandalm_judges.jsonl:gpt35",
        "pandalm7b": f"verdicts:{annot}/pandalm_judges.jsonl:pandalm7b",
        "always_1": f"verdicts:{one}",
        "longest": "rule:longest",
        "majority_of_people": f"people:{annot}/pandalm_human3.json",
    }
    flags = [part for spec in specs.values() for part in ("--judge", spec)]
    arguments = ["judge", f"{annot}/pandalm_human3.json", *flags, "--out", str(out), "--resamples", "2000"]
    assert main(arguments) == 0
    summaries = json.loads((out / "summary.json").read_text())
    return {"by": dict(zip(specs, summaries, strict=True)), "out": out}


@pytest.mark.parametrize("name", ["gpt35", "pandalm7b", "always_1", "longest", "majority_of_people"])
def test_judges_beside_people_on_pandalm(pandalm, reference, name):
    found, expected = pandalm["by"][name], reference["pandalm"]["judges"][name]
    assert found["pairs"] == reference["pandalm"]["n"]["rows"]
    assert found["prompts"] == reference["pandalm"]["n"]["prompts"]
    words = {"0": "tie", "1": "first", "2": "second"}
    assert {key: found["outcomes"][word] for key, word in words.items()} == expected["labels"]
    assert found["no_verdict"] == expected["no_verdict"]
    people, single = found["people"], expected["agreement_with_single_people"]
    assert people["labels"] == reference["pandalm"]["n"]["votes"]
    assert people["agreement"]["value"] == pytest.approx(single["with_ties"], abs=POINT)
    ends(people["agreement"], single["with_ties_interval"], MEAN)
    assert people["verdicts_only"]["value"] == pytest.approx(single["with_ties_verdicts_only"], abs=POINT)
    assert people["without_ties"]["value"] == pytest.approx(single["without_ties"], abs=POINT)
    assert people["without_ties"]["pairs"] == single["without_ties_pairs"]
    ends(people["without_ties"], single["without_ties_interval"], MEAN)
    majority, theirs = people["with_the_majority"], expected["agreement_with_majority"]
    assert majority["agreement"]["value"] == pytest.approx(theirs["with_ties"], abs=POINT)
    ends(majority["agreement"], theirs["with_ties_interval"], MEAN)
    assert majority["verdicts_only"]["value"] == pytest.approx(theirs["verdicts_only"], abs=POINT)
    assert majority["without_ties"]["value"] == pytest.approx(theirs["without_ties"], abs=POINT)
    assert majority["without_ties"]["pairs"] == theirs["without_ties_rows"]
    assert majority["cohen"] == pytest.approx(theirs["cohen_verdicts_only"], abs=POINT)
    points(majority, expected["against_majority_macro"], precision="precision", recall="recall", f1="f1")
    assert people["with_the_mode_of_others"]["value"] == pytest.approx(
        expected["agreement_with_mode_of_two"], abs=POINT
    )
    assert people["minus_ceiling"]["value"] == pytest.approx(expected["minus_human_ceiling"], abs=POINT)
    ends(people["minus_ceiling"], expected["minus_human_ceiling_interval"], MEAN)
    for ours, key in (("longer_wins", "prefers_longer"), ("first_wins", "prefers_response1")):
        assert [found[ours]["value"], found[ours]["pairs"]] == pytest.approx(expected[key], abs=POINT)
    for epsilon, test in expected.get("alt_test", {}).items():
        ours = people["alt_test"][epsilon]
        points(ours, test, winning_rate="winning_rate", advantage="advantage")
        assert ours["advantages"] == pytest.approx(test["advantage_per_annotator"], abs=POINT)
        assert ours["p_values"] == pytest.approx(test["p_values"], abs=1e-3)  # three digits are given
        assert ours["passes"] == test["passes"]


def test_the_ceiling_of_people_on_pandalm(pandalm, reference):
    people, expected = pandalm["by"]["longest"]["people"], reference["pandalm"]["human_ceiling"]
    assert people["ceiling"]["value"] == pytest.approx(expected["one_vs_mode_of_the_other_two"], abs=POINT)
    ends(people["ceiling"], expected["one_vs_mode_of_the_other_two_interval"], MEAN)


def test_people_among_themselves_on_pandalm(annot, reference, capsys):
    found = said(capsys, "aggregate", annot / "pandalm_human3.json", "--resamples", 1000, "--by", "dawid_skene")
    expected = reference["pandalm"]["people"]
    figures = {f["name"]: f for f in found["figures"]}
    points(
        {name: f["value"] for name, f in figures.items()},
        {**expected, "without": expected["raw_without_ties_pooled"][0]},
        **{
            "raw agreement": "raw_pairwise_mean",
            "without ties": "without",
            "Krippendorff's alpha": "alpha_nominal",
            "alpha on the scale second, tie, first": "alpha_interval_scale",
            "Fleiss' kappa": "fleiss",
            "Gwet's AC1": "gwet_ac1",
        },
    )
    ends(figures["raw agreement"], expected["raw_pairwise_mean_interval"], MEAN)
    ends(figures["Krippendorff's alpha"], expected["alpha_nominal_interval"], MEAN)
    ends(figures["alpha on the scale second, tie, first"], expected["alpha_interval_scale_interval"], MEAN)
    ends(figures["Fleiss' kappa"], expected["fleiss_interval"], MEAN)
    pairs = {"-".join(name[-1] for name in p["annotators"]): p for p in found["pairs_of_annotators"]}
    assert {key: p["raw"] for key, p in pairs.items()} == pytest.approx(expected["raw_pairwise"], abs=POINT)
    assert {key: p["cohen"] for key, p in pairs.items()} == pytest.approx(expected["cohen"], abs=POINT)
    for key, (share, n) in expected["raw_without_ties"].items():
        assert [pairs[key]["without_ties"], pairs[key]["decided"]] == pytest.approx([share, n], abs=POINT)
    ceiling = reference["pandalm"]["human_ceiling"]["per_annotator"]
    assert [line["value"] for line in found["lines"]] == pytest.approx(ceiling, abs=POINT)
    assert (found["by"], found["moved"]) == (
        "dawid_skene",
        reference["pandalm"]["dawid_skene"]["differs_from_majority"],
    )


def test_models_on_pandalm(annot, reference, capsys):
    source = annot / "pandalm_human3.json"
    board, expected = said(capsys, "leaderboard", source), reference["pandalm"]["leaderboard"]
    assert [line["name"] for line in board["lines"]] == list(expected)
    for line in board["lines"]:
        theirs = expected[line["name"]]
        points(line, theirs, value="bt_half", win_rate="win_rate")
        assert line["elo"] == theirs["elo"]
        assert line["won"] + line["tied"] + line["lost"] == theirs["votes"]
        assert line["rank"] == theirs["rank"]
        assert [line["best_rank"], line["worst_rank"]] == theirs["rank_interval"]
        ends(line, theirs["bt_half_interval_prompts"], STRENGTH)
    for gap, (first, second, low, high, clear) in zip(
        board["differences"], reference["pandalm"]["leaderboard_differences"], strict=True
    ):
        assert (gap["first"], gap["second"]) == (first, second)
        ends(gap, [low, high], STRENGTH)
        assert (gap["low"] > 0) == clear
    fits = reference["pandalm"]["leaderboard_tie_parameters"]
    for ties in ("davidson", "rao_kupper"):
        fitted = said(capsys, "leaderboard", source, "--ties", ties, "--resamples", 2)
        values = {line["name"]: line["value"] for line in fitted["lines"]}
        assert values == pytest.approx({name: line[ties] for name, line in expected.items()}, abs=POINT)
        assert fitted["fit"]["tie"] == pytest.approx(fits[f"{ties}_nu"], abs=POINT)
        assert fitted["fit"]["log_likelihood"] == pytest.approx(fits[f"{ties}_loglik"], abs=1e-3)


def test_models_by_judges_on_pandalm(pandalm, annot, reference, capsys):
    rows, expected = pandalm["out"] / "rows.jsonl", reference["pandalm"]
    by = {"leaderboard_from_majority": "people (pandalm_human3)"}
    by |= {"leaderboard_by_gpt35": "gpt35", "leaderboard_by_pandalm7b": "pandalm7b"}
    for key, judge in by.items():
        beside = ("--beside", annot / "pandalm_human3.json")
        found = said(capsys, "leaderboard", rows, "--judge", judge, "--resamples", 2, *beside)
        scores = expected[key].get("scores", expected[key])
        assert {line["name"]: line["value"] for line in found["lines"]} == pytest.approx(scores, abs=POINT)
        if "scores" in expected[key]:
            theirs = {name: expected[key][f"{name}_with_people"] for name in ("spearman", "kendall")}
            assert {name: found["beside"][name] for name in theirs} == pytest.approx(theirs, abs=POINT)
        else:
            met = {f"{m['first']}_{m['second']}": [m["won"], m["lost"], m["tied"]] for m in found["met"]}
            assert met == expected["majority_first_second_tie_by_pair"]


def test_length_control_on_pandalm(annot, reference, capsys):
    found = said(capsys, "leaderboard", annot / "pandalm_human3.json", "--length-control", "--resamples", 500)
    expected = reference["pandalm"]["length_control"]
    line = next(line for line in found["at_equal_lengths"] if line["model"] == expected["model"])
    assert line["pairs"] == expected["comparisons"]
    assert line["raw"]["value"] == pytest.approx(expected["win_rate"], abs=POINT)
    ends(line["raw"], expected["win_rate_interval"], MEAN)
    assert line["slope"]["value"] == pytest.approx(expected["length_coefficient"], abs=POINT)
    ends(line["slope"], expected["length_coefficient_interval"], STRENGTH)
    assert line["controlled"]["value"] == pytest.approx(expected["length_controlled_win_rate"], abs=POINT)
    ends(line["controlled"], expected["length_controlled_interval"], MEAN)
    assert line["deviation"] == pytest.approx(expected["sd_of_length_difference"], abs=POINT)


_BOTH = {
    "first_order": "acc_order1",
    "second_order": "acc_order2",
    "both_right": "both",
    "consistent": "consistent",
    "kappa": "kappa_orders",
}


def test_judges_on_llmbar(annot, reference, capsys):
    found = said(capsys, "leaderboard", annot / "llmbar_gold_vs_judges.jsonl", "--of", "judges")
    expected = reference["llmbar"]
    lines = {line["name"]: line for line in found["judges"]}
    assert len(lines) == len(expected["judges"]) == 24
    for name, theirs in expected["judges"].items():
        line = lines[name]
        points(line, theirs, value="acc", **_BOTH)
        points(line, theirs, consistent_of_two="consistent_where_two_verdicts")
        points(line, theirs, right_where_consistent="acc_where_consistent", right_by_halves="acc_inconsistent_is_half")
        points(line, theirs, first_slot="p_first_slot", slot_bias="slot_bias", no_verdict="no_verdict")
        points(line, theirs, always_first="first_slot_both_games", always_second="second_slot_both_games")
        published = {"consistent": "consistent_published", "kappa": "kappa_orders_published"}
        points(line["none_as_label"], theirs, **published)
        ends(line, theirs["acc_interval"], MEAN)
        assert math.isclose(line["slot_p"], theirs["slot_bias_p"], rel_tol=5e-3)  # three digits are given
    for line in found["categories"]:
        theirs = expected["judges_by_subset"][line["category"].rpartition("/")[2]][line["judge"]]
        points(line, theirs, accuracy="acc", first_slot="p_first_slot", **_BOTH)
    assert len(found["categories"]) == 48
    board = expected["leaderboard_of_judges"]
    assert (found["separable"], found["pairs"]) == (board["separable_paired_95"], board["pairs"]) == (218, 276)
    order = [line["name"] for line in found["lines"]]
    accuracies = {place["judge"]: place["acc"] for place in board["order"]}
    assert [accuracies[name] for name in order] == [place["acc"] for place in board["order"]]
    for place in board["order"]:
        line = lines[place["judge"]]
        # ranks are whole numbers: at the edge of a quantile two draws differ by one
        assert [line["best_rank"], line["worst_rank"]] == pytest.approx(place["rank_interval"], abs=1)


def test_the_longest_answer_on_llmbar(annot, reference, capsys, tmp_path):
    source = annot / "llmbar_gold_vs_judges.jsonl"
    found = said(capsys, "judge", source, "--judge", "rule:longest", "--out", tmp_path, "--resamples", 2)[0]
    ties = found["outcomes"]["tie"] / found["pairs"]  # half right in the reference
    right = found["people"]["agreement"]["value"] + ties / 2
    assert right == pytest.approx(reference["llmbar"]["longest_baseline_acc"], abs=POINT)


def test_models_on_prometheus(annot, reference, capsys):
    found = said(capsys, "leaderboard", annot / "prometheus_vicuna_eval.json", "--resamples", 2000)
    expected = reference["prometheus_vicuna"]
    for line, (name, (strength, interval)) in zip(found["lines"], expected["leaderboard_bt_half"].items(), strict=True):
        assert line["name"] == name
        assert line["value"] == pytest.approx(strength, abs=POINT)
        ends(line, interval, STRENGTH)
    facts, pairs = dict(found["facts"]), expected["implied_pairs"]
    assert (facts["prompts"], facts["pairs of answers"]) == (str(expected["questions"]), str(pairs["pairs"]))
    tied = sum(m["tied"] for m in found["met"]) / sum(m["won"] + m["lost"] + m["tied"] for m in found["met"])
    assert tied == pytest.approx(pairs["ties_share"], abs=POINT)


def test_nothing_printed_ignores_prompts(pandalm, annot, reference, capsys):
    """No interval that single votes would give is anywhere in what the commands say of PandaLM."""
    board = said(capsys, "leaderboard", annot / "pandalm_human3.json")
    shown = [(line["low"], line["high"]) for line in board["lines"]]
    shown += _intervals(pandalm["by"])
    refused = [line["bt_half_interval_votes"] for line in reference["pandalm"]["leaderboard"].values()]
    refused += [
        judge["agreement_with_single_people"]["with_ties_interval_ignoring_prompts"]
        for name, judge in reference["pandalm"]["judges"].items()
    ]
    for low, high in refused:
        assert not any(math.isclose(a, low, abs_tol=2e-3) and math.isclose(b, high, abs_tol=2e-3) for a, b in shown)
    assert len(shown) >= 60


def _intervals(value: Any) -> list[tuple[float, float]]:
    if isinstance(value, dict):
        own = [(value["low"], value["high"])] if value.get("low") is not None and "high" in value else []
        return own + [pair for part in value.values() for pair in _intervals(part)]
    return [pair for part in value for pair in _intervals(part)] if isinstance(value, list) else []
