"""Reference values on real annotations, compared with the command's output; definitions are next to the values."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from afzal import data, judge
from afzal.cli import main
from afzal.judge import aggregate, labels
from afzal.judge.labels import FIRST
from afzal.records import Comparison, Item, Rating, Response

ENDS = 0.01  # intervals from another stream of random numbers


@pytest.fixture
def reference(shared) -> dict:
    return json.loads((shared / "reference/people-and-judges.json").read_text())


def report(capsys, source: object, *more: str, code: int = 0) -> dict:
    assert main(["aggregate", str(source), "--json", *more]) == code
    body = json.loads(capsys.readouterr().out)
    return body | {"known": {f["name"]: f for f in body["figures"]}, "told": dict(map(tuple, body["facts"]))}


def near(figure: dict, value: float, ends: list[float] | None = None, atol: float = 6e-5) -> None:
    assert figure["value"] == pytest.approx(value, abs=atol)
    if ends is not None:
        assert [figure["low"], figure["high"]] == pytest.approx(ends, abs=ENDS)


def test_people_on_pandalm(shared, reference, capsys):
    body = report(capsys, shared / "data/annot/pandalm_human3.json")
    known, told = body["known"], body["told"]
    assert (told["of them unanimous"], told["with a majority"], told["without one"]) == ("485", "65", "0")
    near(known["raw agreement"], 0.9212, [0.8897, 0.9494])
    near(known["without ties"], 0.9444)
    near(known["Krippendorff's alpha"], 0.8638, [0.8088, 0.9123])
    near(known["alpha on the scale second, tie, first"], 0.8747)
    near(known["Fleiss' kappa"], 0.8637)
    near(known["Gwet's AC1"], 0.8892)
    for pair, kappa, equal in (((1, 2), 0.8487, 0.9127), ((1, 3), 0.8732, 0.9273), ((2, 3), 0.8695, 0.9236)):
        names = [f"annotator{k}" for k in pair]
        near(known[f"Cohen's kappa, {' and '.join(names)}"], kappa)
        (two,) = [two for two in body["pairs_of_annotators"] if two["annotators"] == names]
        assert two["raw"] == pytest.approx(equal, abs=6e-5)
    # one person against the mode of the other two is one against one, since no two of them agree on a third label
    assert np.mean([line["value"] for line in body["lines"]]) == pytest.approx(0.9212, abs=6e-5)
    assert (body["dawid_skene_moved"], body["doubtful"]) == (0, False)
    soft = reference["pandalm"]["soft_labels"]
    assert body["soft"] == pytest.approx(soft["share_of_rows_not_certain"], abs=6e-5)
    assert body["soft_labels"] == soft["p_mean_histogram"]


def test_crowd_bt_on_pandalm_is_a_mirror(shared, tmp_path, capsys):
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    turned = [row | {"annotator3": (0, 2, 1)[row["annotator3"]]} for row in rows]
    (tmp_path / "turned.json").write_text(json.dumps(turned))
    given = report(capsys, shared / "data/annot/pandalm_human3.json", "--by", "crowd_bt", "--resamples", "5")
    # it deviates from the majority, in which the reversed person votes, so it is not trusted without known truth
    mirrored = report(capsys, tmp_path / "turned.json", "--by", "crowd_bt", "--resamples", "5", code=1)
    eta, back = ([line["eta"] for line in body["lines"]] for body in (given, mirrored))
    assert back == pytest.approx([eta[0], eta[1], 1 - eta[2]], abs=1e-4)
    assert min(eta) > 0.9
    assert "reversed?" in " ".join(mirrored["findings"])


def test_judges_of_llmbar_as_annotators(shared, reference, capsys):
    source, jury = shared / "data/annot/llmbar_gold_vs_judges.jsonl", reference["llmbar"]["jury"]
    body = report(capsys, source, "--by", "majority", "--resamples", "5")
    assert body["doubtful"]
    assert body["right"] == pytest.approx(jury["majority_acc"], abs=1e-4)
    body = report(capsys, source, "--by", "dawid_skene", "--resamples", "5", code=1)
    assert body["right"] == pytest.approx(jury["dawid_skene_acc"], abs=1e-4)
    assert any("share errors" in line for line in body["findings"])


def test_what_known_truth_is_worth_on_llmbar(shared, reference, capsys):
    source, jury = shared / "data/annot/llmbar_gold_vs_judges.jsonl", reference["llmbar"]["jury"]
    body = report(capsys, source, "--by", "jeffreys", "--resamples", "2", "--gold-sizes", "10")
    assert body["brier"] == pytest.approx(jury["soft_label_brier"], abs=1e-4)
    shares = {name.rpartition("/")[2]: share["right"] for name, share in body["by_category"].items()}
    assert shares == pytest.approx(jury["majority_by_subset"], abs=1e-4)
    worth, ten = body["gold_sizes"], body["gold_sizes"]["by_size"]["10"]
    assert worth["in_sample"] == pytest.approx(jury["oracle_weighted_acc"], abs=1e-4)
    assert ten["gold"]["right"] == pytest.approx(jury["log_odds_weights_from_gold_items_20_seeds"]["10"], abs=1e-4)
    anchored = jury["dawid_skene_anchored_on_gold_items_20_seeds"]["10"]
    assert ten["dawid_skene"]["least"] == pytest.approx(anchored["acc_on_the_rest_min"], abs=1e-4)
    assert ten["dawid_skene"]["rank_correlation"] == pytest.approx(anchored["spearman_mean"], abs=1e-4)


def llmbar_rows(shared: Path) -> tuple[list[Item], list[Item]]:
    """Rows with a vote by every judge whose two games agree, and the same rows with the truth."""
    lines = [json.loads(line) for line in (shared / "data/annot/llmbar_gold_vs_judges.jsonl").open()]
    rows, truths = [], []
    for k, line in enumerate(lines):
        agreed = {name: games[0] for name, games in line["judges"].items() if games[0] and games[0] == games[1]}
        votes = [Comparison(0, 1, ("first", "second")[int(said) - 1], annotator=name) for name, said in agreed.items()]
        answers = (Response(f"{k} {line['output_1']}"), Response(f"{k} {line['output_2']}"))
        rows.append(Item(f"i{k}", line["input"], answers, tuple(votes)))
        truth = Comparison(0, 1, ("first", "second")[int(line["label"]) - 1])
        truths.append(Item(f"i{k}", line["input"], answers, (truth,)))
    return rows, truths


def test_ten_truths_correct_the_judges(shared, tmp_path, capsys):
    said = labels.of_verdicts(judge.read([str(shared / "data/annot/llmbar_gold_vs_judges.jsonl")]))
    right = []
    for seed in range(20):
        chosen = np.random.default_rng(seed).permutation(len(said.gold))[:10]
        few = labels.Labels(said.pairs, said.prompts, said.annotators, said.entries, np.full(len(said.gold), -1))
        few.gold[chosen] = said.gold[chosen]
        p = aggregate.aggregate(few, "gold").p_first
        rest = np.setdiff1d(np.arange(len(p)), chosen)
        credit = np.where(np.isnan(p) | (p == 0.5), 0.5, (p > 0.5) == (said.gold == FIRST))
        right.append(credit[rest].mean())
    assert np.mean(right) >= 0.79
    # one of these draws, via the command
    rows, truths = llmbar_rows(shared)
    chosen = np.random.default_rng(0).permutation(len(rows))[:10]
    data.write(rows, tmp_path / "rows.jsonl", "afzal")
    data.write([truths[k] for k in chosen], tmp_path / "gold.jsonl", "afzal")
    asked = ["--by", "gold", "--gold", str(tmp_path / "gold.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    body = report(capsys, tmp_path / "rows.jsonl", *asked, "--resamples", "5")
    assert body["told"]["pairs of known truth"] == "10"
    known = {item.id: item.votes[0].p_first for item in data.read(str(tmp_path / "out.jsonl")).items if item.votes}
    rest = [(known.get(t.id, 0.5), t.votes[0].p_first) for k, t in enumerate(truths) if k not in set(chosen.tolist())]
    credit = [0.5 if p == 0.5 else float((p > 0.5) == (true == 1.0)) for p, true in rest]
    assert np.mean(credit) == pytest.approx(right[0], abs=0.01)


@pytest.mark.slow
def test_words_of_vader_are_averaged(shared, reference, tmp_path, capsys):
    rows = []
    for k, line in enumerate((shared / "data/annot/vader_lexicon.txt").read_text("utf-8", "replace").split("\n")):
        word, _, told = line.partition("\t")
        scores = ast.literal_eval(told.split("\t")[-1]) if told else []
        votes = tuple(Rating(0, float(v), "score", annotator=f"r{n}") for n, v in enumerate(scores))
        if votes:
            rows.append(Item(f"w{k}", f"{k} {word}", (Response(word),), votes))
    data.write(rows, tmp_path / "vader.jsonl", "afzal")
    body = report(capsys, tmp_path / "vader.jsonl", "--out", str(tmp_path / "means.jsonl"))
    known, truth = body["known"], reference["vader_lexicon"]
    assert (body["told"]["scores"], body["scale"]) == ("75,200", "whole numbers")
    near(known["alpha, interval"], truth["alpha_interval"], [0.720, 0.732])
    near(known["alpha, ordinal"], truth["alpha_ordinal"])
    near(known["alpha, nominal"], truth["alpha_nominal_9"])
    near(known["alpha of the sign, nominal"], truth["alpha_nominal_sign"])
    near(known["one annotator with the mean of the others"], truth["one_vs_mean_of_rest"]["pearson"])
    near(known["same sign as the mean of the others"], truth["one_vs_mean_of_rest"]["sign_agreement"])
    near(known["reliability of a mean of 10"], 0.9633, atol=1e-3)  # the split halves give .9633
    beside = [line["value"] for line in body["lines"]]
    assert beside == pytest.approx(truth["per_column"]["correlation_with_rest"], abs=6e-5)
    assert [line["mean"] for line in body["lines"]] == pytest.approx(truth["per_column"]["mean"], abs=6e-5)
    assert "Dawid-Skene would ignore the distances" in body["findings"][0]
    mean = data.read(str(tmp_path / "means.jsonl")).items[0].votes
    assert mean == (Rating(0, -1.5, "score", annotator="mean of 10"),)


def test_repeats_of_prometheus(shared, reference, capsys):
    body = report(capsys, shared / "data/annot/prometheus_vicuna_eval.json", "--resamples", "50")
    known, truth = body["known"], reference["prometheus_vicuna"]
    assert (body["told"]["answers"], body["told"]["groups of prompts"], len(body["lines"])) == ("320", "80", 3)
    near(known["alpha, interval"], truth["alpha_interval"])
    near(known["alpha, ordinal"], truth["alpha_ordinal"])
    near(known["alpha, nominal"], truth["alpha_nominal"])
    near(known["two scores equal"], truth["repeat_pairs_equal"])
    near(known["two scores within 1"], truth["repeat_pairs_within_1"])
    near(known["ties among implied pairs"], truth["implied_pairs"]["ties_share"])
    near(known["implied pairs on which all agree"], truth["implied_pairs"]["repeats_give_one_verdict"])
    near(known["implied pairs with opposite winners"], truth["implied_pairs"]["repeats_contradict"])


def test_voters_of_uzlib(shared, reference, capsys):
    """A list shorter than the options covers the first ones: the others are missing, not 0."""
    body = report(capsys, shared / "data/pref/uzlib_processed.csv", "--resamples", "50")
    known, told, truth = body["known"], body["told"], reference["uzlib"]
    assert told["votes"] == f"{truth['votes']:,}"
    assert told["options counted"] == ", ".join(f"{k} in {n}" for k, n in truth["vote_list_lengths"].items())
    near(known["most people are right"], truth["plurality_accuracy"])
    near(known["share of votes on the right option"], truth["mean_share_of_votes_on_gold"], atol=6e-5)
    near(known["Krippendorff's alpha of the votes"], truth["alpha_nominal_of_votes"])


def test_ranked_replies_of_oasst(shared, reference, capsys):
    told, truth = report(capsys, shared / "data/pref/oasst_trees.jsonl")["told"], reference["oasst"]
    assert told["ranked groups"] == str(truth["ranked_sibling_groups"])
    assert told["groups by size"] == ", ".join(f"{k}: {n}" for k, n in truth["by_size"].items())
    assert (told["pairs"], told["groups with equal ranks"]) == (
        str(truth["pairs"]),
        str(truth["groups_with_equal_ranks"]),
    )
