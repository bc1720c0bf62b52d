"""``afzal ask`` from a pool to rows to label: files, messages, refusals, and scores by functions and models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import model_folder

from afzal import data
from afzal.cli import main
from afzal.config import AskConfig
from afzal.records import Comparison, Item, Response

WORDS = "bird cat dog egg fish good happy ill joy kite".split()  # noqa: SIM905


def rows(n: int = 40, *, voted: int = 0, sources: bool = False, features: int = 0, seed: int = 0) -> list[Item]:
    """Pairs of five-word answers; if people voted, the answer with more 'good' wins."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n):
        texts = [" ".join(rng.choice(WORDS, 5)) + f" x{k}{side}" for side in "ab"]
        names = [f"m{k % 3}", f"m{(k + 1) % 3}"] if sources else [None, None]
        outcome = "first" if texts[0].count("good") >= texts[1].count("good") else "second"
        votes = tuple(Comparison(0, 1, outcome, annotator=who) for who in ("ann", "bob")) if k < voted else ()
        extra = {"features": rng.normal(size=(2, features)).round(3).tolist()} if features else {}
        responses = tuple(Response(text, name) for text, name in zip(texts, names, strict=True))
        made.append(Item(f"r{k}", f"prompt {k}", responses, votes, extra=extra))
    return made


def pool(folder: Path, name: str = "pool.jsonl", **how) -> str:
    data.write(rows(**how), folder / name, "afzal")
    return str(folder / name)


def asked(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_questions_are_rows_for_annotation_with_the_reason_in_each(tmp_path, capsys):
    assert main(["ask", pool(tmp_path, voted=10), "--n", "20"]) == 0
    said = capsys.readouterr().out
    assert "pool: 40 rows, 40 pairs of different answers" in said
    assert "known: 20 votes on 10 pairs" in said
    assert "20 questions: 18 by d_optimal (score " in said
    assert "afzal annotate to_label.jsonl" in said
    made = asked(tmp_path / "to_label.jsonl")
    assert [set(row["extra"]["asked"]) for row in made] == [{"rule", "score"}] * 20
    assert [row["extra"]["asked"]["rule"] for row in made].count("random") == 2
    assert {row["id"] for row in made} <= {f"r{k}" for k in range(10, 40)}
    assert not any("votes" in row for row in made)
    assert data.read(tmp_path / "to_label.jsonl").kept == 20


def test_an_existing_file_is_kept_unless_forced(tmp_path, capsys):
    source = pool(tmp_path)
    (tmp_path / "to_label.jsonl").write_text("mine")
    assert main(["ask", source]) == 2
    assert "to_label.jsonl exists" in capsys.readouterr().err
    assert (tmp_path / "to_label.jsonl").read_text() == "mine"
    assert main(["ask", source, "--force"]) == 0
    assert len(asked(tmp_path / "to_label.jsonl")) == 40
    assert "100 were requested, but no more are left" in capsys.readouterr().out


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(tmp_path):
    source = pool(tmp_path, voted=10)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["ask", source, "-n", "10", "--seed", seed, "--out", f"{name}.jsonl"]) == 0
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("rule", ["entropy", "d_optimal", "max_margin"])
def test_a_constant_scorer_asks_exactly_what_random_asks(tmp_path, rule):
    source = pool(tmp_path, voted=6)
    (tmp_path / "mine.py").write_text("def same(prompt, answer):\n    return 0.3\n")
    assert main(["ask", source, "--n", "15", "--by", rule, "--reward", "mine.py:same", "--out", "a.jsonl"]) == 0
    assert main(["ask", source, "--n", "15", "--by", "random", "--out", "b.jsonl"]) == 0
    ours, chance = ([row["id"] for row in asked(tmp_path / name)] for name in ("a.jsonl", "b.jsonl"))
    assert ours == chance
    assert len(ours) == 15


def test_several_functions_are_an_ensemble_and_bald_asks_where_they_disagree(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def good(prompt, answer):\n    return 2 * answer.count('good')\n"
        "def odd(prompt, answer):\n    return 2 * answer.count('good') + 5 * ('x7a' in answer)\n"
    )
    functions = ["--reward", "mine.py:good", "--reward", "mine.py:odd"]
    assert main(["ask", pool(tmp_path), "--n", "5", "--by", "bald", *functions, "--random", "0.01"]) == 0
    assert asked(tmp_path / "to_label.jsonl")[0]["id"] == "r7"


def test_a_score_that_is_no_number_is_named_and_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def bad(prompt, answer):\n    return float('nan' if 'x7a' in answer else 1)\n")
    assert main(["ask", pool(tmp_path), "--by", "entropy", "--reward", "mine.py:bad"]) == 2
    said = capsys.readouterr().err
    assert "the reward is nan" in said
    assert "'prompt 7'" in said
    assert not (tmp_path / "to_label.jsonl").exists()


@pytest.mark.parametrize("rule", ["max_margin", "closest"])
def test_harmful_rules_are_named_in_full_and_warned_of(tmp_path, capsys, rule):
    source = pool(tmp_path, voted=20, sources=True)
    assert main(["ask", source, "--n", "5", "--by", rule, "--json"]) == 0
    caught = capsys.readouterr()
    assert f"warning: {rule} asks about the" in caught.err
    assert json.loads(caught.out)["warnings"] != []
    assert main(["ask", source, "--by", rule[:5]]) == 2


def test_a_rule_that_needs_votes_says_that_there_are_none(tmp_path, capsys):
    assert main(["ask", pool(tmp_path), "--by", "entropy"]) == 0
    assert "neither votes nor scores, so entropy orders the questions at random" in capsys.readouterr().err


def test_votes_of_another_file_count_as_known(tmp_path, capsys):
    source, votes = pool(tmp_path, voted=40), pool(tmp_path, "votes.jsonl", n=15, voted=15)
    assert main(["ask", source, "--votes", votes, "--n", "100"]) == 0
    assert "known: 30 votes on 15 pairs" in capsys.readouterr().out
    assert {row["id"] for row in asked(tmp_path / "to_label.jsonl")} == {f"r{k}" for k in range(15, 40)}


def test_every_pair_voted_on_leaves_nothing_to_ask(tmp_path, capsys):
    assert main(["ask", pool(tmp_path, voted=40)]) == 2
    said = capsys.readouterr().err
    assert "every pair of the pool has votes" in said
    assert "--by repeat" in said


def test_the_learning_curve_is_printed_against_random(tmp_path, capsys):
    source = pool(tmp_path, n=160, voted=150)
    assert main(["ask", source, "--curve", "--seeds", "2", "--labels", "60", "--n", "5"]) == 0
    said = capsys.readouterr().out
    assert "learning curve: held-out accuracy (2 simulations, " in said
    assert "labels  d_optimal" in said
    assert "mean gain over random: " in said
    assert "100 more labels add, over the second half: " in said
    how = ["--seeds", "2", "--labels", "60", "--json", "--force"]
    assert main(["ask", source, "--curve", *how]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["curve"]["marks"] == [20, 30, 40, 50, 60]
    assert plain["questions"] == 10


def test_a_curve_over_a_pool_that_is_all_voted_writes_nothing(tmp_path, capsys):
    source = pool(tmp_path, n=150, voted=150)
    assert main(["ask", source, "--curve", "--seeds", "2", "--labels", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] is None
    assert not (tmp_path / "to_label.jsonl").exists()


def test_information_says_whether_the_best_model_is_decided(tmp_path, capsys):
    source = pool(tmp_path, n=60, voted=30, sources=True)
    assert main(["ask", source, "--by", "information", "--n", "6"]) == 0
    assert "resamples of 30 prompts" in capsys.readouterr().out
    assert asked(tmp_path / "to_label.jsonl")[0]["responses"][0]["source"].startswith("m")


def test_features_of_rows_are_read_and_no_model_is_loaded(tmp_path, monkeypatch):
    source = pool(tmp_path, features=4, voted=10)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "afzal.recipes.pool_scores", None)
    assert main(["ask", source, "--features", "rows", "--n", "8"]) == 0
    assert len(asked(tmp_path / "to_label.jsonl")) == 8
    assert main(["ask", source, "--n", "8", "--force"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--by", "repeat", "--features", "rows"], "features has no effect: repeat reads none"),
        (["--by", "information", "--reward", "R"], "reward has no effect: information reads none"),
        (["--seeds", "3"], "seeds has no effect: curve is off"),
        (["--by", "random", "--curve"], "has nothing to be compared with random"),
        (["--beta", "0.2"], "beta has no effect: there is no policy"),
        (["--policy", "P"], "policy and reference belong together"),
        (["--by", "entropy", "--reward", "R", "--features", "rows"], "entropy uses only the given scores"),
        (["--random", "0"], "random"),
        (["--n", "0"], "n"),
        (["--by", "uncertainty"], "uncertainty"),
        (["--votes", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_flags_without_effect_and_missing_inputs_are_refused(tmp_path, capsys, flags, said):
    assert main(["ask", pool(tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, and a reward model of three heads on it."""
    import torch

    from afzal.model.load import load_tokenizer
    from afzal.model.reward import choose_pad, load_reward_model, save_reward_model

    path = tmp_path_factory.mktemp("ask")
    model_folder(path / "lm")
    tokenizer = load_tokenizer(str(path / "lm"))
    model = load_reward_model(str(path / "lm"), heads=3)
    with torch.no_grad():
        model.score.weight.mul_(20)
    choose_pad(model, tokenizer, [tokenizer.eos_token_id])
    save_reward_model(model, tokenizer, path / "rm")
    return path


def test_heads_of_a_reward_model_are_an_ensemble(folder, tmp_path):
    from afzal.quality import ask
    from afzal.quality.ask import rules
    from afzal.recipes.pool_scores import score_pool

    source = pool(tmp_path, n=12)
    items = data.read(source).items
    settings = AskConfig(data=source, by="bald", reward=[str(folder / "rm")])
    ensemble = score_pool(settings, items)
    assert ensemble.members is not None
    assert [m.shape for m in ensemble.members] == [(2, 3)] * 12
    margins = ask.pool_of(items).differences(ensemble.members).T
    scores = rules.disagreement(margins)
    assert main(["ask", source, "--by", "bald", "--reward", str(folder / "rm"), "--n", "12"]) == 0
    ours = [row for row in asked(tmp_path / "to_label.jsonl") if row["extra"]["asked"]["rule"] == "bald"]
    assert [row["extra"]["asked"]["score"] for row in ours] == pytest.approx(
        sorted((scores[int(row["id"][1:])] for row in ours), reverse=True), abs=1e-5
    )


def test_mean_heads_are_the_scores_of_afzal_score(folder, tmp_path):
    from afzal.recipes.pool_scores import score_pool

    source = pool(tmp_path, n=5)
    settings = AskConfig(data=source, by="entropy", reward=[str(folder / "rm")])
    scores = score_pool(settings, data.read(source).items)
    assert main(["score", "--model", str(folder / "rm"), "--data", source, "--out", "scores.jsonl"]) == 0
    wanted = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert np.concatenate([m.mean(1) for m in scores.members]) == pytest.approx(wanted, abs=1e-5)


def test_d_optimal_by_a_reward_model_goes_by_its_hidden_states(folder, tmp_path):
    from afzal.model.reward import load_reward_model
    from afzal.recipes.pool_scores import score_pool

    source = pool(tmp_path, n=6)
    items = data.read(source).items
    scores = score_pool(AskConfig(data=source, reward=[str(folder / "rm")]), items)
    assert scores.hidden
    assert scores.features is not None
    assert scores.features[0].shape == (2, 32)
    heads = load_reward_model(str(folder / "rm")).score.weight.detach().double().numpy()
    for features, members in zip(scores.features, scores.members, strict=True):
        assert features @ heads.T == pytest.approx(members, abs=1e-4)  # a head is linear in them; no shift is stated
    assert main(["ask", source, "--reward", str(folder / "rm"), "--n", "3"]) == 0
    assert main(["ask", source, "--features", str(folder / "lm"), "--n", "3", "--force"]) == 0


def test_policies_are_scored_against_their_reference(folder, tmp_path):
    policy = ["--policy", str(folder / "lm"), "--reference", str(folder / "lm")]
    assert main(["ask", pool(tmp_path), "--by", "entropy", *policy, "--n", "4"]) == 0
    assert [row["extra"]["asked"]["score"] for row in asked(tmp_path / "to_label.jsonl")] == pytest.approx(
        [np.log(2)] * 4
    )


def test_votes_of_nobody_ignore_those_in_the_pool(tmp_path, capsys):
    assert main(["ask", pool(tmp_path, voted=40), "--votes", "nobody", "--n", "5"]) == 0
    assert "known: 0 votes on 0 pairs" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("def size(prompt, answer):\n    return len(answer)\n")
    for rule in ("entropy", "d_optimal"):
        how = ["--by", rule, "--reward", "mine.py:size", "--votes", "nobody", "--force"]
        assert main(["ask", pool(tmp_path, voted=40), *how]) == 0


def test_single_answers_of_afzal_generate_are_a_pool(folder, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Q{k}"}) + "\n" for k in range(3)))
    how = ["--prompts", "prompts.jsonl", "-n", "3", "--max-new-tokens", "4", "--out", "answers.jsonl"]
    assert main(["generate", "--model", str(folder / "lm"), *how]) == 0
    assert main(["ask", "answers.jsonl"]) == 0
    made = asked(tmp_path / "to_label.jsonl")
    assert len(made) == 9
    assert all(len(row["responses"]) == 2 for row in made)
    assert len({row["id"] for row in made}) == 9


def test_the_folder_of_the_annotation_page_is_votes(tmp_path, capsys):
    source = pool(tmp_path, n=6)
    page = tmp_path / "page"
    page.mkdir()
    (page / "items.jsonl").write_bytes(Path(source).read_bytes())
    vote = {"id": "v1", "item": "r2", "annotator": "ann", "axis": None, "kind": "pair", "shown": [1, 0]}
    vote |= {"outcome": "first", "at": "2026-11-28T10:12:03.412Z", "repeat_of": None, "retracts": None, "gold": False}
    (page / "votes.jsonl").write_text(json.dumps(vote) + "\n")
    assert main(["ask", source, "--votes", str(page)]) == 0
    assert "known: 1 votes on 1 pairs" in capsys.readouterr().out
    assert {row["id"] for row in asked(tmp_path / "to_label.jsonl")} == {"r0", "r1", "r3", "r4", "r5"}


def test_each_scorer_of_a_list_is_looked_for_before_anything_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("afzal.data.read", None)
    assert main(["ask", pool(tmp_path), "--reward", "good.py:f,gone.py:f", "--by", "entropy"]) == 2
    assert "there is no file 'good.py'" in capsys.readouterr().err
    (tmp_path / "good.py").write_text("def f(prompt, answer):\n    return 1\n")
    assert main(["ask", pool(tmp_path), "--reward", "good.py:f,gone.py:f", "--by", "entropy"]) == 2
    assert "there is no file 'gone.py'" in capsys.readouterr().err
