"""Rewards inferred from demonstrations: training data, refusals and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import fingerprint, finished, kill_at, model_folder, one_thread, start_command

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.prepare.demonstrations import count_unanswered, length_note, read_samples, with_samples
from afzal.records import Comparison, Item, Rating, Response, labels, preferences, scores
from afzal.rewards.assess import ScoredItem
from afzal.rewards.identifiability import identifiability
from afzal.rewards.source import reward_source

SHOWN, DRAWN = (" please", " please see"), (" no", " no way", " why")


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("irl")
    model_folder(path / "model")
    prompts = [f"Q{k}:" for k in range(24)]
    write(path / "shown.jsonl", [(p, SHOWN[k % 2]) for k, p in enumerate(prompts)])
    write(path / "drawn.jsonl", [(p, DRAWN[(k + n) % 3]) for k, p in enumerate(prompts) for n in range(2)])
    return path


def given(folder, **changes):
    base = {"model": str(folder / "model"), "data": str(folder / "shown.jsonl"), "device": "cpu", "batch_size": 8}
    base |= {"samples": str(folder / "drawn.jsonl"), "lr": 5e-3, "epochs": 6, "eval_fraction": 0.25}
    return config.make("irl", **(base | changes))


def test_an_item_holds_demonstrations_then_samples_with_opinions_for_every_unit():
    shown = Item("a", "Q:", (Response("x"),))
    again = Item("b", "Q:", (Response("y"), Response("z")), (Comparison(0, 1, "second"),))
    (item,), lost = with_samples([shown, again], {'"Q:"': [Response("x"), Response("w")]})
    assert [r.turns for r in item.responses] == ["x", "z", "x", "w"]
    assert scores(item) == (1.0, 1.0, 0.0, 0.0)
    assert labels(item) == (True, True, False, False)
    # the first demonstration is not preferred to the first sample, which says the same
    assert {(q.i, q.j) for q in preferences(item)} == {(1, 3)}
    assert lost == []


def test_every_response_takes_part_in_a_pair():
    one = Item("a", "Q:", (Response("x"),))
    (item,), _ = with_samples([one], {'"Q:"': [Response(t) for t in "wvu"]})
    assert [(q.i, q.j) for q in preferences(item)] == [(0, 1), (0, 2), (0, 3)]
    (item,), _ = with_samples([one, one, one], {'"Q:"': [Response(t) for t in "wv"]})
    assert {(q.i, q.j) for q in preferences(item)} == {(0, 3), (1, 4), (2, 3)}


def test_what_has_no_partner_is_listed():
    items = [Item("a", "Q:", (Response("x"),)), Item("b", "P:", (Response("x"),))]
    items.append(Item("c", "Q:", (Response("x"),), (Rating(0, 0.0, "label"),)))
    samples = {'"Q:"': [Response("w")], '"R:"': [Response("v")] * 3}
    used, lost = with_samples(items, samples)
    assert [item.id for item in used] == ["a"]
    assert [(loss.item_id, loss.reason) for loss in lost] == [("b", "no_sample"), ("c", "no_demonstration")]
    assert count_unanswered(items, samples) == 3


def answered(shown: str, drawn: str, n: int = 10) -> list[Item]:
    items = [Item(str(k), f"Q{k}:", (Response(shown),)) for k in range(n)]
    return with_samples(items, {json.dumps(f"Q{k}:"): [Response(drawn), Response(drawn + drawn)] for k in range(n)})[0]


def test_lengths_that_tell_demonstrations_from_samples_are_told_of():
    assert "longer than samples of the same prompt in 100% of the cases" in length_note(answered("xxxxx", "vv"))
    assert "shorter than samples of the same prompt in 100% of the cases" in length_note(answered("x", "vv"))
    assert length_note(answered("xxx", "vv")) == ""  # longer than one sample, shorter than the other
    assert length_note(answered("xx", "vv", 9) + answered("x", "vv", 1)) == ""  # equal to one of the samples: half
    assert length_note(answered("x", "vv", 9)) == ""  # too few prompts to say so


def test_a_run_says_so_before_it_trains(folder):
    lines = recipes.plan(given(folder))
    assert any("are longer than samples of the same prompt" in line for line in lines)


def test_repeated_samples_are_independent_draws(folder):
    write(folder / "twice.jsonl", [("Q0:", " no")] * 3)
    assert {key: len(drawn) for key, drawn in read_samples(str(folder / "twice.jsonl")).items()} == {'"Q0:"': 3}


@pytest.mark.parametrize("objective", ["ranking_nce", "maxent_irl", "airl", "demonstration_pairs"])
def test_every_estimator_prefers_what_was_demonstrated(folder, objective):
    with one_thread():
        run = runs.open_run(recipes.train(given(folder, objective=objective, out=str(folder / objective))))
    facts = run.facts()
    assert facts["reward"]["accuracy"]["value"] == 1.0
    assert facts["identified"]["unseen"]["value"] == 1.0
    rewards = reward_source(str(run.path))(["Q3:"] * 2, [" please", " no way"])
    assert rewards[0] > rewards[1] + 1
    assert "What is identified" in (run.path / "report.html").read_text()


def test_a_run_resumes_to_the_same_bytes(folder):
    whole = given(folder, out=str(folder / "whole"), save_every_steps=2, keep_checkpoints=9)
    with one_thread():
        expected = fingerprint(recipes.train(whole))
        cut = folder / "whole" / "checkpoints"
        latest = sorted(cut.iterdir())[-1]
        import shutil

        shutil.rmtree(latest)
        for name in ("model.safetensors",):
            (folder / "whole" / name).unlink()
        runs.open_run(folder / "whole").update(status="running")
        assert fingerprint(recipes.train(whole, resume=True)) == expected


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_bytes(folder):
    """Killed at its start, in the middle and near its end, each time shortly after a checkpoint."""
    line = ["train", "irl", "--model", f"{folder}/model", "--data", f"{folder}/shown.jsonl", "--device", "cpu"]
    line += ["--samples", f"{folder}/drawn.jsonl", "--lr", "5e-3", "--epochs", "6", "--batch-size", "2"]
    line += ["--eval-fraction", "0.25", "--save-every-steps", "1", "--keep-checkpoints", "99", "--out"]
    whole, killed = folder / "unkilled", 0
    assert finished(start_command([*line, str(whole)])) == 0
    steps = int(runs.open_run(whole).facts()["steps"])
    assert steps > 40
    for target in (1, steps // 2, steps - 5):
        out = folder / f"killed-{target}"
        killed += kill_at([*line, str(out)], out / "checkpoints" / f"step-{target:08d}") != 0
        assert finished(start_command([*line, str(out), "--resume"])) == 0
        assert fingerprint(out) == fingerprint(whole)
    assert killed == 3


def test_other_samples_refuse_to_resume(folder):
    drawn = write(folder / "changed.jsonl", [(f"Q{k}:", " no") for k in range(24)])
    asked = given(folder, out=str(folder / "changed"), samples=str(drawn), max_steps=1)
    recipes.train(asked)
    runs.open_run(folder / "changed").update(status="stopped")
    write(drawn, [(f"Q{k}:", " why") for k in range(24)])
    with pytest.raises(AfzalError, match="samples"):
        recipes.train(asked, resume=True)


def test_what_cannot_be_is_refused(folder):
    with pytest.raises(AfzalError, match="single head"):
        given(folder, heads=2)
    with pytest.raises(AfzalError, match="centering"):
        given(folder, centering=0.5)
    write(folder / "others.jsonl", [("another", " no")])
    with pytest.raises(AfzalError, match="nothing is left to train irl on"):
        recipes.train(given(folder, samples=str(folder / "others.jsonl"), out=str(folder / "none")))


def test_the_effective_share_by_hand():
    item = with_samples([Item("a", "Q:", (Response("x"),))], {'"Q:"': [Response("w"), Response("v")]})[0][0]
    one = ScoredItem(item, np.array([3.0, 0.0, np.log(3)]), np.zeros(3), np.ones(3))
    result = identifiability([one, one], 1.0)
    # w = 1/4, 3/4: 1 / (2 * 10/16)
    assert result.effective.value == pytest.approx(0.8)
    assert result.beyond.value == result.unseen.value == 1.0
    # at beta = 1/2 the weights are 1/10 and 9/10
    assert identifiability([one, one], 0.5).effective.value == pytest.approx(1 / (2 * 0.82))
