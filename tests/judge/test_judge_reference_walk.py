"""Every number of the reference on real votes and verdicts, leaf by leaf, against the JSON output of the commands.

A leaf that no command gives is in ``LEFT_OUT`` with the reason; a missing leaf fails, and so does a reason that fits no
leaf. Tolerances: 1e-4 for points (the reference rounds to four digits), 0.01 for the interval ends of means, 0.05 for
those of Bradley-Terry strengths, which come from another stream of random numbers.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from afzal import data
from afzal.cli import main
from afzal.records import Item, Rating, Response

pytestmark = pytest.mark.slow

POINT, MEAN, STRENGTH = 1e-4, 0.01, 0.05
TOLERANCES = {
    "*dawid_skene*loglik": 2e-3,
    "*_loglik": 2e-3,
    "*loglik_minus_penalty": 2e-3,
    "pandalm.leaderboard_differences.*.[23]": STRENGTH,
    "pandalm.length_control.length_coefficient_interval.*": STRENGTH,
    "pandalm.leaderboard.*_interval_prompts.*": STRENGTH,
    "prometheus_vicuna.leaderboard_bt_half.*.1.*": STRENGTH,
    "*alt_test.*.p_values.*": 1e-3,  # three digits are given
    "*iterations": 1,
    # the score interval is never narrower than that of independent games: these two judges name the same slot in 89 and
    # 92% of the games, so their two orders err in opposite directions and the percentiles are narrower
    "llmbar.judges.Falcon/CoT.acc_interval.*": 0.02,
    "llmbar.judges.Falcon/Metrics_Reference.acc_interval.*": 0.02,
    # where every label agrees, percentiles have no width and the score interval has
    "pandalm.judges.majority_of_people.agreement_with_majority.with_ties_interval.*": STRENGTH,
    "*rank_interval.*": 1,  # integers: at the edge of a quantile two draws differ by one
    "*.separable_by_non_overlapping_intervals": 4,  # counted from the ends of 24 sampled intervals
    "*interval*.*": MEAN,
    "*alpha_interval_bootstrap_items.*": MEAN,
    "vader_lexicon.split_half.spearman_brown": 1e-3,  # the command gives the mean over all halves, not one of them
}

_REFUSED = "single votes or rows are drawn, or the reference set holds the person judged: wrong, and to be refused"
_STUDY = "a simulation of a method over many draws, not a figure of the data; tests of the method repeat it"
_BENCHMARK = "statistics files of the benchmark itself, which are not among the data"
_NO_DISTANCES = "signs as classes ignore the distances between scores; the command refuses to aggregate them so"
LEFT_OUT = {
    "pandalm.*_ignoring_prompts.*": _REFUSED,
    "pandalm.leaderboard.*.bt_half_interval_rows.*": _REFUSED,
    "pandalm.leaderboard.*.bt_half_interval_votes.*": _REFUSED,
    "pandalm.leaderboard.*.width_ratio_prompts_over_votes": _REFUSED,
    "pandalm.human_ceiling.*_INFLATED": _REFUSED,
    "pandalm.prediction_powered_share_response1.*.[125]*": _STUDY,
    "pandalm.prediction_powered_share_response1.*.corr": "no command correlates a judge with people's mean label",
    "pandalm.which_pair_of_models_to_ask.*": _STUDY,
    "pandalm.crowd_bt_models_as_players.* ridge 0.0.*": "without a ridge the strengths run away; the command has one",
    "llmbar.published.*": _BENCHMARK,
    "llmbar.published_check.*": _BENCHMARK,
    "llmbar.jury.rule": "words",
    "vader_lexicon.dawid_skene_sign.*": _NO_DISTANCES,
    "vader_lexicon.split_half.pearson": "the command gives the reliability of the mean, which needs no split",
    "vader_lexicon.per_column.sd*": "whether columns are people; a lexicon's columns are no annotators of the command",
    "vader_lexicon.one_vs_mean_of_rest.mean_absolute_difference": "no command gives distances from the others' mean",
    "uzlib.gold_values.*": "which of the options is right does not describe the voters",
    "uzlib.gold_always_within_the_list": "a property of the file",
    "uzlib.plurality_tied": "a tie counts as wrong; there are none",
    "uzlib.pooled_share_of_votes_on_gold": "voters of one row are not independent; the mean over rows is given",
    "oasst.trees": "trees are an input format",
    "oasst.groups_with_an_unranked_sibling": "a group is what is ranked; there are none with an unranked sibling",
}


@pytest.fixture(scope="module")
def place() -> Path:
    shared = Path(__file__).parents[2] / "../shared"
    if not shared.is_dir():
        pytest.skip("the shared folder is not there")
    return shared.resolve()


@pytest.fixture(scope="module")
def reference(place: Path) -> dict[str, Any]:
    return json.loads((place / "reference/people-and-judges.json").read_text())


@pytest.fixture
def said(capsys):
    """A function that returns a command's output with ``--json``."""

    def run(*arguments: object, code: int = 0) -> Any:
        assert main([str(a) for a in arguments] + ["--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(part, f"{path}.{key}")
    else:
        yield path, tree


def compare(actual: dict[str, Any], expected: dict[str, Any], section: str) -> int:
    """Check that both trees have the same leaves except those left out; return how many are equal."""
    ours, theirs = dict(leaves(actual, section)), dict(leaves(expected, section))
    reasons = [pattern for pattern in LEFT_OUT if pattern.startswith(f"{section}.")]
    unused = [pattern for pattern in reasons if not any(fnmatch(path, pattern) for path in theirs)]
    assert not unused
    skipped = {path for path in theirs if any(fnmatch(path, pattern) for pattern in reasons)}
    assert not skipped & ours.keys()
    assert sorted(ours.keys() - theirs.keys()) == []
    assert sorted(theirs.keys() - ours.keys() - skipped) == []
    wrong = {path: (ours[path], theirs[path]) for path in ours if not same(path, ours[path], theirs[path])}
    assert wrong == {}
    return len(ours)


def same(path: str, ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, str | bool) or theirs is None or ours is None:
        return ours == theirs
    if path.endswith("slot_bias_p"):
        return math.isclose(ours, theirs, rel_tol=5e-3)  # three digits are given
    tolerance = next((value for pattern, value in TOLERANCES.items() if fnmatch(path, pattern)), POINT)
    return math.isclose(ours, theirs, rel_tol=0, abs_tol=tolerance + 1e-9)


def ends(figure: dict[str, Any]) -> list[float]:
    return [figure["low"], figure["high"]]


def figures(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in body["figures"]}


def whole(text: str) -> int:
    return int(text.replace(",", ""))


# ---------- PandaLM ----------


def judges_of_pandalm(place: Path, out: Path, said) -> dict[str, Any]:
    annot = place / "data/annot"
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
    summaries = said("judge", annot / "pandalm_human3.json", *flags, "--out", out, "--resamples", 2000)
    return dict(zip(specs, summaries, strict=True))


def one_judge(body: dict[str, Any], *, with_alt_test: bool) -> dict[str, Any]:
    people, words = body["people"], {"0": "tie", "1": "first", "2": "second"}
    majority, single, without = people["with_the_majority"], people["agreement"], people["without_ties"]
    tree = {
        "no_verdict": body["no_verdict"],
        "labels": {key: body["outcomes"][word] for key, word in words.items()},
        "agreement_with_single_people": {
            "with_ties": single["value"],
            "with_ties_interval": ends(single),
            "with_ties_verdicts_only": people["verdicts_only"]["value"],
            "without_ties": without["value"],
            "without_ties_pairs": without["pairs"],
            "without_ties_interval": ends(without),
        },
        "agreement_with_majority": {
            "with_ties": majority["agreement"]["value"],
            "with_ties_interval": ends(majority["agreement"]),
            "verdicts_only": majority["verdicts_only"]["value"],
            "without_ties": majority["without_ties"]["value"],
            "without_ties_rows": majority["without_ties"]["pairs"],
            "cohen_verdicts_only": majority["cohen"],
        },
        "agreement_with_mode_of_two": people["with_the_mode_of_others"]["value"],
        "minus_human_ceiling": people["minus_ceiling"]["value"],
        "minus_human_ceiling_interval": ends(people["minus_ceiling"]),
        "against_majority_macro": {key: majority[key] for key in ("precision", "recall", "f1")},
        "prefers_longer": [body["longer_wins"][key] for key in ("value", "pairs")],
        "prefers_response1": [body["first_wins"][key] for key in ("value", "pairs")],
    }
    if with_alt_test:
        names = {"advantage_per_annotator": "advantages"}
        keys = ("winning_rate", "advantage", "advantage_per_annotator", "p_values", "passes")
        tree["alt_test"] = {
            epsilon: {key: test[names.get(key, key)] for key in keys} for epsilon, test in people["alt_test"].items()
        }
    return tree


def people_of_pandalm(source: Path, said) -> dict[str, Any]:
    mean = said("aggregate", source, "--resamples", 1000)
    fitted = said("aggregate", source, "--resamples", 2, "--by", "dawid_skene")
    majority = said("aggregate", source, "--resamples", 2, "--by", "majority")
    smoothed = said("aggregate", source, "--resamples", 2, "--by", "jeffreys")
    known, facts = figures(mean), dict(mean["facts"])
    pairs = {"-".join(name[-1] for name in two["annotators"]): two for two in mean["pairs_of_annotators"]}
    codes = {"0": "tie", "1": "first", "2": "second"}
    model = fitted["dawid_skene"]
    told = {name: [who["confusion"][c][c] for c in ("tie", "first", "second")] for name, who in annotators(model)}
    soft = [float(value) for value in smoothed["soft_labels"]]
    return {
        "n": {
            "rows": whole(facts["pairs"]),
            "prompts": whole(facts["groups of prompts"]),
            "votes": whole(facts["labels"]),
            "three_way_splits": whole(facts["without one"]),
            "unanimous": whole(facts["of them unanimous"]),
            "two_to_one": whole(facts["with a majority"]),
        },
        "labels_per_annotator": {
            name: {code: given.get(word, 0) for code, word in codes.items()} for name, given in mean["labels"].items()
        },
        "majority_labels": {
            code: majority["soft_labels"][p] for code, p in (("0", "0.5000"), ("1", "1.0000"), ("2", "0.0000"))
        },
        "people": {
            "raw_pairwise": {key: two["raw"] for key, two in pairs.items()},
            "raw_pairwise_mean": known["raw agreement"]["value"],
            "raw_pairwise_mean_interval": ends(known["raw agreement"]),
            "raw_without_ties": {key: [two["without_ties"], two["decided"]] for key, two in pairs.items()},
            "raw_without_ties_pooled": [
                known["without ties"]["value"],
                sum(two["decided"] for two in pairs.values()),
            ],
            "cohen": {key: two["cohen"] for key, two in pairs.items()},
            "cohen_mean": sum(two["cohen"] for two in pairs.values()) / len(pairs),
            "fleiss": known["Fleiss' kappa"]["value"],
            "fleiss_interval": ends(known["Fleiss' kappa"]),
            "alpha_nominal": known["Krippendorff's alpha"]["value"],
            "alpha_nominal_interval": ends(known["Krippendorff's alpha"]),
            "alpha_interval_scale": known["alpha on the scale second, tie, first"]["value"],
            "alpha_interval_scale_interval": ends(known["alpha on the scale second, tie, first"]),
            "gwet_ac1": known["Gwet's AC1"]["value"],
        },
        "dawid_skene": {
            "prior": [model["prior"][c] for c in ("tie", "first", "second")],
            "loglik": model["log_likelihood"],
            "iterations": model["iterations"],
            "differs_from_majority": fitted["moved"],
            "confusion_diagonal": told,
            "posterior_below_0_9": model["unsure"],
            "moved": [],
        },
        "soft_labels": {
            "p_mean_histogram": mean["soft_labels"],
            "p_jeffreys_min_max": [min(soft), max(soft)],
            "share_of_rows_not_certain": mean["soft"],
        },
        "prediction_powered_share_response1": {
            "truth": sum(float(p) * n for p, n in mean["soft_labels"].items()) / whole(facts["pairs"])
        },
    }


def annotators(model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(model["annotators"].items())


def models_of_pandalm(source: Path, rows: Path, said) -> dict[str, Any]:
    board = said("leaderboard", source, "--length-control")
    ties = {name: said("leaderboard", source, "--ties", name, "--resamples", 2) for name in ("davidson", "rao_kupper")}
    by_ties = {name: {line["name"]: line["value"] for line in b["lines"]} for name, b in ties.items()}
    tree: dict[str, Any] = {"leaderboard": {}}
    for line in board["lines"]:
        tree["leaderboard"][line["name"]] = {
            "bt_half": line["value"],
            "bt_half_interval_prompts": ends(line),
            "elo": line["elo"],
            **{name: values[line["name"]] for name, values in by_ties.items()},
            "win_rate": line["win_rate"],
            "votes": line["won"] + line["tied"] + line["lost"],
            "rank": line["rank"],
            "rank_interval": [line["best_rank"], line["worst_rank"]],
        }
    tree["leaderboard_differences"] = [
        [gap["first"], gap["second"], gap["low"], gap["high"], gap["low"] > 0] for gap in board["differences"]
    ]
    tree["leaderboard_tie_parameters"] = {}
    for name, fitted in ties.items():
        fit = fitted["fit"]
        tree["leaderboard_tie_parameters"] |= {f"{name}_nu": fit["tie"], f"{name}_loglik": fit["log_likelihood"]}
    for key, judge in (("gpt35", "gpt35"), ("pandalm7b", "pandalm7b"), ("", "people (pandalm_human3)")):
        judged = said("leaderboard", rows, "--judge", judge, "--resamples", 2, "--beside", source)
        scores = {line["name"]: line["value"] for line in judged["lines"]}
        if key:
            ranks = {f"{name}_with_people": judged["beside"][name] for name in ("spearman", "kendall")}
            tree[f"leaderboard_by_{key}"] = {"scores": scores, **ranks}
        else:
            tree["leaderboard_from_majority"] = scores
            tree["majority_first_second_tie_by_pair"] = {
                f"{met['first']}_{met['second']}": [met["won"], met["lost"], met["tied"]] for met in judged["met"]
            }
    line = board["at_equal_lengths"][0]
    tree["length_control"] = {
        "model": line["model"],
        "comparisons": line["pairs"],
        "win_rate": line["raw"]["value"],
        "win_rate_interval": ends(line["raw"]),
        "length_coefficient": line["slope"]["value"],
        "length_coefficient_interval": ends(line["slope"]),
        "length_controlled_win_rate": line["controlled"]["value"],
        "length_controlled_interval": ends(line["controlled"]),
        "sd_of_length_difference": line["deviation"],
    }
    return tree


def weighed(body: dict[str, Any]) -> dict[str, Any]:
    fit = body["weighed"]
    return {
        "theta": fit["strengths"],
        "eta": [fit["reliability"][f"annotator{k}"] for k in (1, 2, 3)],
        "loglik_minus_penalty": fit["log_likelihood"],
    }


def test_pandalm(place, reference, said, tmp_path):
    source, expected = place / "data/annot/pandalm_human3.json", reference["pandalm"]
    judges = judges_of_pandalm(place, tmp_path, said)
    actual = people_of_pandalm(source, said) | models_of_pandalm(source, tmp_path / "rows.jsonl", said)
    truth = actual["prediction_powered_share_response1"].pop("truth")
    for name in ("gpt35", "pandalm7b"):
        given = judges[name]["outcomes"]
        half = (given["tie"] + given["none"]) / 2
        alone = (given["first"] + half) / judges[name]["pairs"]
        actual["prediction_powered_share_response1"][name] = {"truth": truth, "judge_alone": alone}
    tested = ("gpt35", "pandalm7b", "longest")
    actual["judges"] = {name: one_judge(body, with_alt_test=name in tested) for name, body in judges.items()}
    ceiling = judges["longest"]["people"]["ceiling"]
    people = said("aggregate", source, "--resamples", 1000)
    actual["human_ceiling"] = {
        "one_vs_mode_of_the_other_two": ceiling["value"],
        "one_vs_mode_of_the_other_two_interval": ends(ceiling),
        "per_annotator": [line["value"] for line in people["lines"]],
        "one_vs_one": figures(people)["raw agreement"]["value"],
    }
    turned = [row | {"annotator3": (0, 2, 1)[row["annotator3"]]} for row in json.loads(source.read_text())]
    (tmp_path / "turned.json").write_text(json.dumps(turned))
    mirrored = said("leaderboard", tmp_path / "turned.json", "--resamples", 2)
    actual["crowd_bt_models_as_players"] = {
        "as given, ridge 1.0": weighed(said("leaderboard", source, "--resamples", 2)),
        "annotator3 turned round, ridge 1.0": weighed(mirrored),
    }
    assert compare(actual, expected, "pandalm") > 450
    assert none_is_printed(expected, [judges, people, said("leaderboard", source)]) > 70
    assert not any(math.isclose(figure["value"], 0.9606, abs_tol=1e-4) for figure in people["figures"])


def none_is_printed(expected: dict[str, Any], bodies: list[Any]) -> int:
    """Check that no printed interval resamples single votes or rows; return how many are printed."""
    refused = [judge["agreement_with_single_people"] for judge in expected["judges"].values()]
    wrong = [judge["with_ties_interval_ignoring_prompts"] for judge in refused]
    wrong.append(expected["people"]["raw_pairwise_mean_interval_ignoring_prompts"])
    for line in expected["leaderboard"].values():
        wrong += [line["bt_half_interval_votes"], line["bt_half_interval_rows"]]
    shown = list(intervals(bodies))
    for ends_of in wrong:
        assert not any(
            all(math.isclose(a, b, abs_tol=2e-3) for a, b in zip(pair, ends_of, strict=True)) for pair in shown
        )
    return len(shown)


def intervals(value: Any) -> Iterator[tuple[float, float]]:
    if isinstance(value, dict):
        if value.get("low") is not None and "high" in value:
            yield value["low"], value["high"]
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from intervals(part)


# ---------- LLMBar ----------


def two_orders(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "no_verdict": line["no_verdict"],
        "acc_order1": line["first_order"],
        "acc_order2": line["second_order"],
        "both": line["both_right"],
        "consistent": line["consistent"],
        "consistent_published": line["none_as_label"]["consistent"],
        "kappa_orders_published": line["none_as_label"]["kappa"],
        "kappa_orders": line["kappa"],
        "p_first_slot": line["first_slot"],
    }


def one_of_24(line: dict[str, Any]) -> dict[str, Any]:
    return two_orders(line) | {
        "acc": line["value"],
        "acc_interval": ends(line),
        "consistent_where_two_verdicts": line["consistent_of_two"],
        "acc_where_consistent": line["right_where_consistent"],
        "acc_inconsistent_is_half": line["right_by_halves"],
        "first_slot_both_games": line["always_first"],
        "second_slot_both_games": line["always_second"],
        "slot_bias": line["slot_bias"],
        "slot_bias_p": line["slot_p"],
    }


def board_of_judges(board: dict[str, Any]) -> dict[str, Any]:
    spans = [ends(line) for line in board["lines"]]
    apart = sum(a[0] > b[1] or b[0] > a[1] for k, a in enumerate(spans) for b in spans[k + 1 :])
    return {
        "order": [
            {"judge": x["name"], "acc": x["value"], "rank_interval": [x["best_rank"], x["worst_rank"]]}
            for x in board["lines"]
        ],
        "pairs": board["pairs"],
        "separable_paired_95": board["separable"],
        "separability": board["separable"] / board["pairs"],
        "separable_by_non_overlapping_intervals": apart,
    }


def jury(source: Path, said, best: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    quick = ("--resamples", 2)
    voted = said("aggregate", source, *quick, "--by", "majority", "--gold-sizes", "10,20,40,80")
    model = said("aggregate", source, *quick, "--by", "dawid_skene", code=1)
    soft = said("aggregate", source, *quick, "--by", "jeffreys")
    by_size, fit = voted["gold_sizes"]["by_size"], model["dawid_skene"]

    def by_subset(body: dict[str, Any]) -> dict[str, float]:
        return {name.rpartition("/")[2]: share["right"] for name, share in body["by_category"].items()}

    return voted, {
        "votes": whole(dict(voted["facts"])["labels"]),
        "majority_ties": voted["soft_labels"]["0.5000"],
        "majority_acc": voted["right"],
        "dawid_skene_acc": model["right"],
        "dawid_skene_iterations": fit["iterations"],
        "dawid_skene_loglik": fit["log_likelihood"],
        "dawid_skene_prior": [fit["prior"][c] for c in ("first", "second")],
        "best_single_judge": [best["name"], best["value"]],
        "oracle_weighted_acc": voted["gold_sizes"]["in_sample"],
        "dawid_skene_vs_true_judge_accuracy_spearman": model["estimated_with_true"],
        "majority_by_subset": by_subset(voted),
        "dawid_skene_by_subset": by_subset(model),
        "soft_label_brier": soft["brier"],
        "dawid_skene_anchored_on_gold_items_20_seeds": {
            size: {
                "acc_on_the_rest_mean": ways["dawid_skene"]["right"],
                "acc_on_the_rest_min": ways["dawid_skene"]["least"],
                "spearman_mean": ways["dawid_skene"]["rank_correlation"],
            }
            for size, ways in by_size.items()
        },
        "log_odds_weights_from_gold_items_20_seeds": {size: ways["gold"]["right"] for size, ways in by_size.items()},
    }


def test_llmbar(place, reference, said, tmp_path):
    source, expected = place / "data/annot/llmbar_gold_vs_judges.jsonl", reference["llmbar"]
    board = said("leaderboard", source, "--of", "judges")
    voted, by_jury = jury(source, said, board["lines"][0])
    subsets: dict[str, dict[str, Any]] = {}
    for line in board["categories"]:
        own = two_orders(line) | {"acc": line["accuracy"]}
        subsets.setdefault(line["category"].rpartition("/")[2], {})[line["judge"]] = own
    # a tie is half right in the reference
    longest = said("judge", source, "--judge", "rule:longest", "--out", tmp_path, "--resamples", 2)[0]
    right = longest["people"]["agreement"]["value"] + longest["outcomes"]["tie"] / longest["pairs"] / 2
    codes = {"1": "first", "2": "second"}
    actual = {
        "n": whole(dict(voted["facts"])["pairs of known truth"]),
        "subsets": {name.rpartition("/")[2]: share["pairs"] for name, share in voted["by_category"].items()},
        "gold": {code: voted["truths"][word] for code, word in codes.items()},
        "judges": {line["name"]: one_of_24(line) for line in board["judges"]},
        "judges_by_subset": subsets,
        "leaderboard_of_judges": board_of_judges(board),
        "jury": by_jury,
        "longest_baseline_acc": right,
    }
    # judges with equal accuracy are unordered
    theirs = expected["leaderboard_of_judges"]["order"]
    rank = {place["judge"]: k for k, place in enumerate(theirs)}
    actual["leaderboard_of_judges"]["order"].sort(key=lambda place: (-round(place["acc"], 4), rank[place["judge"]]))
    assert compare(actual, expected, "llmbar") > 900


# ---------- scores, counts and ranks ----------


def test_prometheus(place, reference, said):
    source = place / "data/annot/prometheus_vicuna_eval.json"
    scores, board = said("aggregate", source, "--resamples", 50), said("leaderboard", source, "--resamples", 2000)
    known, facts = {name: f["value"] for name, f in figures(scores).items()}, dict(scores["facts"])
    answers, repeats = whole(facts["answers"]), whole(facts["annotators"])
    actual = {
        "answers": answers,
        "repeats": repeats,
        "questions": whole(facts["groups of prompts"]),
        "sources": {name: own["answers"] for name, own in scores["by_source"].items()},
        "missing": answers * repeats - whole(facts["scores"]),
        "alpha_interval": known["alpha, interval"],
        "alpha_nominal": known["alpha, nominal"],
        "alpha_ordinal": known["alpha, ordinal"],
        "repeat_pairs_equal": known["two scores equal"],
        "repeat_pairs_within_1": known["two scores within 1"],
        "mean_sd_within_answer": known["standard deviation within an answer"],
        "mean_score_by_source": {name: own["value"] for name, own in scores["by_source"].items()},
        "implied_pairs": {
            "pairs": whole(dict(board["facts"])["pairs of answers"]),
            "ties_share": known["ties among implied pairs"],
            "repeats_give_one_verdict": known["implied pairs on which all agree"],
            "repeats_contradict": known["implied pairs with opposite winners"],
        },
        "leaderboard_bt_half": {line["name"]: [line["value"], ends(line)] for line in board["lines"]},
    }
    assert compare(actual, reference["prometheus_vicuna"], "prometheus_vicuna") == 34


def test_vader(place, reference, said, tmp_path):
    rows = []
    for k, line in enumerate((place / "data/annot/vader_lexicon.txt").read_text("utf-8", "replace").split("\n")):
        word, _, told = line.partition("\t")
        given = ast.literal_eval(told.split("\t")[-1]) if told else []
        if given:
            votes = tuple(Rating(0, float(v), "score", annotator=f"r{n}") for n, v in enumerate(given))
            rows.append(Item(f"w{k}", f"{k} {word}", (Response(word),), votes))
    data.write(rows, tmp_path / "vader.jsonl", "afzal")
    body = said("aggregate", tmp_path / "vader.jsonl", "--resamples", 200)
    known, facts = figures(body), dict(body["facts"])
    value = {name: figure["value"] for name, figure in known.items()}
    people = whole(facts["annotators"])
    low, high = (int(part) for part in facts["scale"].rpartition(", ")[2].split(" to "))
    actual = {
        "items": whole(facts["answers"]),
        "ratings": whole(facts["scores"]),
        "raters_per_item": {str(people): whole(facts["scores"]) // people},
        "out_of_range": int(low < -4 or high > 4),
        "alpha_interval": value["alpha, interval"],
        "alpha_ordinal": value["alpha, ordinal"],
        "alpha_nominal_9": value["alpha, nominal"],
        "alpha_nominal_sign": value["alpha of the sign, nominal"],
        "gwet_ac1_sign": value["Gwet's AC1 of the sign"],
        "alpha_interval_bootstrap_items": ends(known["alpha, interval"]),
        "one_vs_mean_of_rest": {
            "pearson": value["one annotator with the mean of the others"],
            "sign_agreement": value["same sign as the mean of the others"],
        },
        "per_column": {
            "mean": [line["mean"] for line in body["lines"]],
            "correlation_with_rest": [line["value"] for line in body["lines"]],
        },
        "split_half": {"spearman_brown": value["reliability of a mean of 10"]},
    }
    assert compare(actual, reference["vader_lexicon"], "vader_lexicon") == 34


def test_voters_and_ranks(place, reference, said):
    body = said("aggregate", place / "data/pref/uzlib_processed.csv", "--resamples", 50)
    known, facts = {name: f["value"] for name, f in figures(body).items()}, dict(body["facts"])
    lengths = dict(part.split(" in ") for part in facts["options counted"].split(", "))
    low, _, rest = facts["votes per row"].partition(" to ")
    high, _, median = rest.partition(", median ")
    voters = {
        "rows": whole(facts["rows"]),
        "vote_list_lengths": {size: whole(n) for size, n in lengths.items()},
        "votes": whole(facts["votes"]),
        "rows_without_votes": whole(facts["rows without votes"]),
        "rows_with_four_counts": whole(lengths["4"]),
        "plurality_accuracy": known["most people are right"],
        "mean_share_of_votes_on_gold": known["share of votes on the right option"],
        "mean_entropy_nats": known["entropy of a row's votes, nats"],
        "alpha_nominal_of_votes": known["Krippendorff's alpha of the votes"],
        "votes_per_row": {"min": whole(low), "median": whole(median), "max": whole(high)},
    }
    assert compare(voters, reference["uzlib"], "uzlib") == 14
    told = dict(said("aggregate", place / "data/pref/oasst_trees.jsonl")["facts"])
    ranks = {
        "ranked_sibling_groups": whole(told["ranked groups"]),
        "by_size": {size: whole(n) for size, n in (part.split(": ") for part in told["groups by size"].split(", "))},
        "pairs": whole(told["pairs"]),
        "groups_with_equal_ranks": whole(told["groups with equal ranks"]),
    }
    assert compare(ranks, reference["oasst"], "oasst") == 10
