"""C-DPO in rounds: labels by reward less multiplier times cost, and a dual step from the sampled cost of each round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from helpers_rounds import lines, run, settings
from helpers_runs import model_folder, pair_file

from afzal import data
from afzal.iterate import round_figures
from afzal.iterate.pairing import dual_steps
from afzal.iterate.round_figures import Round
from afzal.records import preferences
from afzal.stats.intervals import Estimate

SCORES = """
def letters(prompt, answer):
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)

def early(prompt, answer):
    return float(sum(c in "abcdefghijkl" for c in answer))
"""


def test_the_multiplier_follows_the_cost_above_the_bound_and_never_falls_below_zero():
    assert dual_steps([], 0.1, 2.0, 0.5) == 0.5
    assert dual_steps([0.6], 0.1, 2.0) == pytest.approx(1.0)
    assert dual_steps([0.6, 0.3, 0.0], 0.1, 2.0) == pytest.approx(1.2)
    assert dual_steps([0.0, 0.0, 0.6], 0.1, 2.0, 0.1) == pytest.approx(1.0)  # held at 0, not below it


def measured(number: int, cost: float, reward: float = 1.0) -> Round:
    means = {"cost": cost, "reward": reward, "length": 3.0, "ended": 1.0, "kl": 0.1}
    known = {name: Estimate(100 * value, 100, 0.01) for name, value in means.items()}
    return Round(number, f"rounds/{number}", measured=known, multiplier=1.0)


def test_only_policies_that_keep_the_bound_are_recommended_and_else_the_nearest():
    rounds = [measured(0, 0.5), measured(1, 0.2, 3.0), measured(2, 0.1, 2.0), measured(3, 0.3, 3.0)]
    assert round_figures.best_round(rounds, None).number == 3
    assert round_figures.best_round(rounds, None, 0.2).number == 1
    assert round_figures.best_round(rounds, None, 0.1).number == 2
    assert round_figures.best_round(rounds, None, 0.05).number == 2
    assert round_figures.within_bound(rounds, None) == rounds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cost")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl", 24)
    (path / "rewards.py").write_text(SCORES)
    return path


COST = {"cost_bound": 0.3, "dual_lr": 4.0, "accumulate": True}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    return run(folder, folder / "whole", cost=f"{folder}/rewards.py:early", **COST)


def multipliers(out: Path) -> list[float]:
    """The multipliers computed by hand from each round's samples."""
    value, values = 0.0, []
    for number in ("001", "002"):
        costs = [row["cost"] for row in lines(out / "rounds" / number / "scores.jsonl")]
        value = max(0.0, value + 4.0 * (fmean(costs) - 0.3))
        values.append(value)
    return values


def best_of(out: Path, number: str, multiplier: float) -> dict[int, tuple[float, float]]:
    """The highest and lowest value of each prompt's answers under a multiplier."""
    worth: dict[int, list[float]] = {}
    place = out / "rounds" / number
    for sample, score in zip(lines(place / "samples.jsonl"), lines(place / "scores.jsonl"), strict=True):
        assert score["cost"] == sum(c in "abcdefghijkl" for c in sample["text"])
        if sample["text"].strip():
            worth.setdefault(sample["prompt_index"], []).append(score["reward"] - multiplier * score["cost"])
    return {prompt: (max(values), min(values)) for prompt, values in worth.items()}


def margins(path: Path) -> dict[str, float]:
    return {item.id: p.margin or 0.0 for item in data.read(str(path)).items for p in preferences(item)}


def test_pairs_are_labelled_by_reward_less_multiplier_times_cost_under_the_newest_multiplier(whole):
    first, second = multipliers(whole)
    assert first > 0
    assert second != first
    for path, multiplier in (("001/pairs.jsonl", first), ("002/pairs.jsonl", second), ("002/train.jsonl", second)):
        labelled = margins(whole / "rounds" / path)
        assert len(labelled) > 5
        for number in ("001", "002"):
            best = best_of(whole, number, multiplier)
            own = {name: value for name, value in labelled.items() if name.startswith(f"r{number}")}
            for name, value in own.items():
                high, low = best[int(name.rpartition("-")[2])]
                assert value == pytest.approx(high - low)
    both = margins(whole / "rounds" / "002" / "train.jsonl")
    assert {name[:4] for name in both} == {"r001", "r002"}


def test_cost_and_multiplier_are_in_the_summary_the_table_and_the_page(whole):
    rounds = json.loads((whole / "rounds.json").read_text())["rounds"]
    assert [r.get("multiplier") for r in rounds] == [None, *map(pytest.approx, multipliers(whole))]
    costs = lines(whole / "rounds" / "002" / "measured.jsonl")
    assert rounds[2]["cost"]["mean"] == pytest.approx(fmean(r["cost"] for r in costs))
    head, *table = (whole / "rounds.csv").read_text().splitlines()
    assert head.endswith(",multiplier")
    assert {len(line.split(",")) for line in table} == {len(head.split(","))}
    page = (whole / "report.html").read_text()
    assert "Cost by round" in page
    assert "Multiplier by round" in page
    assert "bound 0.3" in page or "mean cost at 0.3" in page


def weights(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("rounds/*/run/model.safetensors"), *out.glob("rounds/*/*.jsonl"), out / "rounds.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


def test_a_run_without_its_last_stages_resumes_to_the_same_bytes(folder, whole):
    out = folder / "cut"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "rounds" / "002" / "run")
    for name in ("train.jsonl", "pairs.jsonl", "scores.jsonl", "measured.jsonl"):
        (out / "rounds" / "002" / name).unlink()
    cost = f"{folder}/rewards.py:early"
    (out / "rounds.json").unlink()
    run(folder, out, resume=True, cost=cost, **COST)
    assert weights(out) == weights(whole)


@pytest.mark.slow
def test_a_bound_that_is_never_reached_changes_no_pair_and_no_weight(folder):
    plain = weights(run(folder, folder / "plain", rounds=1))
    loose = weights(run(folder, folder / "loose", rounds=1, cost=f"{folder}/rewards.py:early", cost_bound=1e9))
    for name in ("rounds/001/pairs.jsonl", "rounds/001/run/model.safetensors"):
        assert plain[name] == loose[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cost_bound": 0.1}, "cost_bound has no effect: there is no cost"),
        ({"dual_lr": 2.0}, "dual_lr has no effect"),
        ({"cost": "m:f"}, "cost_bound is missing"),
        ({"cost": "m:f", "cost_bound": 1, "reward": "people"}, "cost has no effect: people"),
        ({"cost": "m:f", "cost_bound": 1, "pairing": "spin"}, "cost has no effect: spin"),
        ({"cost": "m:f", "cost_bound": 1, "patience": 2}, "patience has no effect"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(folder, given, said):
    with pytest.raises(Exception, match=said):
        settings(folder, folder / "none", **given)
